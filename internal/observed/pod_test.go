// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"
	"unique"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// examplePod has a value in every field that the operator reads, and in some
// that it does not.
func examplePod() *corev1.Pod {
	isController := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-0", UID: "uid", ResourceVersion: "7", Generation: 3,
			Labels:      map[string]string{"b": "2", "a": "1", "c": ""},
			Annotations: map[string]string{"y": "2", "x": "1"},
			OwnerReferences: []metav1.OwnerReference{
				{Kind: "Other", Name: "no-controller"},
				{Kind: "StatefulSet", Name: "web", Controller: &isController},
			},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", ServiceAccountName: "robot",
			InitContainers: []corev1.Container{{Name: "init", Image: "busybox"}},
			Containers:     []corev1.Container{{Name: "main", Image: "nginx:1"}, {Name: "side", Image: "envoy:2"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable,
			PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			HostIP: "192.0.2.1", HostIPs: []corev1.HostIP{{IP: "192.0.2.1"}, {IP: "2001:db8::1"}},
			StartTime:  &metav1.Time{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("CET", 3600))},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
}

func TestNewPod(t *testing.T) {
	p := NewPod(examplePod())
	got := fmt.Sprintln(p.Key(), p.UID, p.ResourceVersion, p.Labels.Map(), p.Annotations.Map(),
		p.NodeName.Value(), p.Phase.Value(), p.ServiceAccountName.Value(), p.QOSClass.Value(),
		p.PodIPs, p.HostIPs, p.Owner.Kind.Value(), p.Owner.Name.Value(), p.StartTime)
	want := "shop/web-0 uid 7 map[a:1 b:2 c:] map[x:1 y:2] node-1 Running robot Burstable " +
		"[10.0.0.1 fd00::1] [192.0.2.1 2001:db8::1] StatefulSet web 2026-01-02 02:04:05 +0000 UTC\n"
	if got != want {
		t.Errorf("NewPod copies\n%s, want\n%s", got, want)
	}
	if len(p.Containers) != 2 || p.Containers[1].Name.Value() != "side" || p.Containers[1].Image.Value() != "envoy:2" {
		t.Errorf("containers %v", p.Containers)
	}
	if m := p.GetObjectMeta(); m.GetNamespace() != "shop" || m.GetName() != "web-0" || m.GetUID() != "uid" || m.GetResourceVersion() != "7" {
		t.Errorf("metadata %v", m)
	}
}

// TestNewPodOfLittle: old API servers fill in the singular IPs only, and a new
// pod has nothing at all.
func TestNewPodOfLittle(t *testing.T) {
	pod := examplePod()
	pod.Status.PodIPs, pod.Status.HostIPs = nil, nil
	if p := NewPod(pod); !slices.Equal(p.PodIPs, []string{"10.0.0.1"}) || !slices.Equal(p.HostIPs, []string{"192.0.2.1"}) {
		t.Errorf("IPs %v, %v", p.PodIPs, p.HostIPs)
	}
	p := NewPod(&corev1.Pod{})
	if p.Owner.Kind.Value() != "" || len(p.PodIPs) > 0 || !p.StartTime.IsZero() || p.NodeName.Value() != "" || len(p.Labels.Map()) > 0 {
		t.Errorf("of an empty pod: %+v", p)
	}
}

// podChanges are changes of the example, and whether it is the same after them.
var podChanges = map[string]struct {
	change func(*corev1.Pod)
	same   bool
}{
	"nothing":          {func(*corev1.Pod) {}, true},
	"resource version": {func(p *corev1.Pod) { p.ResourceVersion = "8" }, true},
	"conditions":       {func(p *corev1.Pod) { p.Status.Conditions = nil }, true},
	"message":          {func(p *corev1.Pod) { p.Status.Message = "m" }, true},
	"restart count": {func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", RestartCount: 4}}
	}, true},
	"time zone":        {func(p *corev1.Pod) { p.Status.StartTime.Time = p.Status.StartTime.UTC() }, true},
	"label":            {func(p *corev1.Pod) { p.Labels["a"] = "2" }, false},
	"new label":        {func(p *corev1.Pod) { p.Labels["d"] = "" }, false},
	"no labels":        {func(p *corev1.Pod) { p.Labels = nil }, false},
	"annotation":       {func(p *corev1.Pod) { p.Annotations["x"] = "2" }, false},
	"UID":              {func(p *corev1.Pod) { p.UID = "other" }, false},
	"node":             {func(p *corev1.Pod) { p.Spec.NodeName = "node-2" }, false},
	"phase":            {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
	"service account":  {func(p *corev1.Pod) { p.Spec.ServiceAccountName = "other" }, false},
	"quality":          {func(p *corev1.Pod) { p.Status.QOSClass = corev1.PodQOSGuaranteed }, false},
	"IP":               {func(p *corev1.Pod) { p.Status.PodIPs[1].IP = "fd00::2" }, false},
	"node's IP":        {func(p *corev1.Pod) { p.Status.HostIPs = p.Status.HostIPs[:1] }, false},
	"owner":            {func(p *corev1.Pod) { p.OwnerReferences[1].Name = "other" }, false},
	"container's name": {func(p *corev1.Pod) { p.Spec.Containers[0].Name = "other" }, false},
	"image":            {func(p *corev1.Pod) { p.Spec.Containers[1].Image = "envoy:3" }, false},
	"start":            {func(p *corev1.Pod) { p.Status.StartTime = nil }, false},
}

func TestSame(t *testing.T) {
	for name, tc := range podChanges {
		t.Run(name, func(t *testing.T) {
			pod := examplePod()
			tc.change(pod)
			before, after := NewPod(examplePod()), NewPod(pod)
			if got := before.Same(after); got != tc.same {
				t.Errorf("same: %t, want %t", got, tc.same)
			}
			if before.Same(after) != after.Same(before) {
				t.Error("Same depends on the order")
			}
		})
	}
}

// TestNewPodKeepsNothing: the original may change after NewPod.
func TestNewPodKeepsNothing(t *testing.T) {
	pod := examplePod()
	p := NewPod(pod)
	pod.Labels["a"], pod.Status.PodIPs[0].IP, pod.Spec.Containers[0].Image = "9", "9", "9"
	if !p.Same(NewPod(examplePod())) {
		t.Error("the copy changed with its original")
	}
}

// TestPodThatIsKept: what is seen of a pod does not depend on what was kept of it,
// but after a heartbeat it lies mostly where that lies.
func TestPodThatIsKept(t *testing.T) {
	pods, err := NewPods(&rest.RESTClient{}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	observe := func(pod *corev1.Pod) *Pod {
		t.Helper()
		obj, err := pods.compact(pod)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := pods.compact(obj); err != nil || again != obj {
			t.Errorf("of what it made it makes %v (%v)", again, err)
		}
		return obj.(*Pod)
	}
	first := observe(examplePod())
	if err := pods.indexer("shop").Add(first); err != nil {
		t.Fatal(err)
	}
	for name, tc := range podChanges {
		pod := examplePod()
		tc.change(pod)
		if got, want := observe(pod), NewPod(pod); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	beat := examplePod()
	beat.ResourceVersion = "8"
	second := observe(beat)
	if unsafe.StringData(second.Name) != unsafe.StringData(first.Name) || &second.Labels[0] != &first.Labels[0] ||
		&second.Annotations[0] != &first.Annotations[0] || &second.Containers[0] != &first.Containers[0] || &second.PodIPs[0] != &first.PodIPs[0] {
		t.Error("after a heartbeat all is copied again")
	}
	if unsafe.StringData(second.ResourceVersion) == unsafe.StringData(beat.ResourceVersion) {
		t.Error("a string of the original is kept")
	}
}

func TestPairs(t *testing.T) {
	pairs := newPairs(map[string]string{"b": "2", "a": "1", "empty": ""})
	if !slices.IsSortedFunc(pairs, func(a, b Pair) int { return slices.Compare([]byte(a.Key.Value()), []byte(b.Key.Value())) }) {
		t.Errorf("not in order: %v", pairs.Map())
	}
	for key, want := range map[string]struct {
		value string
		ok    bool
	}{"a": {"1", true}, "b": {"2", true}, "empty": {"", true}, "absent": {"", false}} {
		value, ok := pairs.Lookup(key)
		if value != want.value || ok != want.ok || pairs.Has(key) != want.ok || pairs.Get(key) != want.value {
			t.Errorf("%s: %q, %t; want %+v", key, value, ok, want)
		}
	}
	fresh := pairs.Map()
	fresh["a"] = "9"
	if !maps.Equal(pairs.Map(), map[string]string{"a": "1", "b": "2", "empty": ""}) {
		t.Error("the map is shared")
	}
	if pairs[0].Key != unique.Make("a") {
		t.Error("keys are not shared")
	}
}

func BenchmarkNewPod(b *testing.B) {
	pod := examplePod()
	for i := range 8 {
		pod.Labels[fmt.Sprintf("example.com/label-%d", i)] = fmt.Sprintf("value-%d", i)
		pod.Annotations[fmt.Sprintf("example.com/annotation-%d", i)] = fmt.Sprintf("value-%d", i)
	}
	b.ReportAllocs()
	for b.Loop() {
		NewPod(pod)
	}
}
