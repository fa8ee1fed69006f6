// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
)

// ours is the committed bundle, for any version that it is of.
func ours(t *testing.T) *options {
	t.Helper()
	o := &options{image: "registry.example.com/bundle:v1", bundle: "../../bundle", opm: "none", out: filepath.Join(t.TempDir(), "catalog")}
	csv, err := o.readCSV()
	if err != nil {
		t.Fatal(err)
	}
	o.version = csv.Spec.Version.String()
	return o
}

func TestEntries(t *testing.T) {
	o := ours(t)
	all, err := o.entries()
	if err != nil || len(all) != 3 {
		t.Fatalf("%d entries (%v), want the package and two channels", len(all), err)
	}
	about := all[0].(packageEntry)
	if about.Icon.MediaType != "image/svg+xml" || about.Icon.Base64Data == "" || about.Description == "" || about.DefaultChannel != "stable" {
		t.Errorf("the package is %+v", about)
	}
	for i, name := range []string{"candidate", "stable"} {
		want := channel{"olm.channel", "podconfigmap-controller", name, []entry{{"podconfigmap-controller.v" + o.version, "<" + o.version}}}
		if !reflect.DeepEqual(all[1+i], want) {
			t.Errorf("channel %+v, want %+v", all[1+i], want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, o *options)
		want   string
	}{
		"another version": {func(_ *testing.T, o *options) { o.version = "7.0.0" }, "make bundle VERSION=7.0.0"},
		"no bundle":       {func(t *testing.T, o *options) { o.bundle = t.TempDir() }, "`make bundle` writes it"},
		"no opm":          {func(*testing.T, *options) {}, "`make bin/opm` builds it"},
		"opm fails":       {func(_ *testing.T, o *options) { o.opm = "/bin/false" }, "running opm render: exit status 1"},
		"no channels": {func(t *testing.T, o *options) {
			without(t, o, "metadata/annotations.yaml", channelsKey, "other")
		}, "has no " + channelsKey},
		"no YAML": {func(t *testing.T, o *options) {
			without(t, o, "metadata/annotations.yaml", "annotations:", "annotations: [")
		}, "decoding"},
		"no icon": {func(t *testing.T, o *options) {
			without(t, o, "manifests/podconfigmap-controller.clusterserviceversion.yaml", "  icon:\n", "  noIcon:\n")
		}, "has 0 icons"},
	} {
		t.Run(name, func(t *testing.T) {
			o := ours(t)
			tc.change(t, o)
			if err := o.run(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("run() = %v, want %q", err, tc.want)
			}
			if _, err := os.Stat(o.out); err == nil {
				t.Error("there is a catalog")
			}
		})
	}
}

// without copies the bundle, with a change of one file.
func without(t *testing.T, o *options, file, old, replacement string) {
	t.Helper()
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(o.bundle)); err != nil {
		t.Fatal(err)
	}
	o.bundle = folder
	path := filepath.Join(folder, file)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), old, replacement, 1)
	if changed == string(text) {
		t.Fatalf("%s has no %q", file, old)
	}
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFilesThatAreGone(t *testing.T) {
	if err := read("../../bundle/none.yaml", &operatorsv1alpha1.ClusterServiceVersion{}); err == nil || !strings.Contains(err.Error(), "reading the bundle") {
		t.Errorf("a file that is not there: %v", err)
	}
}
