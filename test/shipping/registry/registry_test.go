// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func start(t *testing.T, o Options) *Registry {
	t.Helper()
	o.Folder = t.TempDir()
	r, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestOnlyItsAuthorityIsTrusted(t *testing.T) {
	one, other := start(t, Options{}), start(t, Options{})
	client, err := one.Client()
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Get(one.URL() + "/v2/_catalog")
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusOK {
		t.Errorf("the catalog is answered with %s", response.Status)
	}
	if response, err := client.Get(other.URL() + "/v2/"); err == nil {
		response.Body.Close()
		t.Error("a client of one registry trusts another")
	}
}

func TestPlainHTTP(t *testing.T) {
	r := start(t, Options{PlainHTTP: true})
	if !strings.HasPrefix(r.URL(), "http://127.0.0.1:") || r.CAFile != "" {
		t.Errorf("URL %q, authority %q", r.URL(), r.CAFile)
	}
}

// A folder that cannot be one: the registry ends, and says why.
func TestStartTellsWhyNot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Start(t.Context(), Options{Folder: filepath.Join(file, "images")})
	if err == nil {
		t.Fatal("it starts without a folder", r.Stop())
	}
	if !strings.Contains(err.Error(), "making the folder for images") {
		t.Errorf("the error does not tell why: %v", err)
	}
}

// What goes in comes out again, for this machine's platform.
func TestPushAndUnpack(t *testing.T) {
	for name, o := range map[string]Options{"TLS": {}, "HTTP": {PlainHTTP: true}} {
		t.Run(name, func(t *testing.T) {
			r, files, layout, out := start(t, o), t.TempDir(), filepath.Join(t.TempDir(), "layout"), t.TempDir()
			for _, architecture := range []string{"amd64", "arm64"} {
				if err := os.WriteFile(filepath.Join(files, architecture), []byte("for "+architecture), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if said, err := exec.Command("../../../bin/image", "build", "-add", "/a/b="+files+"/{arch}", "-layout", layout).CombinedOutput(); err != nil {
				t.Fatalf("bin/image, which `make bin/image` builds: %v\n%s", err, said)
			}
			if err := r.Unpack(t.Context(), "team/thing:v1", out); err == nil || !strings.Contains(err.Error(), "image pull") {
				t.Errorf("an image that is not there: %v", err)
			}
			if err := r.Push(t.Context(), layout, "team/thing:v1"); err != nil {
				t.Fatal(err)
			}
			if err := r.Unpack(t.Context(), "team/thing:v1", out); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(out, "a/b"))
			if err != nil || info.Mode().Perm() != 0o755 {
				t.Fatalf("the file is %v (%v)", info, err)
			}
			if text, err := os.ReadFile(filepath.Join(out, "a/b")); err != nil || string(text) != "for "+runtime.GOARCH {
				t.Errorf("it holds %q (%v)", text, err)
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	layout, out := t.TempDir(), t.TempDir()
	if err := unpackLayout(layout, out); err == nil || !strings.Contains(err.Error(), "reading the image") {
		t.Errorf("no layout: %v", err)
	}
	for content, want := range map[string]string{
		`{`: "decoding", `{}`: "0 images were pulled", `{"manifests":[{"digest":"sha256:0"}]}`: "reading the image",
	} {
		if err := os.WriteFile(filepath.Join(layout, "index.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unpackLayout(layout, out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("index %s: %v, want %q", content, err, want)
		}
	}
}
