// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

const (
	crdFile     = "../../config/crd/bases/podconfig.example.com_podconfigmapconfigs.yaml"
	nodeCRDFile = "../../config/crd/bases/podconfig.example.com_ebpfnodes.yaml"
)

// A real API server that serves the generated CRDs; all are nil with -short.
var (
	serverConfig   *rest.Config
	configs, nodes dynamic.ResourceInterface // of one namespace
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if testing.Short() {
		return m.Run(), nil
	}
	ctx := context.Background()
	cp, err := controlplane.Start(ctx, controlplane.Options{Progress: os.Stderr})
	if err != nil {
		return 1, fmt.Errorf("starting the control plane: %w", err)
	}
	defer func() { err = errors.Join(err, cp.Stop()) }()
	serverConfig = cp.Config()
	if configs, err = installCRD(ctx, serverConfig, crdFile); err != nil {
		return 1, fmt.Errorf("installing %s: %w", crdFile, err)
	}
	if nodes, err = installCRD(ctx, serverConfig, nodeCRDFile); err != nil {
		return 1, fmt.Errorf("installing %s: %w", nodeCRDFile, err)
	}
	return m.Run(), nil
}

func readCRD(crdFile string) (*apiextensionsv1.CustomResourceDefinition, error) {
	text, err := os.ReadFile(crdFile)
	if err != nil {
		return nil, err
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	return crd, yaml.UnmarshalStrict(text, crd)
}

// installCRD creates the CRD and returns once the server serves its resource.
func installCRD(ctx context.Context, config *rest.Config, crdFile string) (dynamic.ResourceInterface, error) {
	crd, err := readCRD(crdFile)
	if err != nil {
		return nil, err
	}
	extensions, err := clientset.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	if _, err := extensions.ApiextensionsV1().CustomResourceDefinitions().Create(ctx, crd, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	resource := client.Resource(v1alpha1.GroupVersion.WithResource(crd.Spec.Names.Plural)).Namespace(metav1.NamespaceDefault)
	return resource, wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		_, err := resource.List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
}

// admit asks the server to admit a config, without storing it, and returns what
// it would store.
func admit(t *testing.T, name string, spec any) (*unstructured.Unstructured, error) {
	t.Helper()
	if configs == nil {
		t.Skip("needs an API server; run without -short")
	}
	object := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("PodConfigMapConfig"))
	object.SetName(name)
	return configs.Create(t.Context(), object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// parse reads a spec from YAML.
func parse(t *testing.T, text string) any {
	t.Helper()
	var spec any
	if err := yaml.Unmarshal([]byte(text), &spec); err != nil {
		t.Fatalf("the spec %q: %v", text, err)
	}
	return spec
}
