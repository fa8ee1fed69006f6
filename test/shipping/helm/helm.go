// SPDX-License-Identifier: Apache-2.0

// Package helm tests the chart with the real Helm against a real control plane.
// The pods of a release run as processes (see processnode).
package helm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// Helm runs a program of that name's, such as bin/helm.
type Helm struct {
	// Name is the program's.
	Name   string
	binary string
	// home holds its caches and settings.
	home       string
	kubeconfig string
}

// New finds a program. Its files go below home; kubeconfig may be empty where no
// cluster is needed.
func New(name, home, kubeconfig string) (*Helm, error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	h := &Helm{Name: name, binary: filepath.Join(root, "bin", name), home: home, kubeconfig: kubeconfig}
	if _, err := os.Stat(h.binary); err != nil {
		return nil, fmt.Errorf("%w; build it by: make bin/%s", err, name)
	}
	return h, nil
}

// Chart is the folder of the chart in the repository.
func Chart() (string, error) {
	root, err := harness.Root()
	return filepath.Join(root, "helm-charts", "podconfigmap-controller"), err
}

// Run runs a command. The error has what it wrote to its standard error.
func (h *Helm) Run(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, h.binary, args...)
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + h.home, "HELM_CACHE_HOME=" + h.home, "HELM_CONFIG_HOME=" + h.home, "HELM_DATA_HOME=" + h.home,
		"KUBECONFIG=" + h.kubeconfig,
	}
	var out, failed bytes.Buffer
	command.Stdout, command.Stderr = &out, &failed
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", h.Name, strings.Join(args, " "), err, failed.String())
	}
	return out.String(), nil
}

// Render is what `helm template` makes of a chart for the release some-release. Values
// are arguments such as --set.
func (h *Helm) Render(ctx context.Context, chart string, values ...string) ([]*unstructured.Unstructured, error) {
	args := append([]string{"template", "some-release", chart, "--namespace", "podconfigmap-controller-system", "--kube-version", "1.36.0"}, values...)
	text, err := h.Run(ctx, args...)
	if err != nil {
		return nil, err
	}
	return Decode(strings.NewReader(text))
}

// Decode reads the objects of a stream of YAML documents.
func Decode(text io.Reader) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	documents := utilyaml.NewYAMLOrJSONDecoder(text, 4096)
	for {
		object := &unstructured.Unstructured{}
		err := documents.Decode(object)
		switch {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, fmt.Errorf("reading a manifest: %w", err)
		case len(object.Object) > 0:
			objects = append(objects, object)
		}
	}
}

// Kustomize builds a folder of the repository.
func Kustomize(ctx context.Context, folder string) ([]*unstructured.Unstructured, error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, "go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", folder)
	command.Dir = root
	var out, failed bytes.Buffer
	command.Stdout, command.Stderr = &out, &failed
	if err := command.Run(); err != nil {
		return nil, fmt.Errorf("kustomize build %s: %w: %s", folder, err, failed.String())
	}
	return Decode(&out)
}
