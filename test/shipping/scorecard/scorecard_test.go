// SPDX-License-Identifier: Apache-2.0

package scorecard

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/operator-framework/api/pkg/apis/scorecard/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
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
	ours := stage.Got(Ours(bundle))(t)
	c := start(t, ours)
	install(t, c)

	t.Run("the bundle passes", func(t *testing.T) {
		list, err := run(t, c, bundle, ours)
		if err != nil {
			t.Errorf("operator-sdk scorecard: %v\nlogs of its pods: %v", err, c.Node.Logs(namespace))
		}
		fmt.Print(Table(list))
		if err := Complete(list); err != nil {
			t.Error(err)
		}
	})
	t.Run("a worse one does not", func(t *testing.T) {
		worse := worsen(t, bundle)
		list, err := run(t, c, worse, ours, "--selector=test in (olm-crds-have-resources-test, related-images-test)")
		if err == nil {
			t.Error("operator-sdk scorecard succeeds")
		}
		failed := 0
		for _, result := range results(list) {
			if result.State == v1alpha3.FailState && len(result.Errors) > 0 {
				failed++
			}
		}
		if err := Complete(list); err == nil || !strings.Contains(err.Error(), "tests that ran") {
			t.Errorf("of a part of the tests: %v", err)
		}
		if failed != 2 {
			t.Errorf("%d tests fail, want 2: %+v", failed, list.Items)
		}
	})
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
		Standard:               {Program: official, Path: "/usr/local/bin/scorecard-test"},
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
	stage.Must(t, c.NewNamespace(t.Context(), namespace))
	stage.Must(t, Admit(t.Context(), c.Client, namespace, account))
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

func run(t *testing.T, c *stage.Cluster, bundle, image string, more ...string) (*v1alpha3.TestList, error) {
	t.Helper()
	list, err := Run(t.Context(), c.Kubeconfig(), namespace, account, bundle, image, more...)
	if list == nil {
		t.Fatal(err)
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
