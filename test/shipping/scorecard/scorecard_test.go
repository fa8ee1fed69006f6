// SPDX-License-Identifier: Apache-2.0

// Package scorecard runs the real `operator-sdk scorecard` on the bundle, on a
// control plane with a node of processes that runs the tests' pods and the
// operator that config/default installs.
package scorecard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/operator-framework/api/pkg/apis/scorecard/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
)

const (
	system    = "podconfigmap-controller-system"
	manager   = "podconfigmap-controller-controller-manager"
	namespace = "scorecard"
	account   = "scorecard"
	// patience is for what takes seconds on a quiet machine.
	patience = 4 * time.Minute
	standard = "quay.io/operator-framework/scorecard-test:v1.42.2"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func got[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return value
	}
}

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func TestScorecard(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this needs a control plane")
	}
	root := got(harness.Root())(t)
	bundle := filepath.Join(root, "bundle")
	sdk := got(processnode.Tool("operator-sdk"))(t)
	ours := scorecardImage(t, bundle)
	c, node := start(t, ours)
	install(t, root, c)

	t.Run("the bundle passes", func(t *testing.T) {
		list, err := run(t, c, sdk, bundle, ours)
		if err != nil {
			t.Errorf("operator-sdk scorecard: %v\nlogs of its pods: %v", err, node.Logs(namespace))
		}
		var names []string
		for _, test := range list.Items {
			for _, result := range test.Status.Results {
				names = append(names, result.Name)
				fmt.Printf("%-26s %-5s %s\n", result.Name, result.State, strings.Join(append(result.Errors, result.Suggestions...), "; "))
				if result.State != v1alpha3.PassState {
					t.Errorf("%s: %s %q", result.Name, result.State, result.Errors)
				}
			}
		}
		slices.Sort(names)
		want := []string{
			"basic-check-spec", "descriptors", "env-wiring", "olm-bundle-validation", "olm-crds-have-resources", "olm-crds-have-validation",
			"olm-spec-descriptors", "olm-status-descriptors", "related-images", "rights", "sample", "unprivileged",
		}
		if !slices.Equal(names, want) {
			t.Errorf("tests that ran: %q, want %q", names, want)
		}
	})
	t.Run("a worse one does not", func(t *testing.T) {
		worse := worsen(t, bundle)
		list, err := run(t, c, sdk, worse, ours, "--selector=test in (olm-crds-have-resources-test, related-images-test)")
		if err == nil {
			t.Error("operator-sdk scorecard succeeds")
		}
		failed := 0
		for _, test := range list.Items {
			for _, result := range test.Status.Results {
				if result.State == v1alpha3.FailState && len(result.Errors) > 0 {
					failed++
				}
			}
		}
		if failed != 2 {
			t.Errorf("%d tests fail, want 2: %+v", failed, list.Items)
		}
	})
}

// scorecardImage is how the bundle names the image of our own tests.
func scorecardImage(t *testing.T, bundle string) string {
	t.Helper()
	config := &v1alpha3.Configuration{}
	must(t, yaml.Unmarshal(got(os.ReadFile(filepath.Join(bundle, "tests/scorecard/config.yaml")))(t), config))
	for _, stage := range config.Stages {
		for _, test := range stage.Tests {
			if test.Image != standard {
				return test.Image
			}
		}
	}
	t.Fatal("the bundle has no tests of our own")
	return ""
}

// start makes a cluster with a node that has the images.
func start(t *testing.T, ours string) (*harness.Cluster, *processnode.Node) {
	t.Helper()
	programs := t.TempDir()
	operator := got(processnode.BuildProgram(programs, ".", "0.1.0"))(t)
	custom := got(processnode.BuildProgram(programs, "./test/scorecard", "0.1.0"))(t)
	official := got(processnode.Tool("scorecard-test"))(t)
	c := got(harness.StartBareCluster(t.Context(), controlplane.Options{ControllerManager: true, Progress: os.Stderr}))(t)
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	image, _, _ := strings.Cut(ours, "-scorecard:")
	node := got(processnode.Start(t.Context(), c.Client, processnode.Options{Name: "node-1", Config: c.Config(), Images: map[string]processnode.Image{
		image + ":v0.1.0": {Program: operator, Path: "/podconfigmap-controller", Env: processnode.Addresses},
		ours:              {Program: custom, Path: "/usr/local/bin/scorecard"},
		standard:          {Program: official, Path: "/usr/local/bin/scorecard-test"},
	}}))(t)
	t.Cleanup(func() {
		if err := node.Stop(); err != nil {
			t.Errorf("the node: %v", err)
		}
		if t.Failed() {
			t.Logf("logs of the operator: %v", node.Logs(system))
		}
	})
	return c, node
}

// install applies config/default, and waits until the operator runs.
func install(t *testing.T, root string, c *harness.Cluster) {
	t.Helper()
	kustomize := exec.Command("go", "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", "config/default")
	kustomize.Dir = root
	for documents := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(got(kustomize.Output())(t)), 4096); ; {
		object := &unstructured.Unstructured{}
		err := documents.Decode(object)
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		must(t, c.Client.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("kubectl")))
	}
	rules := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"create", "patch", "delete"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get"}},
		{APIGroups: []string{"podconfig.example.com"}, Resources: []string{"podconfigmapconfigs"}, Verbs: []string{"create", "delete"}},
	}
	meta := metav1.ObjectMeta{Namespace: namespace, Name: account}
	must(t, c.NewNamespace(t.Context(), namespace))
	must(t, c.Client.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: meta}))
	must(t, c.Client.Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}))
	must(t, c.Client.Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account}}}))
	deployment := &appsv1.Deployment{}
	err := wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := c.Client.Get(ctx, client.ObjectKey{Namespace: system, Name: manager}, deployment)
		return err == nil && deployment.Status.ReadyReplicas == 2, err
	})
	if err != nil {
		t.Fatalf("waiting until the operator is ready: %v; status %+v", err, deployment.Status)
	}
}

// run is the command that users run, with images of our own for all.
func run(t *testing.T, c *harness.Cluster, sdk, bundle, image string, more ...string) (*v1alpha3.TestList, error) {
	t.Helper()
	args := append([]string{"scorecard", bundle, "--kubeconfig=" + c.Kubeconfig(), "--namespace=" + namespace, "--service-account=" + account,
		"--untar-image=" + image, "--pod-security=restricted", "--wait-time=10m", "--output=json"}, more...)
	command := exec.Command(sdk, args...)
	command.Dir = t.TempDir()
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	err := command.Run()
	list := &v1alpha3.TestList{}
	if problem := json.Unmarshal(out.Bytes(), list); problem != nil {
		t.Fatalf("operator-sdk scorecard: %v (%v)\n%s\n%s", err, problem, out.String(), said.String())
	}
	return list, err
}

// worsen copies the bundle, without what two tests look at.
func worsen(t *testing.T, bundle string) string {
	t.Helper()
	folder := t.TempDir()
	must(t, os.CopyFS(folder, os.DirFS(bundle)))
	file := filepath.Join(folder, "manifests/podconfigmap-controller.clusterserviceversion.yaml")
	csv := map[string]any{}
	must(t, yaml.Unmarshal(got(os.ReadFile(file))(t), &csv))
	spec := csv["spec"].(map[string]any)
	delete(spec, "relatedImages")
	for _, owned := range spec["customresourcedefinitions"].(map[string]any)["owned"].([]any) {
		delete(owned.(map[string]any), "resources")
	}
	must(t, os.WriteFile(file, got(yaml.Marshal(csv))(t), 0o644))
	return folder
}
