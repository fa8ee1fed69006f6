// SPDX-License-Identifier: Apache-2.0

package kernelfeature

import (
	"errors"
	"fmt"
	"testing"
)

func TestUnsupported(t *testing.T) {
	for name, tc := range map[string]struct {
		in   Unsupported
		want string
	}{
		"with a remedy": {
			Unsupported{SyscallCounter, "the kernel has no BTF", "use a kernel with CONFIG_DEBUG_INFO_BTF"},
			"SyscallCounter is not supported on this node: the kernel has no BTF; use a kernel with CONFIG_DEBUG_INFO_BTF",
		},
		"without": {
			Unsupported{Feature: ConnectDenied, Reason: "no such program type"},
			"ConnectDenied is not supported on this node: no such program type",
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := fmt.Errorf("probing: %w", &tc.in)
			var got *Unsupported
			if !errors.As(err, &got) || got.Error() != tc.want {
				t.Errorf("got %v, want %q", got, tc.want)
			}
		})
	}
}
