// SPDX-License-Identifier: Apache-2.0

package kernelfeature

import "testing"

func TestOlderThan(t *testing.T) {
	for release, want := range map[string]bool{
		"4.19.0-27-amd64":   true,
		"5.4.0-150-generic": true,
		"5.9.16":            true,
		"5.10.0-28-amd64":   false,
		"5.10":              false,
		"6.1.0":             false,
		"10.0.1":            false,
		"strange":           false,
		"":                  false,
	} {
		if got := OlderThan(release, 5, 10); got != want {
			t.Errorf("OlderThan(%q, 5, 10) = %v, want %v", release, got, want)
		}
	}
}

func TestRelease(t *testing.T) {
	release, err := Release()
	if err != nil {
		t.Fatal(err)
	}
	if OlderThan(release, 3, 0) || !OlderThan(release, 1000, 0) {
		t.Errorf("%q is no release of Linux that runs this", release)
	}
}
