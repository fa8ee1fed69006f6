// SPDX-License-Identifier: Apache-2.0

// Package packaged makes what OLM installs the operator from, for tests of it: the
// images of the tree's version, and those of a newer one.
package packaged

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	// Image is the operator's, without its version.
	Image = "ghcr.io/podconfigmap/podconfigmap-controller"
	// Newer is a version after the tree's.
	Newer = "9.0.0"
	// LaterField is one that the CRD of the newer version has besides, in the spec.
	LaterField = "addedLater"

	// OPMImage is what OLM serves catalogs and unpacks bundles by.
	OPMImage = "quay.io/operator-framework/opm:latest"
	// UtilImage is OLM's own, which it also takes utilities from.
	UtilImage = "quay.io/operator-framework/olm:latest"
)

// OperatorImage is the image of manager and agents of a version.
func OperatorImage(version string) string { return Image + ":v" + version }

// BundleImage is the image of a version's bundle.
func BundleImage(version string) string { return Image + "-bundle:v" + version }

// CatalogImage is the image of a version's catalog.
func CatalogImage(version string) string { return Image + "-catalog:v" + version }

// InRegistry is the name that an image has in a registry that mirrors its own.
func InRegistry(image string) string {
	_, name, _ := strings.Cut(image, "/")
	return name
}

// Make makes images of a version, by targets that a release also runs, such as
// "bundle-image", and returns the folder of their layouts, which are named after the
// repositories. The bundle is that of the tree, or one of MakeBundle's. All goes
// below work.
func Make(ctx context.Context, work, version, bundle string, variables []string, targets ...string) (string, error) {
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	images := filepath.Join(work, "images-"+version)
	args := append([]string{"--no-print-directory", "VERSION=" + version, "IMAGE_REPOSITORY=" + Image, "bundle_folder=" + bundle,
		"catalog_folder=" + filepath.Join(work, "catalog-"+version), "images=" + images}, variables...)
	if _, err := run(ctx, root, nil, "make", append(args, targets...)...); err != nil {
		return "", fmt.Errorf("making images of version %s: %w", version, err)
	}
	return images, nil
}

// MakeBundle makes a bundle of the newer version as a release is made, and returns
// its folder, below work. Its CRD has a field more.
func MakeBundle(ctx context.Context, work string) (string, error) {
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	stream, err := run(ctx, root, nil, "go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", "config/manifests")
	if err != nil {
		return "", err
	}
	out := filepath.Join(work, "bundle-"+Newer)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	_, err = run(ctx, root, stream, "go", "run", "./hack/bundle", "-version", Newer, "-image", OperatorImage(Newer),
		"-scorecard-image", Image+"-scorecard:v"+Newer, "-out", out)
	if err != nil {
		return "", fmt.Errorf("making the newer bundle: %w", err)
	}
	bundle := filepath.Join(out, "bundle")
	return bundle, addField(filepath.Join(bundle, "manifests", "podconfig.example.com_podconfigmapconfigs.yaml"))
}

func addField(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal(text, crd); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties[LaterField] = apiextensionsv1.JSONSchemaProps{Type: "string"}
	if text, err = yaml.Marshal(crd); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

// run runs a command in the repository, and returns its standard output. When ctx
// ends, or this process does, so do all that it started.
func run(ctx context.Context, root string, in []byte, name string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir, command.Stdin = root, bytes.NewReader(in)
	command.Env = append(os.Environ(), "MAKEFLAGS=")
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	// StartChild gives it a group of its own.
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	err := controlplane.StartChild(command)
	if err == nil {
		err = command.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", name, errors.Join(err, ctx.Err()), out.String(), said.String())
	}
	return out.Bytes(), nil
}
