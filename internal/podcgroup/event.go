// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"bytes"
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// event is struct inotify_event of inotify(7).
type event struct {
	watch int32
	mask  uint32
	name  string
}

// events are those that one read returned.
func events(data []byte) iter.Seq[event] {
	return func(yield func(event) bool) {
		for len(data) >= unix.SizeofInotifyEvent {
			length := int(binary.NativeEndian.Uint32(data[12:]))
			end := unix.SizeofInotifyEvent + length
			if end > len(data) {
				return
			}
			name, _, _ := bytes.Cut(data[unix.SizeofInotifyEvent:end], []byte{0})
			e := event{
				watch: int32(binary.NativeEndian.Uint32(data[0:])),
				mask:  binary.NativeEndian.Uint32(data[4:]),
				name:  string(name),
			}
			if !yield(e) {
				return
			}
			data = data[end:]
		}
	}
}
