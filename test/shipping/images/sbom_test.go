// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bill is what the tests read of CycloneDX's JSON.
type bill struct {
	BOMFormat, SpecVersion, SerialNumber string
	Metadata                             struct {
		Timestamp string
		Component component
	}
	Components []component
}

type component struct {
	Name, Version, PURL string
	Hashes              []struct{ Content string }
	Evidence            struct {
		Licenses []struct{ License struct{ ID string } }
	}
}

// The bill of each platform names just the modules that its program was linked
// from, each with a hash and a license.
func TestSBOMs(t *testing.T) {
	all, serials := mustBuild(t), map[string]bool{}
	for _, architecture := range []string{"amd64", "arm64"} {
		name := filepath.Join("build", "sbom", "operator-v"+version+"-linux-"+architecture+".cdx.json")
		text, err := os.ReadFile(filepath.Join(all[0].root, name))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(filepath.Join(all[1].root, name)); err != nil || !bytes.Equal(text, again) {
			t.Errorf("%s differs between two builds (%v)", name, err)
		}
		var b bill
		decode(t, text, &b)
		serials[b.SerialNumber] = true
		if b.BOMFormat != "CycloneDX" || b.SpecVersion != "1.6" || b.Metadata.Timestamp != created || b.Metadata.Component.Version != "v"+version {
			t.Errorf("%s is %s %s of %s for version %s", name, b.BOMFormat, b.SpecVersion, b.Metadata.Timestamp, b.Metadata.Component.Version)
		}
		info, err := buildinfo.ReadFile(filepath.Join(all[0].root, "build", "images", "bin", "linux", architecture, "podconfigmap-controller"))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"std": info.GoVersion}
		for _, module := range info.Deps {
			want[module.Path] = module.Version
		}
		for _, c := range b.Components {
			if want[c.Name] != c.Version {
				t.Errorf("%s tells of %s %s, and the program has %q", name, c.Name, c.Version, want[c.Name])
			}
			delete(want, c.Name)
			if c.Name == "std" {
				continue
			}
			if len(c.Hashes) == 0 || len(c.Evidence.Licenses) == 0 || !strings.Contains(c.PURL, "goarch="+architecture+"&") {
				t.Errorf("%s: incomplete: %+v", name, c)
			}
		}
		if len(want) > 0 {
			t.Errorf("%s does not tell of %v", name, want)
		}
	}
	if len(serials) != 2 {
		t.Errorf("serial numbers %v, want one for each platform", serials)
	}
}
