// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/podconfigmap/podconfigmap-controller/internal/wire"
)

// TestSourcesReadAllThatIsKept: whatever an object holds, what is kept of it is the
// same whether all of it was decoded or only the source's fields.
func TestSourcesReadAllThatIsKept(t *testing.T) {
	pods, err := NewPods(&rest.RESTClient{}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	configMaps, err := NewConfigMaps(&rest.RESTClient{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(2), scheme.Codecs).NilChance(0.2)
	yes := true
	for i := range 200 {
		pod, cm := &corev1.Pod{}, &corev1.ConfigMap{}
		fill.Fill(pod)
		fill.Fill(cm)
		if i%2 == 0 {
			pod.Status.StartTime = &metav1.Time{Time: time.Unix(1_700_000_000, 0)} // which is not filled
			pod.OwnerReferences = append(pod.OwnerReferences, metav1.OwnerReference{Kind: "ReplicaSet", Name: "web", Controller: &yes})
			cm.OwnerReferences = append(cm.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "uid"})
			cm.ManagedFields = append(cm.ManagedFields, metav1.ManagedFieldsEntry{Manager: FieldManager})
		}
		expectKept(t, &pods.source, pod, func() runtime.Object { return NewPod(pod) })
		expectKept(t, &configMaps.source, cm, func() runtime.Object { return NewConfigMap(cm) })
	}
}

func expectKept(t *testing.T, s *source, obj object, want func() runtime.Object) {
	t.Helper()
	encoded, err := obj.(interface{ Marshal() ([]byte, error) }).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	pruned, err := s.fields.Prune(nil, encoded)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.decode(pruned)
	if err != nil {
		t.Fatal(err)
	}
	// Encoding takes the fractions of seconds away.
	reflect.ValueOf(obj).Elem().SetZero()
	if err := obj.Unmarshal(encoded); err != nil {
		t.Fatal(err)
	}
	if want := want(); !reflect.DeepEqual(got, want) {
		t.Fatalf("kept is %+v, want %+v", got, want)
	}
}

// apiServer answers lists with the pages, or with what stands in their place.
type apiServer struct {
	t     *testing.T
	pages []any // *corev1.PodList, metav1.Status or []byte
	asked []url.Values
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Accept") != wire.ContentType || r.Header.Get("Accept-Encoding") != "identity" {
		a.t.Errorf("asked for %v", r.Header)
	}
	w.Header().Set("Content-Type", wire.ContentType)
	page := a.pages[len(a.asked)]
	a.asked = append(a.asked, r.URL.Query())
	switch page := page.(type) {
	case *corev1.PodList:
		page.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
		_, err := w.Write(a.encode(page))
		if err != nil {
			a.t.Error(err)
		}
	case *metav1.Status:
		w.WriteHeader(int(page.Code))
		page.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Status"))
		if _, err := w.Write(a.encode(page)); err != nil {
			a.t.Error(err)
		}
	case []byte:
		if _, err := w.Write(page); err != nil {
			a.t.Error(err)
		}
	}
}

func (a *apiServer) encode(obj runtime.Object) []byte {
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(obj, &b); err != nil {
		a.t.Error(err)
	}
	return b.Bytes()
}

// list has a store read its first list from a server with the pages.
func (a *apiServer) list() (*internalversion.List, error) {
	a.t.Helper()
	server := httptest.NewServer(a)
	defer server.Close()
	client, err := NewClient(&rest.Config{Host: server.URL}, server.Client())
	if err != nil {
		a.t.Fatal(err)
	}
	pods, err := NewPods(client, nil, 0)
	if err != nil {
		a.t.Fatal(err)
	}
	list, err := pods.source.listWatch(client, "").ListWithContext(a.t.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	return list.(*internalversion.List), nil
}

func podPage(proceed string, names ...string) *corev1.PodList {
	page := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "42", Continue: proceed}}
	for _, name := range names {
		pod := examplePod()
		pod.Name = name
		page.Items = append(page.Items, *pod)
	}
	return page
}

func TestListInPages(t *testing.T) {
	a := &apiServer{t: t, pages: []any{podPage("b", "web-1", "web-2"), podPage("c"), podPage("", "web-3")}}
	list, err := a.list()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, obj := range list.Items {
		pod := obj.(*Pod)
		names = append(names, pod.Name)
		original := examplePod()
		original.Name = pod.Name
		if !reflect.DeepEqual(pod, NewPod(original)) {
			t.Errorf("%+v", pod)
		}
	}
	if !slices.Equal(names, []string{"web-1", "web-2", "web-3"}) || list.ResourceVersion != "42" || list.Continue != "" {
		t.Errorf("%v, %+v", names, list.ListMeta)
	}
	for i, want := range []map[string][]string{
		{"limit": {"5000"}}, {"limit": {"5000"}, "continue": {"b"}}, {"limit": {"5000"}, "continue": {"c"}},
	} {
		if !maps.EqualFunc(a.asked[i], want, slices.Equal) {
			t.Errorf("page %d is asked for with %v, want %v", i, a.asked[i], want)
		}
	}
}

// TestListThatFails: nothing of a list is shown that is not whole, and informers can
// tell what went wrong.
func TestListThatFails(t *testing.T) {
	whole := (&apiServer{t: t}).encode(podPage("", "web-3"))
	for name, tc := range map[string]struct {
		second any
		is     func(error) bool
	}{
		"expired": {
			&metav1.Status{Status: "Failure", Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old"}, apierrors.IsResourceExpired,
		},
		"forbidden": {
			&metav1.Status{Status: "Failure", Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "no rights"}, apierrors.IsForbidden,
		},
		"cut":                 {whole[:len(whole)/2], says("unexpected EOF")},
		"no protobuf":         {[]byte(`{"kind":"PodList"}`), says("the magic bytes are missing")},
		"a pod that is none":  {[]byte("k8s\x00\x12\x04\x12\x02\x0a\x05"), says("unexpected EOF")},
		"a name that is none": {[]byte("k8s\x00\x12\x06\x12\x04\x0a\x02\x08\x01"), says("wrong wireType = 0 for field Name")},
	} {
		t.Run(name, func(t *testing.T) {
			a := &apiServer{t: t, pages: []any{podPage("b", "web-1"), tc.second}}
			if list, err := a.list(); err == nil || list != nil || !tc.is(err) {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
}

func says(text string) func(error) bool {
	return func(err error) bool { return strings.Contains(fmt.Sprint(err), text) }
}
