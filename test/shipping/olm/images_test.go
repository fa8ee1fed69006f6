// SPDX-License-Identifier: Apache-2.0

package olm

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/registry"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/stage"
)

// What OLM runs besides the operator: its own image, for the utilities, and opm's.
const (
	opmImage  = "quay.io/operator-framework/opm:latest"
	utilImage = "quay.io/operator-framework/olm:latest"
)

func bundleImage(version string) string  { return image + "-bundle:v" + version }
func catalogImage(version string) string { return image + "-catalog:v" + version }

// shipped are the images of both versions' bundles and catalogs, as a node has them
// that pulls them from a registry by a mirror, and those of OLM.
func shipped(t *testing.T) map[string]processnode.Image {
	t.Helper()
	root := stage.Got(harness.Root())(t)
	images := map[string]processnode.Image{
		opmImage:  {Program: stage.Got(processnode.Tool("opm"))(t), Path: "/bin/opm"},
		utilImage: {Program: busybox(t), Path: "/bin/cp", Root: utilities(t)},
	}
	mirror := stage.Got(registry.Start(t.Context(), registry.Options{Folder: t.TempDir()}))(t)
	t.Cleanup(func() {
		if err := mirror.Stop(); err != nil {
			t.Error(err)
		}
	})
	for version, bundle := range map[string]string{older: filepath.Join(root, "bundle"), newer: newerBundle(t, root)} {
		layouts := makeImages(t, root, version, bundle)
		for _, reference := range []string{bundleImage(version), catalogImage(version)} {
			_, name, _ := strings.Cut(reference, "/")
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

// makeImages runs the targets that a release runs. It returns the folder of the
// images' layouts.
func makeImages(t *testing.T, root, version, bundle string) string {
	t.Helper()
	work := t.TempDir()
	command := exec.Command("make", "-C", root, "bundle-image", "catalog-image", "VERSION="+version, "IMAGE_REPOSITORY="+image,
		"bundle_folder="+bundle, "catalog_folder="+filepath.Join(work, "catalog"), "images="+work)
	command.Env = append(os.Environ(), "MAKEFLAGS=")
	if said, err := command.CombinedOutput(); err != nil {
		t.Fatalf("making the images of version %s: %v\n%s", version, err, said)
	}
	return work
}

func stderr(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(exit.Stderr)
	}
	return ""
}

// newerBundle is made as a release is, with another version, and a CRD with a field
// more.
func newerBundle(t *testing.T, root string) string {
	t.Helper()
	kustomize := exec.Command("go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", "config/manifests")
	kustomize.Dir = root
	stream, err := kustomize.Output()
	if err != nil {
		t.Fatalf("kustomize build: %v: %s", err, stderr(err))
	}
	out := t.TempDir()
	make := exec.Command("go", "run", "./hack/bundle", "-version", newer, "-image", image+":v"+newer,
		"-scorecard-image", image+"-scorecard:v"+newer, "-out", out)
	make.Dir, make.Stdin = root, strings.NewReader(string(stream))
	if said, err := make.CombinedOutput(); err != nil {
		t.Fatalf("making the newer bundle: %v\n%s", err, said)
	}
	file := filepath.Join(out, "bundle/manifests/podconfig.example.com_podconfigmapconfigs.yaml")
	crd := &apiextensionsv1.CustomResourceDefinition{}
	stage.Must(t, yaml.Unmarshal(stage.Got(os.ReadFile(file))(t), crd))
	crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties["addedLater"] = apiextensionsv1.JSONSchemaProps{Type: "string"}
	stage.Must(t, os.WriteFile(file, stage.Got(yaml.Marshal(crd))(t), 0o644))
	return filepath.Join(out, "bundle")
}
