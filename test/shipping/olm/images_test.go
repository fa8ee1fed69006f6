// SPDX-License-Identifier: Apache-2.0

package olm

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/packaged"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/registry"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/stage"
)

// shipped are the images of both versions' bundles and catalogs, as a node has them
// that pulls them from a registry by a mirror, and those of OLM.
func shipped(t *testing.T) map[string]processnode.Image {
	t.Helper()
	root, work := stage.Got(harness.Root())(t), t.TempDir()
	images := map[string]processnode.Image{
		packaged.OPMImage:  {Program: stage.Got(processnode.Tool("opm"))(t), Path: "/bin/opm"},
		packaged.UtilImage: {Program: busybox(t), Path: "/bin/cp", Root: utilities(t)},
	}
	mirror := stage.Got(registry.Start(t.Context(), registry.Options{Folder: t.TempDir()}))(t)
	t.Cleanup(func() {
		if err := mirror.Stop(); err != nil {
			t.Error(err)
		}
	})
	for version, bundle := range map[string]string{older: filepath.Join(root, "bundle"), packaged.Newer: stage.Got(packaged.MakeBundle(t.Context(), work))(t)} {
		layouts := stage.Got(packaged.Make(t.Context(), work, version, bundle, nil, "bundle-image", "catalog-image"))(t)
		for _, reference := range []string{packaged.BundleImage(version), packaged.CatalogImage(version)} {
			name := packaged.InRegistry(reference)
			unpacked := t.TempDir()
			stage.Must(t, mirror.Push(t.Context(), filepath.Join(layouts, strings.TrimSuffix(filepath.Base(name), ":v"+version)), name))
			stage.Must(t, mirror.Unpack(t.Context(), name, unpacked))
			images[reference] = processnode.Image{Root: unpacked}
		}
	}
	return images
}

// utilities are those files of OLM's image that bring content out of other images.
func utilities(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	stage.Must(t, os.Mkdir(filepath.Join(folder, "bin"), 0o755))
	for _, name := range []string{"cpb", "copy-content"} {
		program := stage.Got(os.ReadFile(stage.Got(processnode.Tool(name))(t)))(t)
		stage.Must(t, os.WriteFile(filepath.Join(folder, "bin", name), program, 0o755))
	}
	return folder
}

// busybox is the program behind cp in OLM's image, which needs no libraries.
func busybox(t *testing.T) string {
	t.Helper()
	path := stage.Got(exec.LookPath("busybox"))(t)
	program := stage.Got(elf.Open(path))(t)
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			t.Fatalf("%s needs libraries: apt-get install busybox-static", path)
		}
	}
	return path
}
