// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestRemembered(t *testing.T) {
	cache, now := t.TempDir(), time.Now()
	series := func(at time.Time) (found []string) {
		t.Helper()
		kernels, err := remembered(cache, []string{"5.10", "6.1", Newest}, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range kernels {
			found = append(found, k.Series+" "+filepath.Base(k.Dir))
		}
		return found
	}
	if got := series(now); len(got) != 0 {
		t.Error("at first:", got)
	}
	for _, dir := range []string{"5.10.223-1", "6.1.5_bpo1"} {
		writeWanted(t, filepath.Join(cache, dir), wantedModules)
	}
	for _, step := range []struct {
		kernel Kernel
		at     time.Time
	}{
		{Kernel{Series: "5.10", Version: "5.10.223-1"}, now},
		{Kernel{Series: "6.1", Version: "6.1.5~bpo1"}, now.Add(time.Hour)},
		{Kernel{Series: Newest, Version: "7.3.4-1"}, now}, // deleted meanwhile
	} {
		if err := remember(cache, []Kernel{step.kernel}, step.at); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := series(now), []string{"5.10 5.10.223-1", "6.1 6.1.5_bpo1"}; !slices.Equal(got, want) {
		t.Errorf("remembered %v, want %v", got, want)
	}
	if got, want := series(now.Add(goodFor+time.Minute)), []string{"6.1 6.1.5_bpo1"}; !slices.Equal(got, want) {
		t.Errorf("a day later %v, want %v", got, want)
	}
	// What was kept for fewer modules has to be fetched again.
	writeWanted(t, filepath.Join(cache, "5.10.223-1"), wantedModules[:1])
	if got, want := series(now), []string{"6.1 6.1.5_bpo1"}; !slices.Equal(got, want) {
		t.Errorf("without modules %v, want %v", got, want)
	}
	if err := os.WriteFile(filepath.Join(cache, answersFile), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := remembered(cache, nil, now); err == nil {
		t.Error("no error from a damaged file")
	}
	if err := remember(cache, nil, now); err == nil {
		t.Error("no error when a damaged file is to be changed")
	}
}

func writeWanted(t *testing.T, dir string, modules []string) {
	t.Helper()
	text, err := json.Marshal(modules)
	if err := errors.Join(err, os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, wantedFile), text, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestModulesInOrder(t *testing.T) {
	k := Kernel{Dir: t.TempDir()}
	if _, err := k.Modules(); err == nil {
		t.Error("no error without a list")
	}
	if err := os.WriteFile(filepath.Join(k.Dir, modulesFile), []byte(`["b.ko","a.ko"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := k.Modules()
	if want := []string{filepath.Join(k.Dir, "b.ko"), filepath.Join(k.Dir, "a.ko")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("modules are %v, %v", got, err)
	}
}
