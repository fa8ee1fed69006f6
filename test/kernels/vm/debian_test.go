// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"slices"
	"testing"
)

func TestParseStanzas(t *testing.T) {
	got := parseStanzas("Package: a\nVersion: 1\nDepends: b (= 1), c\n\nPackage: a\nVersion: 2\n\nPackage: virtual\n")
	want := []stanza{{"a", "1", "b (= 1), c"}, {"a", "2", ""}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestParts(t *testing.T) {
	for depends, want := range map[string][]string{
		"linux-image-5.10.0-32-cloud-amd64 (= 5.10.223-1)":                                        {"linux-image-5.10.0-32-cloud-amd64"},
		"linux-binary-7.3.4+deb13-cloud-amd64, linux-modules-7.3.4+deb13-cloud-amd64 (= 7), kmod": {"linux-binary-7.3.4+deb13-cloud-amd64", "linux-modules-7.3.4+deb13-cloud-amd64"},
		"linux-image-cloud-amd64, linux-image-6.1.0-1-amd64":                                      nil,
	} {
		if got := parts.FindAllString(depends, -1); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", depends, got, want)
		}
	}
}
