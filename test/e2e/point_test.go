// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	release = "podconfigmap-controller"
	system  = "podconfigmap-controller-system"
	manager = "podconfigmap-controller-controller-manager"
	agents  = "podconfigmap-controller-agent"
	// patience is many times what anything here takes on a quiet machine.
	patience = 5 * time.Minute
)

// point is one of the things that are shown, as a test.
type point struct {
	*testing.T
	*world

	once  sync.Once
	until context.Context
}

// Context ends with the test, or when all are interrupted.
func (p *point) Context() context.Context {
	p.once.Do(func() { p.until = harness.Until(p.T.Context(), p.ctx) })
	return p.until
}

// step is a part of a point: it is told, with the time that it took. A step that
// fails ends the point.
func (p *point) step(name string, do func(*point)) {
	p.Helper()
	if p.ctx.Err() != nil {
		p.Fatalf("%s: interrupted before it", name)
	}
	began := time.Now()
	if !p.Run(name, func(t *testing.T) { do(&point{T: t, world: p.world}) }) {
		say("%s FAILED after %s", name, time.Since(began).Round(100*time.Millisecond))
		p.FailNow()
	}
	say("%s (%s)", name, time.Since(began).Round(100*time.Millisecond))
}

func (p *point) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// await polls until yes returns no error. Where that takes long it tells why.
func (p *point) await(what string, yes func() error) {
	p.Helper()
	const long = time.Minute
	limit := max(patience, p.patience)
	end, tell := time.Now().Add(limit), time.Now().Add(long)
	for {
		err := yes()
		if err == nil {
			return
		}
		if p.Context().Err() != nil {
			p.Fatalf("waiting until %s: interrupted: %v", what, err)
		}
		if time.Now().After(end) {
			p.Fatalf("waiting until %s: not within %s: %v", what, limit, err)
		}
		if time.Now().After(tell) {
			say("  still waiting until %s: %v", what, err)
			tell = time.Now().Add(long)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// deploy installs the release, or upgrades it to just these values, and waits until
// the managers are ready.
func (p *point) deploy(values ...string) {
	p.Helper()
	args := []string{"upgrade", "--install", release, p.chart, "--namespace", system, "--create-namespace",
		"--reset-values", "--wait", "--timeout", patience.String()}
	_, err := p.helm.Run(p.Context(), append(args, values...)...)
	p.must(err)
}

func (p *point) uninstall() {
	p.Helper()
	_, err := p.helm.Run(p.Context(), "uninstall", release, "--namespace", system, "--wait", "--timeout", patience.String())
	p.must(err)
}

func (p *point) create(objects ...client.Object) {
	p.Helper()
	for _, o := range objects {
		if err := p.client.Create(p.Context(), o); err != nil {
			p.Fatalf("creating %T %s: %v", o, o.GetName(), err)
		}
	}
}

// namespace makes a namespace in which pods can be created, and deletes it at the end.
func (p *point) namespace(name string) {
	p.Helper()
	p.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	p.await("namespace "+name+" has a ServiceAccount", func() error {
		return p.get(name, "default", &corev1.ServiceAccount{})
	})
}

// noNamespace deletes a namespace and waits until it is gone.
func (p *point) noNamespace(name string) {
	p.Helper()
	p.must(p.client.Delete(p.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	p.await("namespace "+name+" is gone", func() error { return p.gone("", name, &corev1.Namespace{}) })
}

func (p *point) get(namespace, name string, o client.Object) error {
	return p.client.Get(p.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o)
}

// gone is nil when an object is not there.
func (p *point) gone(namespace, name string, o client.Object) error {
	err := p.get(namespace, name, o)
	if err == nil {
		return fmt.Errorf("%T %s is still there", o, name)
	}
	return client.IgnoreNotFound(err)
}

// patch changes an object by a merge patch.
func (p *point) patch(o client.Object, text string) {
	p.Helper()
	if err := p.client.Patch(p.Context(), o, client.RawPatch("application/merge-patch+json", []byte(text))); err != nil {
		p.Fatalf("changing %T %s: %v", o, o.GetName(), err)
	}
}

func (p *point) pods(namespace string, labels client.MatchingLabels) []corev1.Pod {
	p.Helper()
	list := &corev1.PodList{}
	p.must(p.client.List(p.Context(), list, client.InNamespace(namespace), labels))
	return list.Items
}

// container runs the workload's program with these arguments.
func container(name string, args ...string) corev1.Container {
	return corev1.Container{Name: name, Image: cluster.WorkloadImage, Args: args}
}

// podSpec is of pods that end at once when asked to.
func podSpec(containers ...corev1.Container) corev1.PodSpec {
	second := int64(1)
	return corev1.PodSpec{Containers: containers, TerminationGracePeriodSeconds: &second}
}

// ready is nil when a pod is.
func ready(pod *corev1.Pod) error {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil {
			return nil
		}
	}
	return fmt.Errorf("pod %s is not ready: %s, %+v", pod.Name, pod.Status.Phase, pod.Status.ContainerStatuses)
}

// configReady is nil when a config has done with its newest generation.
func configReady(c *v1alpha1.PodConfigMapConfig) error {
	if c.Status.ObservedGeneration != c.Generation {
		return fmt.Errorf("config %s: generation %d observed of %d", c.Name, c.Status.ObservedGeneration, c.Generation)
	}
	if condition := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady); condition == nil || condition.Status != metav1.ConditionTrue {
		return fmt.Errorf("config %s is not ready: %+v", c.Name, condition)
	}
	return nil
}

func (p *point) awaitConfig(namespace, name string) {
	p.Helper()
	p.await("config "+name+" is ready", func() error {
		config := &v1alpha1.PodConfigMapConfig{}
		return errors.Join(p.get(namespace, name, config), configReady(config))
	})
}

// rolledOut is nil when a Deployment's pods are all of its newest template.
func (p *point) rolledOut(namespace, name string) error {
	d := &appsv1.Deployment{}
	if err := p.get(namespace, name, d); err != nil {
		return err
	}
	s := d.Status
	if s.ObservedGeneration != d.Generation || s.UpdatedReplicas != *d.Spec.Replicas || s.Replicas != s.UpdatedReplicas || s.AvailableReplicas != s.Replicas {
		return fmt.Errorf("Deployment %s: %+v", name, s)
	}
	return nil
}

// lostLease is among the last words of a manager that could not renew its Lease in time.
// It is meant to end then, and a machine that is busy enough brings it there.
const lostLease = "leader election lost"

// quietLogs fails unless, for a while at rest, neither managers nor agents log an
// error, and none of them was ever restarted but after it lost its Lease.
func (p *point) quietLogs() {
	p.Helper()
	p.noErrorsAtRest()
	for _, pod := range p.pods(system, nil) {
		p.restarts(&pod)
	}
}

// noErrorsAtRest waits until there is rest.
func (p *point) noErrorsAtRest() {
	p.Helper()
	p.await("there is rest", p.resting)
	const rest = 10 * time.Second
	from := metav1.Now()
	time.Sleep(rest)
	pods := p.pods(system, nil)
	if len(pods) == 0 {
		p.Fatal("the operator has no pods")
	}
	for _, pod := range pods {
		text, err := p.Clients().CoreV1().Pods(system).GetLogs(pod.Name, &corev1.PodLogOptions{SinceTime: &from}).DoRaw(p.Context())
		if apierrors.IsNotFound(err) {
			continue // it went meanwhile
		}
		p.must(err)
		for _, line := range harness.ErrorLines(string(text)) {
			p.Errorf("pod %s logs at rest: %s", pod.Name, line)
		}
	}
}

// resting is nil when all nodes, the operator's pods and all configs are ready, and none
// of these pods is on its way out.
func (p *point) resting() error {
	list, configs := &corev1.NodeList{}, &v1alpha1.PodConfigMapConfigList{}
	err := errors.Join(p.client.List(p.Context(), list), p.client.List(p.Context(), configs), p.rolledOut(system, manager))
	for i := range list.Items {
		err = errors.Join(err, p.readyNode(list.Items[i].Name))
	}
	for _, pod := range p.pods(system, nil) {
		err = errors.Join(err, ready(&pod))
	}
	for i := range configs.Items {
		err = errors.Join(err, configReady(&configs.Items[i]))
	}
	return err
}

// restarts tells of a pod that was restarted, and fails where the reason is not known.
func (p *point) restarts(pod *corev1.Pod) {
	p.Helper()
	for _, s := range pod.Status.ContainerStatuses {
		if s.RestartCount == 0 {
			continue
		}
		lines := int64(20) // what ends meanwhile may say more
		text, err := p.Clients().CoreV1().Pods(system).GetLogs(pod.Name, &corev1.PodLogOptions{Previous: true, TailLines: &lines}).DoRaw(p.Context())
		p.must(err)
		if !strings.Contains(string(text), lostLease) {
			p.Errorf("pod %s was restarted %d times, and said last: %s", pod.Name, s.RestartCount, text)
			continue
		}
		say("  pod %s was restarted %d times: %s", pod.Name, s.RestartCount, lostLease)
	}
}

// dump adds the cluster's objects to the logs of a failure.
func (w *world) dump(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir := filepath.Join(w.logs, "objects")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for name, list := range map[string]client.ObjectList{
		"nodes": &corev1.NodeList{}, "pods": &corev1.PodList{}, "events": &corev1.EventList{}, "configmaps": &corev1.ConfigMapList{},
		"deployments": &appsv1.DeploymentList{}, "daemonsets": &appsv1.DaemonSetList{},
		"podconfigmapconfigs": &v1alpha1.PodConfigMapConfigList{}, "ebpfnodes": &v1alpha1.EBPFNodeList{},
	} {
		err := w.client.List(ctx, list)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			continue // the chart is not installed
		}
		text, encoding := yaml.Marshal(list)
		errs = append(errs, err, encoding, os.WriteFile(filepath.Join(dir, name+".yaml"), text, 0o644))
	}
	return errors.Join(errs...)
}

// keepPodLogs adds the logs of pods on virtual nodes, whose files are in the nodes' memory.
// Those of other nodes' pods are there.
func (w *world) keepPodLogs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pods := &corev1.PodList{}
	if err := w.client.List(ctx, pods); err != nil {
		return err
	}
	var errs []error
	for i := range pods.Items {
		pod := &pods.Items[i]
		node := w.Node(pod.Spec.NodeName)
		if node == nil || slices.Contains(w.Nodes(), node) {
			continue
		}
		dir := filepath.Join(w.logs, node.Name, "pods", fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID))
		errs = append(errs, os.MkdirAll(dir, 0o755))
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			text, err := w.Clients().CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: c.Name}).DoRaw(ctx)
			if err != nil {
				text = fmt.Appendf(text, "\nreading this log: %v\n", err) // such as of one that never ran
			}
			errs = append(errs, os.WriteFile(filepath.Join(dir, c.Name+".log"), text, 0o644))
		}
	}
	return errors.Join(errs...)
}
