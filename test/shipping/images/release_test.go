// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

// released are the two trees with the release that each made.
var released = sync.OnceValues(func() ([]tree, error) {
	all, err := trees()
	if err != nil {
		return nil, err
	}
	var makers errgroup.Group
	for _, t := range all {
		makers.Go(func() error { return t.make("release") })
	}
	return all, makers.Wait()
})

// release reads all files of a tree's dist/, by their names in it.
func release(t *testing.T, from tree) map[string][]byte {
	t.Helper()
	dist, files := filepath.Join(from.root, "dist"), map[string][]byte{}
	err := filepath.WalkDir(dist, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dist, path)
		if err != nil {
			return err
		}
		files[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func mustRelease(t *testing.T) []tree {
	t.Helper()
	all, err := released()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAReleaseIsWhole(t *testing.T) {
	all := mustRelease(t)
	one, another := release(t, all[0]), release(t, all[1])
	want := []string{
		"SHA256SUMS",
		"images/operator-bundle-v" + version + ".tar",
		"images/operator-catalog-v" + version + ".tar",
		"images/operator-scorecard-v" + version + ".tar",
		"images/operator-v" + version + ".tar",
		"install.yaml",
		"operator-bundle-v" + version + ".tar.gz",
		"operator-catalog-v" + version + ".yaml",
		"operator-v" + version + "-linux-amd64.cdx.json",
		"operator-v" + version + "-linux-arm64.cdx.json",
		"podconfigmap-controller-" + version + ".tgz",
	}
	var names []string
	for name, content := range one {
		names = append(names, name)
		if !bytes.Equal(content, another[name]) {
			t.Errorf("%s differs between two releases of one commit", name)
		}
	}
	if slices.Sort(names); !slices.Equal(names, want) || len(another) != len(want) {
		t.Errorf("the release holds %q, want %q", names, want)
	}
	check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = filepath.Join(all[0].root, "dist")
	out, err := check.CombinedOutput()
	if err != nil || strings.Count(string(out), ": OK\n") != len(want)-1 {
		t.Errorf("checksums: %v\n%s", err, out)
	}
}

// unpackAll returns the files of tars, also in tars, but for programs: by name
// text, with what they came from before it.
func unpackAll(t *testing.T, name string, content []byte, into map[string]string) {
	t.Helper()
	if bytes.HasPrefix(content, []byte{0x1f, 0x8b}) {
		unpacked, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if content, err = io.ReadAll(unpacked); err != nil {
			t.Fatal(err)
		}
	}
	if len(content) < 262 || string(content[257:262]) != "ustar" {
		if !bytes.HasPrefix(content, []byte("\x7fELF")) {
			into[name] = string(content)
		}
		return
	}
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		inner, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			unpackAll(t, name+": "+header.Name, inner, into)
		}
	}
}

// The tree's own version and repository are in no file of the release, and its
// own are wherever an image is named.
func TestAReleaseIsOfItsVersionOnly(t *testing.T) {
	texts := map[string]string{}
	for name, content := range release(t, mustRelease(t)[0]) {
		unpackAll(t, name, content, texts)
	}
	makefile, err := os.ReadFile("../../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^(VERSION|IMAGE_REPOSITORY) \?= (.*)$`).FindAllStringSubmatch(string(makefile), -1) {
		own[m[1]] = m[2]
	}
	foreign := regexp.MustCompile(`\b` + regexp.QuoteMeta(own["VERSION"]) + `\b|` + regexp.QuoteMeta(own["IMAGE_REPOSITORY"]))
	if len(own) != 2 || len(texts) < 30 {
		t.Fatalf("the Makefile has %v, and the release %d files", own, len(texts))
	}
	for name, text := range texts {
		// Bills name modules, which have versions of their own.
		if found := foreign.FindString(text); found != "" && !strings.HasSuffix(name, ".cdx.json") {
			t.Errorf("%s tells of %s", name, found)
		}
	}
	bundle := "operator-bundle-v" + version + ".tar.gz: bundle/"
	for name, want := range map[string]string{
		"install.yaml": "image: " + repository + ":v" + version + "\n",
		bundle + "manifests/podconfigmap-controller.clusterserviceversion.yaml":            "image: " + repository + ":v" + version + "\n",
		"operator-catalog-v" + version + ".yaml":                                           "image: " + repository + "-bundle:v" + version + "\n",
		bundle + "tests/scorecard/config.yaml":                                             "image: " + repository + "-scorecard:v" + version + "\n",
		"podconfigmap-controller-" + version + ".tgz: podconfigmap-controller/values.yaml": "repository: " + repository + "\n",
		"podconfigmap-controller-" + version + ".tgz: podconfigmap-controller/Chart.yaml":  "version: " + version + "\n",
	} {
		if !strings.Contains(texts[name], want) {
			t.Errorf("%s lacks %q", name, want)
		}
	}
}

// OLM finds the catalog in its image by a label; the file of the release is the same.
func TestTheCatalogImage(t *testing.T) {
	files, layout := release(t, mustRelease(t)[0]), t.TempDir()
	for r := tar.NewReader(bytes.NewReader(files["images/operator-catalog-v"+version+".tar"])); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(layout, header.Name)
		if header.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, content, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	_, _, images := readLayout(t, layout)
	for _, architecture := range []string{"amd64", "arm64"} {
		i := images[architecture]
		if at := i.config.Config.Labels["operators.operatorframework.io.index.configs.v1"]; at != "/configs" {
			t.Errorf("%s: the label says the catalog is at %q", architecture, at)
		}
		want := files["operator-catalog-v"+version+".yaml"]
		if got := i.files["configs/podconfigmap-controller/catalog.yaml"]; len(want) == 0 || !bytes.Equal(got, want) {
			t.Errorf("%s: the catalog in the image, %d bytes, is not the release's, %d bytes", architecture, len(got), len(want))
		}
	}
}

func TestAReleaseIsRefused(t *testing.T) {
	tree := mustRelease(t)[0]
	if _, err := tree.run("make", "release", "VERSION=v1.2"); err == nil || !strings.Contains(err.Error(), "is no version") {
		t.Errorf("with VERSION=v1.2: %v", err)
	}
	file := filepath.Join(tree.root, "uncommitted.txt")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file)
	if err := tree.make("release"); err == nil || !strings.Contains(err.Error(), "uncommitted.txt") {
		t.Errorf("with a file that is in no commit: %v", err)
	}
}
