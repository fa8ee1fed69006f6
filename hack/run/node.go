// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	// manifests is what make deploy installs, in one file.
	manifests = "dist/install.yaml"
	// operatorImage is what `make cluster-image` builds.
	operatorImage = "build/cluster/images/podconfigmap-controller.tar"
	managerName   = "podconfigmap-controller-controller-manager"
)

// realNode is a cluster with one node, as long as the session lives.
type realNode struct {
	*cluster.Cluster
	node   *cluster.Node
	traces cluster.Traces
}

// noNode says why there is no real node in this session; empty: there is one.
func (s *session) noNode() (string, error) {
	if s.node == nodeNever {
		return "NODE=false", nil
	}
	_, noBusybox := cluster.Busybox() // for the samples' image
	lacks := errors.Join(cluster.Lacks(), noBusybox)
	if lacks == nil {
		return "", nil
	}
	reason := strings.ReplaceAll(lacks.Error(), "\n", "; ")
	if s.node == nodeAlways {
		return "", fmt.Errorf("NODE=true wants a real node here: %s", reason)
	}
	return reason, nil
}

// onNode shows the operator as users get it, in a cluster with one real node.
func (s *session) onNode(ctx context.Context) error {
	sample, err := readSample(s.samples)
	if err != nil {
		return err
	}
	var watched *scene
	if s.settings.EBPFEnabled {
		if watched, err = s.readScene(); err != nil {
			return err
		}
	}
	for _, do := range []func(context.Context) error{s.startNode, s.installOperator} {
		if err := do(ctx); err != nil {
			return err
		}
	}
	if err := s.apply(ctx, sample); err != nil {
		return err
	}
	if err := s.tour(ctx, sample, s.isRunning); err != nil {
		return err
	}
	if watched != nil {
		if err := s.showOnNode(ctx, watched); err != nil {
			return err
		}
	}
	s.explore(sample)
	return nil
}

// startNode starts the cluster with the images that the session needs.
func (s *session) startNode(ctx context.Context) error {
	s.step("A Kubernetes cluster with one real node, only for this (KUBECONFIG is not set)")
	unbuilt, err := cluster.Unbuilt()
	if err != nil {
		return err
	}
	if len(unbuilt) > 0 {
		s.say("The first time its programs are built from source: %s.", strings.Join(unbuilt, ", "))
		s.say("All of them take 10 to 20 minutes on two cores. They are kept, and start in seconds from then on.")
		s.say("Lighter, without node and containers: make run NODE=false")
	}
	operator, err := s.buildOperator(ctx)
	if err != nil {
		return err
	}
	images, err := os.MkdirTemp("", "run-images-")
	if err != nil {
		return err
	}
	s.later("removing the images that were loaded", func(context.Context) error { return os.RemoveAll(images) })
	busybox, err := buildBusybox(ctx, images)
	if err != nil {
		return err
	}
	logs := filepath.Join(filepath.Dir(s.log), "cluster")
	if err := os.RemoveAll(logs); err != nil {
		return err
	}
	c, err := cluster.Start(ctx, cluster.Options{Nodes: 1, Images: []string{operator, busybox}, Logs: logs, Progress: s.lines("")})
	if err != nil {
		return err
	}
	s.cluster = &realNode{Cluster: c, node: c.Nodes()[0]}
	s.later("stopping the cluster", s.stopNode)
	s.nodeName, s.kubeconfig = s.cluster.node.Name, c.Kubeconfig()
	s.say("logs     %s (a folder for each machine)", logs)
	if err := s.cluster.traces.Process(s.cluster.node.PID()); err != nil {
		return err
	}
	s.client, err = harness.NewClient(c.Config())
	return err
}

// buildOperator makes the operator's image of this tree, unless there is one to take.
func (s *session) buildOperator(ctx context.Context) (string, error) {
	if s.image != "" {
		return s.image, nil
	}
	s.say("the operator's image of this tree: make cluster-image")
	top, err := harness.Root()
	if err != nil {
		return "", err
	}
	var said bytes.Buffer
	command := exec.CommandContext(ctx, "make", "--no-print-directory", "cluster-image")
	command.Dir = top
	output := io.MultiWriter(&said, s.lines(""))
	command.Stdout, command.Stderr = output, output
	// make passes this on; a killed one would leave the compiler.
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("building the operator's image: %w", errors.Join(err, ctx.Err()))
	}
	return filepath.Join(top, operatorImage), nil
}

// stopNode stops the cluster, and looks for what is left of it.
func (s *session) stopNode(ctx context.Context) error {
	pins := s.cluster.traces.Pinned(s.cluster.node.Path("/sys/fs/bpf/podconfigmap"))
	if err := errors.Join(pins, s.cluster.Stop()); err != nil {
		return err
	}
	_, err := s.awaitAlone(ctx, "nothing is left of the cluster", func(context.Context) (bool, error) {
		left, err := cluster.Remains()
		if len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("there is %s", strings.Join(left, ", ")))
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	return s.tellWhatIsLeft(ctx, &s.cluster.traces)
}

// installOperator applies the shipped manifests, with the user's settings, and waits
// until the managers are ready.
func (s *session) installOperator(ctx context.Context) error {
	s.step("The operator (kubectl apply -f %s, with the image of this tree)", manifests)
	objects, err := readManifests()
	if err != nil {
		return err
	}
	changed := userSettings(os.Getenv)
	for _, object := range objects {
		if object.GetKind() == "Deployment" {
			if err := setEnvironment(object, changed); err != nil {
				return fmt.Errorf("changing the settings of %s: %w", object.GetName(), err)
			}
		}
		if err := s.client.Create(ctx, object); err != nil {
			return fmt.Errorf("installing %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	s.say("%d objects; namespace %s", len(objects), operatorNamespace)
	for _, v := range changed {
		s.say("setting  %s=%s", v.Name, v.Value)
	}
	return s.awaitOperator(ctx)
}

// awaitOperator waits until the CRDs are served and the managers ready.
func (s *session) awaitOperator(ctx context.Context) error {
	for _, list := range []client.ObjectList{&v1alpha1.PodConfigMapConfigList{}, &v1alpha1.EBPFNodeList{}} {
		if _, err := s.await(ctx, "the CRDs are served", func(ctx context.Context) (bool, error) {
			err := s.client.List(ctx, list)
			return err == nil, err
		}); err != nil {
			return err
		}
	}
	took, err := s.await(ctx, "the managers are ready", func(ctx context.Context) (bool, error) {
		d := &appsv1.Deployment{}
		err := s.client.Get(ctx, client.ObjectKey{Namespace: operatorNamespace, Name: managerName}, d)
		if err == nil && (d.Spec.Replicas == nil || d.Status.ReadyReplicas != *d.Spec.Replicas) {
			err = fmt.Errorf("%d are", d.Status.ReadyReplicas)
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	s.say("its pods are ready after %s", seconds(took))
	return nil
}

func readManifests() ([]*unstructured.Unstructured, error) {
	top, err := harness.Root()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(top, manifests))
	if err != nil {
		return nil, fmt.Errorf("reading the manifests: %w", err)
	}
	var all []*unstructured.Unstructured
	for documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		object := &unstructured.Unstructured{}
		if err := documents.Decode(&object.Object); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading %s: %w", manifests, err)
		}
		all = append(all, object)
	}
}

// ofThePod are variables that a pod of the Deployment knows better than the user of
// this session.
var ofThePod = []string{"POD_NAME", "POD_NAMESPACE", "NODE_NAME", "METRICS_ADDR", "HEALTH_PROBE_ADDR", "RELATED_IMAGE_AGENT", "CGROUP_ROOT", "BPFFS_ROOT"}

// userSettings are those that the user's environment has for the manager.
func userSettings(getenv func(string) string) []corev1.EnvVar {
	var all []corev1.EnvVar
	for _, v := range settings.Variables() {
		if value := getenv(v.Name); value != "" && !slices.Contains(ofThePod, v.Name) {
			all = append(all, corev1.EnvVar{Name: v.Name, Value: value})
		}
	}
	return all
}

// setEnvironment sets variables of a Deployment's first container.
func setEnvironment(object *unstructured.Unstructured, variables []corev1.EnvVar) error {
	d := &appsv1.Deployment{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, d); err != nil {
		return err
	}
	if len(d.Spec.Template.Spec.Containers) == 0 {
		return errors.New("it has no container")
	}
	c := &d.Spec.Template.Spec.Containers[0]
	for _, v := range variables {
		c.Env = slices.DeleteFunc(c.Env, func(had corev1.EnvVar) bool { return had.Name == v.Name })
		c.Env = append(c.Env, v)
	}
	var err error
	object.Object, err = runtime.DefaultUnstructuredConverter.ToUnstructured(d)
	return err
}

// podLogs are the last lines of the operator's pods, to end an error with.
func (r *realNode) podLogs(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), silence)
	defer cancel()
	pods := r.Clients().CoreV1().Pods(operatorNamespace)
	list, err := pods.List(ctx, listEverything)
	if err != nil {
		return fmt.Sprintf("the operator's pods cannot be listed: %v", err)
	}
	var text strings.Builder
	lines := int64(10)
	for i := range list.Items {
		pod := &list.Items[i]
		log, err := pods.GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: &lines}).DoRaw(ctx)
		if err != nil {
			log = []byte(err.Error())
		}
		fmt.Fprintf(&text, "the log of pod %s (%s) ends with:\n%s\n", pod.Name, pod.Status.Phase, strings.TrimSpace(string(log)))
	}
	return strings.TrimSpace(text.String())
}
