// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"errors"
	"strings"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
)

func TestTooOld(t *testing.T) {
	for release, old := range map[string]bool{
		"5.4.0-150-generic": true,
		"5.6.19":            true,
		"5.8.0":             true,
		"5.9.16":            true,
		"5.10.0-28-amd64":   false,
		"5.15.0":            false,
		"7.3.4+deb13-amd64": false,
	} {
		t.Run(release, func(t *testing.T) {
			err := TooOld(kernelfeature.L4Firewall, release)
			var unsupported *kernelfeature.Unsupported
			if errors.As(err, &unsupported) != old {
				t.Fatal(err)
			}
			if !old {
				return
			}
			if unsupported.Feature != kernelfeature.L4Firewall || !strings.HasPrefix(unsupported.Reason, "Linux "+release+" is too old") ||
				unsupported.Remedy != "use Linux 5.10 or newer" {
				t.Errorf("%+v", unsupported)
			}
		})
	}
}
