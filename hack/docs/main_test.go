// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The committed pages are what the code says (make docs).
func TestPagesAreCurrent(t *testing.T) {
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	pages, err := os.ReadDir(dir)
	if err != nil || len(pages) != 3 {
		t.Fatalf("%d pages, want 3 (%v)", len(pages), err)
	}
	for _, page := range pages {
		want, err := os.ReadFile(filepath.Join(dir, page.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("../../docs", page.Name()))
		if err != nil || string(got) != string(want) {
			t.Errorf("docs/%s is out of date: run make docs (%v)", page.Name(), err)
		}
	}
}

// A table without a text would help nobody.
func TestNothingIsUndocumented(t *testing.T) {
	f := collect()
	if len(f.Variables) < 20 || len(f.Metrics) < 6 || len(f.ErrorTypes) < 10 || len(f.Functions) < 5 {
		t.Errorf("found %d variables, %d metrics, %d types of errors and %d groups of functions", len(f.Variables), len(f.Metrics), len(f.ErrorTypes), len(f.Functions))
	}
	for name, text := range texts(f) {
		if strings.TrimSpace(text) == "" {
			t.Errorf("%s has no text", name)
		}
	}
}

// texts are the texts of all that has a name.
func texts(f facts) map[string]string {
	texts := map[string]string{}
	for _, v := range f.Variables {
		texts[v.Name] = v.Doc
	}
	for _, m := range f.Metrics {
		texts[m.Name] = m.Help
	}
	for _, e := range f.ErrorTypes {
		texts[string(e)] = e.Meaning()
	}
	for _, g := range f.Functions {
		for _, function := range g.Functions {
			texts[function.Name] = function.Usage + function.Doc
		}
	}
	return texts
}
