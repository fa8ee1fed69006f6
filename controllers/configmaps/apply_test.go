// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

func TestNew(t *testing.T) {
	cm, failure := New(observed.NewPod(examplePod()), compiled(v1alpha1.PodConfigMapConfigSpec{LabelsToInclude: []v1alpha1.MetadataKey{"app"}}))
	if failure != nil {
		t.Fatal(failure)
	}
	got, err := json.Marshal(cm)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"pod-web-0-from-meta-cfg","namespace":"shop",` +
		`"labels":{"podconfig.example.com/generated-by-pcmc":"meta","podconfig.example.com/pod-uid":"pod-uid"},` +
		`"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"web-0","uid":"pod-uid","controller":true}]},` +
		`"data":{"ebpf_enabled":"false","label_app":"web","namespace":"shop","nodeName":"node-1","pcmcName":"meta","phase":"Running","podName":"web-0"}}`
	if string(got) != want {
		t.Errorf("made\n%s, want\n%s", got, want)
	}
}

func TestPatchOf(t *testing.T) {
	const (
		data     = `{"data":{"$patch":"replace","k":"v"},"metadata":{`
		labels   = `"labels":{"podconfig.example.com/generated-by-pcmc":"meta","podconfig.example.com/pod-uid":"pod-uid"},`
		holds    = `"resourceVersion":"7","uid":"cm-uid"}}`
		noBinary = `{"binaryData":null,`
	)
	for name, tc := range map[string]struct {
		change func(*corev1.ConfigMap)
		want   string
	}{
		"data alone":        {nil, data + holds},
		"no data yet":       {func(cm *corev1.ConfigMap) { cm.Data = nil }, `{"data":{"k":"v"},"metadata":{` + holds},
		"no data at all":    {func(cm *corev1.ConfigMap) { cm.Data = nil }, `{"data":{"k":"v"},"metadata":{` + holds},
		"empty data":        {func(cm *corev1.ConfigMap) { cm.Data = map[string]string{} }, `{"data":{"k":"v"},"metadata":{` + holds},
		"a foreign label":   {func(cm *corev1.ConfigMap) { maps.Copy(cm.Labels, map[string]string{"theirs": "x"}) }, data + holds},
		"config's label":    {func(cm *corev1.ConfigMap) { cm.Labels[v1alpha1.LabelGeneratedBy] = "other" }, data + labels + holds},
		"pod's label":       {func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelPodUID) }, data + labels + holds},
		"no labels at all":  {func(cm *corev1.ConfigMap) { cm.Labels = nil }, data + labels + holds},
		"others' only":      {func(cm *corev1.ConfigMap) { cm.Labels = map[string]string{"theirs": "x"} }, data + labels + holds},
		"binary data":       {func(cm *corev1.ConfigMap) { cm.BinaryData = map[string][]byte{"b": {1}} }, noBinary + data[1:] + holds},
		"an annotation":     {func(cm *corev1.ConfigMap) { cm.Annotations = map[string]string{"theirs": "x"} }, data + holds},
		"a second owner":    {func(cm *corev1.ConfigMap) { cm.OwnerReferences = append(cm.OwnerReferences, metav1.OwnerReference{}) }, data + holds},
		"a finalizer stays": {func(cm *corev1.ConfigMap) { cm.Finalizers = []string{"theirs"} }, data + holds},
	} {
		t.Run(name, func(t *testing.T) {
			config := compiled(v1alpha1.PodConfigMapConfigSpec{})
			got, err := patchOf(observed.NewPod(examplePod()), &step{
				config: config, current: existing(t, config, tc.change), data: map[string]string{"k": "v"},
			})
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("patch\n%s, want\n%s", got, tc.want)
			}
		})
	}
}

// TestPatchDoesNotEscape: the API server bounds a request's size, and data that
// could be created must be possible to update.
func TestPatchDoesNotEscape(t *testing.T) {
	s := &step{name: "x", config: &Config{Name: "meta"}, current: observed.NewConfigMap(&corev1.ConfigMap{}), data: map[string]string{"k": "<&>"}}
	body, err := patchOf(observed.NewPod(examplePod()), s)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(body), `"k":"<&>"`) {
		t.Errorf("the patch is %s", body)
	}
}

// meeting is a client whose calls end only once all of them are under way.
type meeting struct {
	corev1client.ConfigMapInterface
	together sync.WaitGroup
	failure  error
}

func (m *meeting) ConfigMaps(string) corev1client.ConfigMapInterface { return m }

func (m *meeting) Create(_ context.Context, cm *corev1.ConfigMap, _ metav1.CreateOptions) (*corev1.ConfigMap, error) {
	m.together.Done()
	m.together.Wait()
	return cm, nil
}

func (*meeting) Patch(context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string) (*corev1.ConfigMap, error) {
	panic("no such thing")
}

func (m *meeting) Delete(context.Context, string, metav1.DeleteOptions) error {
	m.together.Done()
	m.together.Wait()
	return m.failure
}

// recorder is a client that notes the calls which update.
type recorder struct {
	corev1client.ConfigMapInterface
	put     *corev1.ConfigMap
	patched []byte
	failure error
}

func (r *recorder) ConfigMaps(string) corev1client.ConfigMapInterface { return r }

func (r *recorder) Update(_ context.Context, cm *corev1.ConfigMap, _ metav1.UpdateOptions) (*corev1.ConfigMap, error) {
	r.put = cm
	return cm, r.failure
}

func (r *recorder) Patch(_ context.Context, _ string, _ types.PatchType, body []byte, _ metav1.PatchOptions, _ ...string) (*corev1.ConfigMap, error) {
	r.patched = body
	return r.put, r.failure
}

// TestUpdate: what holds nothing of others' is put whole, in the place of what was
// planned for; everything else is patched.
func TestUpdate(t *testing.T) {
	pod, config := observed.NewPod(examplePod()), compiled(v1alpha1.PodConfigMapConfigSpec{})
	factory := telemetry.NewFactory(prometheus.NewRegistry())
	metrics := NewMetrics(factory, telemetry.NewReconciliation(factory))
	for name, tc := range map[string]struct {
		change func(*corev1.ConfigMap)
		put    bool
	}{
		"only ours":     {nil, true},
		"a label lacks": {func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelPodUID) }, true},
		"an annotation": {func(cm *corev1.ConfigMap) { cm.Annotations = map[string]string{"theirs": "x"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			// The answer's content is the store's matter.
			r := &recorder{failure: errors.New("refused")}
			a := &applier{client: r, configMaps: unstarted(t), metrics: metrics}
			s := &step{verb: update, config: config, name: "a", current: existing(t, config, tc.change), data: map[string]string{"k": "v"}}
			if err := a.carryOut(t.Context(), pod, s); !errors.Is(err, r.failure) || !strings.Contains(err.Error(), `updating ConfigMap "a" for pod "web-0"`) {
				t.Errorf("it fails with: %v", err)
			}
			if put := r.put != nil; put != tc.put || put == (r.patched != nil) {
				t.Fatalf("put %t, patched %t, want it put: %t", put, r.patched != nil, tc.put)
			}
			if !tc.put {
				return
			}
			want := newConfigMap(pod, s)
			want.UID, want.ResourceVersion = "cm-uid", "7"
			if !equality.Semantic.DeepEqual(r.put, want) {
				t.Errorf("put %v, want %v", r.put, want)
			}
		})
	}
}

// unstarted returns ConfigMaps of which only what is written here is known.
func unstarted(t *testing.T) *observed.ConfigMaps {
	t.Helper()
	client, err := corev1client.NewForConfig(&rest.Config{Host: "https://no.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	known, err := observed.NewConfigMaps(client.RESTClient(), []string{"shop"})
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// TestCarryOutAll: a pod's calls are made beside each other, as many as may be, and
// each step gets its own error.
func TestCarryOutAll(t *testing.T) {
	pod := observed.NewPod(examplePod())
	config := compiled(v1alpha1.PodConfigMapConfigSpec{})
	m := &meeting{failure: errors.New("refused")}
	steps := []step{
		{verb: keep, name: "kept"}, {verb: create, config: config, name: "a"}, {verb: create, config: config, name: "b"},
		{verb: remove, name: "gone", current: existing(t, config, nil)}, {verb: create, config: config, name: "c"},
	}
	m.together.Add(callsAtOnce)
	factory := telemetry.NewFactory(prometheus.NewRegistry())
	a := &applier{client: m, configMaps: unstarted(t), metrics: NewMetrics(factory, telemetry.NewReconciliation(factory))}
	errs := a.carryOutAll(t.Context(), pod, steps)
	for i, err := range errs {
		if failed := steps[i].verb == remove; failed != errors.Is(err, m.failure) {
			t.Errorf("%s: %v", steps[i].name, err)
		}
	}
	known := map[string]bool{}
	for _, cm := range a.configMaps.OwnedBy(pod.Key()) {
		known[cm.Name] = true
	}
	if want := map[string]bool{"a": true, "b": true, "c": true}; !maps.Equal(known, want) {
		t.Errorf("known to be written: %v, want %v", known, want)
	}
}

// TestPanickingCall: the controller outlives what panics in its own goroutine only.
func TestPanickingCall(t *testing.T) {
	config := compiled(v1alpha1.PodConfigMapConfigSpec{})
	a := &applier{client: &meeting{}}
	theirs := func(cm *corev1.ConfigMap) { cm.Finalizers = []string{"theirs"} }
	defer func() {
		if p := fmt.Sprint(recover()); !strings.HasPrefix(p, "no such thing\n") || !strings.Contains(p, "Patch") {
			t.Errorf("it panics with %s, want what the call panicked with, and where", p)
		}
	}()
	a.carryOutAll(t.Context(), observed.NewPod(examplePod()), []step{{verb: update, config: config, name: "a", current: existing(t, config, theirs), data: map[string]string{"k": "v"}}})
}
