// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unpack reads an archive: of each name its mode in octal and its content.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	all := map[string]string{}
	round := func(n int) int { return (n + 3) &^ 3 }
	for at := 0; ; {
		if string(archive[at:at+6]) != "070701" {
			t.Fatalf("at %d there is no header", at)
		}
		field := func(i int) int {
			n, err := strconv.ParseInt(string(archive[at+6+8*i:at+14+8*i]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		size, length := field(6), field(11)
		name := string(archive[at+110 : at+110+length-1])
		if name == "TRAILER!!!" {
			return all
		}
		content := at + round(110+length)
		if all[name] != "" {
			t.Errorf("%s is there twice", name)
		}
		all[name] = strconv.FormatInt(int64(field(1)), 8) + " " + string(archive[content:content+size])
		at = content + round(size)
	}
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "some", "file")
	if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("hello"), 0o600), os.Chmod(dir, 0o777|os.ModeSticky),
		os.Chmod(file, 0o711|os.ModeSetuid), os.Symlink("file", filepath.Join(dir, "some", "link"))); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	a := NewInitramfs(&archive)
	if err := errors.Join(a.Tree("var/tree", dir), a.Data("var/tree/some/more", 0o644, []byte("bye")), a.Close()); err != nil {
		t.Fatal(err)
	}
	got := unpack(t, archive.Bytes())
	for name, want := range map[string]string{
		"var": "40755 ", "var/tree": "41777 ", "var/tree/some": "40700 ", "var/tree/some/file": "104711 hello",
		"var/tree/some/link": "120777 file", "var/tree/some/more": "100644 bye",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewInitramfs(&archive).Tree("tree", dir); err == nil || !strings.Contains(err.Error(), "pipe: it is neither") {
		t.Errorf("a pipe: %v", err)
	}
	if err := NewInitramfs(&archive).Tree("tree", filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}
