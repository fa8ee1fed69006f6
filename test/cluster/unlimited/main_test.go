// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestUnlimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	const text = `{"ociVersion":"1.2.1","linux":{"cgroupsPath":"/kubepods/pod1/c","resources":{"devices":[{"allow":false}],"memory":{"limit":9223372036854771712},"cpu":{"shares":2}}}}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unlimit(path); err != nil {
		t.Fatal(err)
	}
	changed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		OCIVersion string `json:"ociVersion"`
		Linux      struct {
			CgroupsPath string                     `json:"cgroupsPath"`
			Resources   map[string]json.RawMessage `json:"resources"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(changed, &got); err != nil {
		t.Fatal(err)
	}
	if got.OCIVersion != "1.2.1" || got.Linux.CgroupsPath != "/kubepods/pod1/c" || len(got.Linux.Resources) != 1 || string(got.Linux.Resources["devices"]) != `[{"allow":false}]` {
		t.Errorf("it became %s", changed)
	}
}

func TestUnlimitRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := unlimit(path); err == nil {
		t.Error("no file: no error")
	}
	for _, text := range []string{"", "{}", `{"linux":{"resources":1}}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unlimit(path); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestBundle(t *testing.T) {
	for want, args := range map[string][]string{
		"/b": {"--root", "/r", "create", "--bundle", "/b", "id"},
		"/c": {"create", "-b", "/c", "id"},
		"/d": {"create", "--bundle=/d", "id"},
		".":  {"create", "id"},
	} {
		if got := bundle(args); got != want {
			t.Errorf("bundle(%v) = %q, want %q", args, got, want)
		}
	}
}
