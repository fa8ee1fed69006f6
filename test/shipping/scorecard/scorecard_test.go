// SPDX-License-Identifier: Apache-2.0

// Package scorecard runs the real `operator-sdk scorecard` on the bundle, on a
// control plane with a node of processes that runs the tests' pods and the
// operator that config/default installs.
package scorecard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/operator-framework/api/pkg/apis/scorecard/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/helm"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/stage"
)

const (
	system    = "podconfigmap-controller-system"
	manager   = "podconfigmap-controller-controller-manager"
	namespace = "scorecard"
	account   = "scorecard"
	standard  = "quay.io/operator-framework/scorecard-test:v1.42.2"
)

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func TestScorecard(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this needs a control plane")
	}
	root := stage.Got(harness.Root())(t)
	bundle := filepath.Join(root, "bundle")
	sdk := stage.Got(processnode.Tool("operator-sdk"))(t)
	ours := scorecardImage(t, bundle)
	c := start(t, ours)
	install(t, c)

	t.Run("the bundle passes", func(t *testing.T) {
		list, err := run(t, c, sdk, bundle, ours)
		if err != nil {
			t.Errorf("operator-sdk scorecard: %v\nlogs of its pods: %v", err, c.Node.Logs(namespace))
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
	stage.Must(t, yaml.Unmarshal(stage.Got(os.ReadFile(filepath.Join(bundle, "tests/scorecard/config.yaml")))(t), config))
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
func start(t *testing.T, ours string) *stage.Cluster {
	t.Helper()
	programs := t.TempDir()
	image, version, ok := strings.Cut(ours, "-scorecard:v")
	if !ok {
		t.Fatalf("the image of our own tests is %s", ours)
	}
	operator := stage.Got(processnode.BuildProgram(programs, ".", version))(t)
	custom := stage.Got(processnode.BuildProgram(programs, "./test/scorecard", version))(t)
	official := stage.Got(processnode.Tool("scorecard-test"))(t)
	c := stage.Start(t, processnode.Options{Images: map[string]processnode.Image{
		image + ":v" + version: {Program: operator, Path: "/podconfigmap-controller", Env: processnode.Addresses},
		ours:                   {Program: custom, Path: "/usr/local/bin/scorecard"},
		standard:               {Program: official, Path: "/usr/local/bin/scorecard-test"},
	}})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of the operator: %v", c.Node.Logs(system))
		}
	})
	return c
}

// install applies config/default, and waits until the operator runs.
func install(t *testing.T, c *stage.Cluster) {
	t.Helper()
	for _, object := range stage.Got(helm.Kustomize(t.Context(), "config/default"))(t) {
		stage.Must(t, c.Client.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("kubectl")))
	}
	rules := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"create", "patch", "delete"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get"}},
		{APIGroups: []string{"podconfig.example.com"}, Resources: []string{"podconfigmapconfigs"}, Verbs: []string{"create", "delete"}},
	}
	meta := metav1.ObjectMeta{Namespace: namespace, Name: account}
	stage.Must(t, c.NewNamespace(t.Context(), namespace))
	stage.Must(t, c.Client.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: meta}))
	stage.Must(t, c.Client.Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}))
	stage.Must(t, c.Client.Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account}}}))
	stage.Await(t, "the operator is ready", func() error {
		deployment := &appsv1.Deployment{}
		if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: manager}, deployment); err != nil {
			return err
		}
		if deployment.Status.ReadyReplicas != 2 {
			return fmt.Errorf("the status is %+v", deployment.Status)
		}
		return nil
	})
}

// run is the command that users run, with images of our own for all.
func run(t *testing.T, c *stage.Cluster, sdk, bundle, image string, more ...string) (*v1alpha3.TestList, error) {
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
	stage.Must(t, os.CopyFS(folder, os.DirFS(bundle)))
	file := filepath.Join(folder, "manifests/podconfigmap-controller.clusterserviceversion.yaml")
	csv := map[string]any{}
	stage.Must(t, yaml.Unmarshal(stage.Got(os.ReadFile(file))(t), &csv))
	spec := csv["spec"].(map[string]any)
	delete(spec, "relatedImages")
	for _, owned := range spec["customresourcedefinitions"].(map[string]any)["owned"].([]any) {
		delete(owned.(map[string]any), "resources")
	}
	stage.Must(t, os.WriteFile(file, stage.Got(yaml.Marshal(csv))(t), 0o644))
	return folder
}
