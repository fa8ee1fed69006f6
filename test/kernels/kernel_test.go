// SPDX-License-Identifier: Apache-2.0

package main

import (
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
		kernels, err := remembered(cache, []string{"5.10", "6.1", newestSeries}, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range kernels {
			found = append(found, k.series+" "+filepath.Base(k.dir))
		}
		return found
	}
	if got := series(now); len(got) != 0 {
		t.Error("at first:", got)
	}
	for _, dir := range []string{"5.10.223-1", "6.1.5_bpo1"} {
		if err := os.Mkdir(filepath.Join(cache, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		kernel kernel
		at     time.Time
	}{
		{kernel{series: "5.10", version: "5.10.223-1"}, now},
		{kernel{series: "6.1", version: "6.1.5~bpo1"}, now.Add(time.Hour)},
		{kernel{series: newestSeries, version: "7.3.4-1"}, now}, // deleted meanwhile
	} {
		if err := remember(cache, []kernel{step.kernel}, step.at); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := series(now), []string{"5.10 5.10.223-1", "6.1 6.1.5_bpo1"}; !slices.Equal(got, want) {
		t.Errorf("remembered %v, want %v", got, want)
	}
	if got, want := series(now.Add(goodFor+time.Minute)), []string{"6.1 6.1.5_bpo1"}; !slices.Equal(got, want) {
		t.Errorf("a day later %v, want %v", got, want)
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
