// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// space is a test's namespace, and the manager that watches it, if any.
type space struct {
	t    *testing.T
	name string
	*manager
}

func (s *space) key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: s.name, Name: name}
}

func (s *space) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// eventually waits until the check finds nothing wrong.
func (s *space) eventually(what string, check func() error) {
	s.t.Helper()
	s.within(patience, what, check)
}

// within is eventually with a patience of its own.
func (s *space) within(patience time.Duration, what string, check func() error) {
	s.t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if s.t.Context().Err() != nil || time.Since(began) > patience {
			s.t.Fatalf("%s: not within %v: %v\n%s", what, patience, err, s.state())
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// steadily sees that the check finds nothing wrong for a while.
func (s *space) steadily(what string, d time.Duration, check func() error) {
	s.t.Helper()
	for began := time.Now(); time.Since(began) < d; time.Sleep(50 * time.Millisecond) {
		if err := check(); err != nil {
			s.t.Fatalf("%s: no longer so after %v: %v\n%s", what, time.Since(began), err, s.state())
		}
	}
}

// state shows what the namespace holds, and the end of the manager's log.
func (s *space) state() string {
	var b strings.Builder
	fmt.Fprintf(&b, "namespace %s:\n", s.name)
	for _, pod := range s.pods() {
		fmt.Fprintf(&b, "  pod %s: uid %s, phase %s, labels %v, deletion %v\n", pod.Name, pod.UID, pod.Status.Phase, pod.Labels, pod.DeletionTimestamp)
	}
	for _, c := range s.configs() {
		fmt.Fprintf(&b, "  config %s: generation %d, status %+v\n", c.Name, c.Generation, c.Status)
	}
	for _, cm := range s.configMaps() {
		fmt.Fprintf(&b, "  ConfigMap %s: labels %v, owners %v, data %.600v\n", cm.Name, cm.Labels, cm.OwnerReferences, cm.Data)
	}
	for _, e := range s.events() {
		fmt.Fprintf(&b, "  Event %s\n", e)
	}
	if s.manager != nil {
		fmt.Fprintf(&b, "the manager's log ends with\n%s\n", s.LogTail(25))
	}
	return b.String()
}

func (s *space) list(into client.ObjectList) {
	s.t.Helper()
	if err := cluster.Client.List(s.t.Context(), into, client.InNamespace(s.name)); err != nil && s.t.Context().Err() == nil {
		s.t.Errorf("listing: %v", err)
	}
}

func (s *space) pods() []corev1.Pod {
	all := &corev1.PodList{}
	s.list(all)
	return all.Items
}

func (s *space) configs() []v1alpha1.PodConfigMapConfig {
	all := &v1alpha1.PodConfigMapConfigList{}
	s.list(all)
	return all.Items
}

// configMaps are all of the namespace but the cluster's own.
func (s *space) configMaps() []corev1.ConfigMap {
	all := &corev1.ConfigMapList{}
	s.list(all)
	return slices.DeleteFunc(all.Items, func(cm corev1.ConfigMap) bool { return cm.Name == "kube-root-ca.crt" })
}

// events are the namespace's Events, as "type reason kind/name: note".
func (s *space) events() []string {
	list := &eventsv1.EventList{}
	s.list(list)
	var all []string
	for _, e := range list.Items {
		all = append(all, fmt.Sprintf("%s %s %s/%s: %s", e.Type, e.Reason, e.Regarding.Kind, e.Regarding.Name, e.Note))
	}
	return all
}

// expectEvent waits for an Event.
func (s *space) expectEvent(want string) {
	s.t.Helper()
	s.eventually("the Event "+want, func() error {
		if all := s.events(); !slices.Contains(all, want) {
			return fmt.Errorf("there are only\n%s", strings.Join(all, "\n"))
		}
		return nil
	})
}

// pod creates a pod that runs, as far as the API tells. The functions change it
// before that.
func (s *space) pod(name string, labels map[string]string, change ...func(*corev1.Pod)) *corev1.Pod {
	s.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name, Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/app:1"}}},
	}
	for _, c := range change {
		c(pod)
	}
	if pod.Spec.NodeName != "" {
		s.node(pod.Spec.NodeName)
	}
	s.must(cluster.Client.Create(s.t.Context(), pod))
	before := pod.DeepCopy()
	pod.Status.Phase = corev1.PodRunning
	s.must(cluster.Client.Status().Patch(s.t.Context(), pod, client.MergeFrom(before)))
	return pod
}

// node creates a Node, if it is not there: the controller manager deletes the
// pods of a node that does not exist, after 40 s. Without a label for its
// operating system it is none of the agents'.
func (s *space) node(name string) {
	s.t.Helper()
	err := cluster.Client.Create(s.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if !apierrors.IsAlreadyExists(err) {
		s.must(err)
	}
}

// deletePod deletes a pod as if its kubelet had ended it.
func (s *space) deletePod(name string) {
	s.t.Helper()
	s.must(cluster.Client.Delete(s.t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name}}, client.GracePeriodSeconds(0)))
}

// config creates a config.
func (s *space) config(name string, spec v1alpha1.PodConfigMapConfigSpec) *v1alpha1.PodConfigMapConfig {
	s.t.Helper()
	c := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name}, Spec: spec}
	s.must(cluster.Client.Create(s.t.Context(), c))
	return c
}

// respec changes a config's spec.
func (s *space) respec(name string, change func(*v1alpha1.PodConfigMapConfigSpec)) {
	s.t.Helper()
	patch(s, &v1alpha1.PodConfigMapConfig{}, name, func(c *v1alpha1.PodConfigMapConfig) { change(&c.Spec) })
}

// patch changes an object of the namespace as somebody else would.
func patch[T client.Object](s *space, object T, name string, change func(T)) {
	s.t.Helper()
	s.must(cluster.Client.Get(s.t.Context(), s.key(name), object))
	before := object.DeepCopyObject().(T)
	change(object)
	s.must(cluster.Client.Patch(s.t.Context(), object, client.MergeFrom(before), client.FieldOwner("somebody")))
}

func (s *space) label(pod, key, value string) {
	s.t.Helper()
	patch(s, &corev1.Pod{}, pod, func(p *corev1.Pod) { metav1.SetMetaDataLabel(&p.ObjectMeta, key, value) })
}

func (s *space) setPhase(pod string, phase corev1.PodPhase) {
	s.t.Helper()
	p := &corev1.Pod{}
	s.must(cluster.Client.Get(s.t.Context(), s.key(pod), p))
	before := p.DeepCopy()
	p.Status.Phase = phase
	s.must(cluster.Client.Status().Patch(s.t.Context(), p, client.MergeFrom(before)))
}

// remove deletes an object of the namespace.
func (s *space) remove(object client.Object, name string) {
	s.t.Helper()
	object.SetNamespace(s.name)
	object.SetName(name)
	s.must(cluster.Client.Delete(s.t.Context(), object))
}

func (s *space) removeConfig(name string)    { s.remove(&v1alpha1.PodConfigMapConfig{}, name) }
func (s *space) removeConfigMap(name string) { s.remove(&corev1.ConfigMap{}, name) }

// get reads a ConfigMap; nil where there is none.
func (s *space) get(name string) *corev1.ConfigMap {
	s.t.Helper()
	cm := &corev1.ConfigMap{}
	err := cluster.Client.Get(s.t.Context(), s.key(name), cm)
	if apierrors.IsNotFound(err) {
		return nil
	}
	s.must(err)
	return cm
}

// data is what a config with an empty spec says of a pod, and more.
func (s *space) data(pod *corev1.Pod, config string, more map[string]string) map[string]string {
	data := map[string]string{
		"podName": pod.Name, "namespace": s.name, "nodeName": pod.Spec.NodeName, "phase": string(corev1.PodRunning),
		"pcmcName": config, "ebpf_enabled": "false",
	}
	maps.Copy(data, more)
	return data
}

// check compares a ConfigMap with what it should be for the pod: its data,
// labels, annotations and owner, no more and no less.
func (s *space) check(name string, pod *corev1.Pod, data map[string]string) error {
	s.t.Helper()
	cm := s.get(name)
	if cm == nil {
		return fmt.Errorf("there is no ConfigMap %q", name)
	}
	isController := true
	owners := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: &isController}}
	labels := map[string]string{
		"podconfig.example.com/generated-by-pcmc": data["pcmcName"], "podconfig.example.com/pod-uid": string(pod.UID),
	}
	if !maps.Equal(cm.Data, data) {
		return fmt.Errorf("ConfigMap %q has the data\n%v, want\n%v", name, cm.Data, data)
	}
	if !maps.Equal(cm.Labels, labels) || len(cm.Annotations) > 0 || len(cm.BinaryData) > 0 || cm.Immutable != nil || len(cm.Finalizers) > 0 {
		return fmt.Errorf("ConfigMap %q: labels %v (want %v), annotations %v, binary data %v, immutable %v, finalizers %v",
			name, cm.Labels, labels, cm.Annotations, cm.BinaryData, cm.Immutable, cm.Finalizers)
	}
	if !reflect.DeepEqual(cm.OwnerReferences, owners) {
		return fmt.Errorf("ConfigMap %q has the owners %+v, want %+v", name, cm.OwnerReferences, owners)
	}
	return nil
}

// expect waits until a ConfigMap is as it should be.
func (s *space) expect(name string, pod *corev1.Pod, data map[string]string) {
	s.t.Helper()
	s.eventually("ConfigMap "+name, func() error { return s.check(name, pod, data) })
}

// names are those of all ConfigMaps.
func (s *space) names() []string {
	s.t.Helper()
	names := []string{}
	for _, cm := range s.configMaps() {
		names = append(names, cm.Name)
	}
	slices.Sort(names)
	return names
}

// checkNames tells whether there are just the named ConfigMaps.
func (s *space) checkNames(want ...string) func() error {
	slices.Sort(want)
	return func() error {
		if got := s.names(); !slices.Equal(got, want) {
			return fmt.Errorf("there are the ConfigMaps %v, want %v", got, want)
		}
		return nil
	}
}

// expectNames waits until there are just the named ConfigMaps.
func (s *space) expectNames(want ...string) {
	s.t.Helper()
	s.eventually("the ConfigMaps", s.checkNames(want...))
}

// status reads a config and its condition.
func (s *space) status(config, condition string) (*v1alpha1.PodConfigMapConfig, metav1.Condition) {
	s.t.Helper()
	c := &v1alpha1.PodConfigMapConfig{}
	s.must(cluster.Client.Get(s.t.Context(), s.key(config), c))
	if found := meta.FindStatusCondition(c.Status.Conditions, condition); found != nil {
		return c, *found
	}
	return c, metav1.Condition{}
}

// checkCondition tells whether a condition is "status reason: message" for the
// config's generation.
func (s *space) checkCondition(config, condition, want string) error {
	s.t.Helper()
	c, got := s.status(config, condition)
	if text := fmt.Sprintf("%s %s: %s", got.Status, got.Reason, got.Message); text != want || got.ObservedGeneration != c.Generation {
		return fmt.Errorf("config %q: %s is %q for generation %d of %d, want %q", config, condition, text, got.ObservedGeneration, c.Generation, want)
	}
	return nil
}

// expectCondition waits until a condition is "status reason: message".
func (s *space) expectCondition(config, condition, want string) {
	s.t.Helper()
	s.eventually("the condition", func() error { return s.checkCondition(config, condition, want) })
}

// expectServed waits until a config says that all of its pods are.
func (s *space) expectServed(config string, pods int) {
	s.t.Helper()
	s.eventually("the config is served", func() error {
		c, ready := s.status(config, v1alpha1.ConditionReady)
		st := c.Status
		if ready.Status != metav1.ConditionTrue || st.ObservedGeneration != c.Generation || int(st.MatchedPods) != pods || int(st.SyncedConfigMaps) != pods || st.FailedConfigMaps != 0 {
			return fmt.Errorf("config %q, generation %d: %+v", config, c.Generation, st)
		}
		return nil
	})
}
