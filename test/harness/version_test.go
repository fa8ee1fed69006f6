// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	if version, err := Version(); err != nil || strings.Count(version, ".") < 2 || strings.HasPrefix(version, "v") {
		t.Errorf("the tree's version is %q (%v)", version, err)
	}
	if version, err := versionIn([]byte("# Makefile\nVERSION ?= 1.2.3-rc.1\nIMG ?= x\n")); err != nil || version != "1.2.3-rc.1" {
		t.Errorf("got %q (%v)", version, err)
	}
	if version, err := versionIn([]byte("VERSION = 1.2.3\n")); err == nil {
		t.Errorf("another line gives %q", version)
	}
}
