// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// fence waits for programs. The kernel returns from the exchange of an inner map only
// when no program that began before it still runs.
type fence struct{ outer, inner *ebpf.Map }

func newFence() (*fence, error) {
	inner := &ebpf.MapSpec{Name: "fence_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "fence_outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner,
	})
	if err != nil {
		return nil, fmt.Errorf("creating a map of maps: %w", err)
	}
	filling, err := ebpf.NewMap(inner)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("creating an inner map: %w", err), outer.Close())
	}
	return &fence{outer, filling}, nil
}

// wait returns when no program runs any more that began before the call: in about
// ten milliseconds.
func (f *fence) wait() error {
	if err := f.outer.Put(uint32(0), f.inner); err != nil {
		return fmt.Errorf("waiting for running programs: %w", err)
	}
	return nil
}

func (f *fence) close() error { return errors.Join(f.outer.Close(), f.inner.Close()) }
