// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/http"
	"os"
	"path/filepath"
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
