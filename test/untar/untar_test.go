// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"
)

// pack writes an archive, in which each file holds "hello".
func pack(t *testing.T, path string, headers ...tar.Header) {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	archive := tar.NewWriter(zipped)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = 5
		}
		if err := archive.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := archive.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if archive.Close() != nil || zipped.Close() != nil || os.WriteFile(path, out.Bytes(), 0o644) != nil {
		t.Fatal("cannot write the archive")
	}
}

func TestFile(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "a.tar.gz"), t.TempDir()
	pack(t, from, tar.Header{Name: "manifests/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "manifests/a.yaml", Typeflag: tar.TypeReg}, tar.Header{Name: "bin/b", Typeflag: tar.TypeReg, Mode: 0o755})
	if err := File(from, to); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"manifests/a.yaml": 0o444, "bin/b": 0o755} {
		if text, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(text) != "hello" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
		if info, err := os.Stat(filepath.Join(to, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want the mode %v", name, info, err, mode)
		}
	}
}

func TestFileRefuses(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "a.tar.gz"), t.TempDir()
	for name, h := range map[string]tar.Header{
		"beside the folder": {Name: "../c.yaml", Typeflag: tar.TypeReg}, "a link": {Name: "d", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
	} {
		pack(t, from, h)
		if err := File(from, to); err == nil {
			t.Errorf("%s was unpacked", name)
		}
	}
	for name, paths := range map[string][2]string{
		"no file": {from + "x", to}, "no folder": {from, to + "x"}, "no archive": {"untar.go", to},
	} {
		if err := File(paths[0], paths[1]); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	pack(t, from, tar.Header{Name: "a", Typeflag: tar.TypeReg})
	whole, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(from, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := File(from, to); err == nil {
		t.Error("half an archive: no error")
	}
}
