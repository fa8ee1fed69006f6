// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// some has each kind of path: to a value, to a message, through lists and pointers.
var some = FieldsOf[corev1.Pod](
	"metadata.name", "metadata.labels", "metadata.ownerReferences.name", "spec.containers.image",
	"spec.securityContext.runAsUser", "status.podIPs", "status.startTime",
)

// onlySome is what is left of a pod.
func onlySome(p *corev1.Pod) *corev1.Pod {
	few := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Labels: p.Labels}}
	for i := range p.OwnerReferences {
		few.OwnerReferences = append(few.OwnerReferences, metav1.OwnerReference{Name: p.OwnerReferences[i].Name})
	}
	for i := range p.Spec.Containers {
		few.Spec.Containers = append(few.Spec.Containers, corev1.Container{Image: p.Spec.Containers[i].Image})
	}
	if c := p.Spec.SecurityContext; c != nil {
		few.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: c.RunAsUser}
	}
	few.Status.PodIPs, few.Status.StartTime = p.Status.PodIPs, p.Status.StartTime
	return few
}

// randomPods are pods with everything that a pod can have.
func randomPods(n int) []corev1.Pod {
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(1), scheme.Codecs).NilChance(0.2)
	pods := make([]corev1.Pod, n)
	for i := range pods {
		fill.Fill(&pods[i])
		pods[i].TypeMeta = metav1.TypeMeta{}
	}
	return pods
}

func marshal(t testing.TB, obj interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	encoded, err := obj.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// encode encodes an object as the API server does.
func encode(t testing.TB, obj runtime.Object, kind string) []byte {
	t.Helper()
	obj.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(obj, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPrune(t *testing.T) {
	for _, pod := range randomPods(100) {
		encoded := marshal(t, &pod)
		pruned, err := some.Prune([]byte("before"), encoded)
		if err != nil {
			t.Fatal(err)
		}
		var got, full corev1.Pod
		if err := errors.Join(got.Unmarshal(bytes.TrimPrefix(pruned, []byte("before"))), full.Unmarshal(encoded)); err != nil {
			t.Fatal(err)
		}
		if want := onlySome(&full); !equality.Semantic.DeepEqual(&got, want) {
			t.Fatalf("left is %+v, want %+v", &got, want)
		}
	}
}

// FuzzPrune: whatever can be decoded means the same after it, and nothing makes it panic.
func FuzzPrune(f *testing.F) {
	for _, pod := range randomPods(3) {
		f.Add(marshal(f, &pod))
	}
	f.Fuzz(func(t *testing.T, encoded []byte) {
		pruned, err := some.Prune(nil, encoded)
		var full, got corev1.Pod
		// Prune does not look into what it drops, but refuses field numbers that
		// decoding lets pass.
		if err != nil || full.Unmarshal(encoded) != nil {
			return
		}
		if err := got.Unmarshal(pruned); err != nil {
			t.Fatal(err)
		}
		if want := onlySome(&full); !equality.Semantic.DeepEqual(&got, want) {
			t.Errorf("left is %+v, want %+v", &got, want)
		}
	})
}

func TestPruneOfMalformed(t *testing.T) {
	encoded := marshal(t, &randomPods(1)[0])
	whole := 0
	for n := range encoded {
		if _, err := some.Prune(nil, encoded[:n]); err == nil {
			whole++
		}
	}
	// Metadata, spec and status: between two fields nothing can be seen to lack.
	if whole > 3 {
		t.Errorf("of %d pods that end too early %d are no error", len(encoded), whole)
	}
}

func TestFieldsOfUnknown(t *testing.T) {
	for path, want := range map[string]string{
		"metadata.nam":       `v1.ObjectMeta has no field "nam" in protobuf`,
		"kind":               `v1.Pod has no field "kind" in protobuf`,
		"spec.nodeName.nope": `string`,
	} {
		t.Run(path, func(t *testing.T) {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, want) {
					t.Errorf("panicked with %q, want %q", p, want)
				}
			}()
			FieldsOf[corev1.Pod](path)
		})
	}
	if a, b := FieldsOf[corev1.Pod]("metadata", "metadata.name"), FieldsOf[corev1.Pod]("metadata.name", "metadata"); !reflect.DeepEqual(a, b) {
		t.Error("a part of what is wanted as a whole changes something")
	}
}

func TestSparing(t *testing.T) {
	decode := sparingDecoder(t)
	pod := randomPods(1)[0]
	got, gvk, err := decode(encode(t, &pod, "Pod"))
	if err != nil {
		t.Fatal(err)
	}
	var full corev1.Pod
	if err := full.Unmarshal(marshal(t, &pod)); err != nil {
		t.Fatal(err)
	}
	want := onlySome(&full)
	want.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	if !equality.Semantic.DeepEqual(got, want) || gvk.Kind != "Pod" {
		t.Errorf("%v: %+v, want %+v", gvk, got, want)
	}
	status := &metav1.Status{Message: "too old", Code: 410}
	if got, _, err := decode(encode(t, status, "Status")); err != nil || got.(*metav1.Status).Message != "too old" {
		t.Errorf("another kind: %v (%v)", got, err)
	}
}

func TestSparingOfMalformed(t *testing.T) {
	decode := sparingDecoder(t)
	encoded := encode(t, &randomPods(1)[0], "Pod")
	for name, data := range map[string][]byte{
		"JSON":      []byte(`{"kind":"Pod","apiVersion":"v1"}`),
		"nothing":   {},
		"the magic": []byte(magic),
		"cut":       encoded[:len(encoded)/2],
		"its end":   encoded[:len(encoded)-1],
	} {
		if got, _, err := decode(data); err == nil {
			t.Errorf("%s: %v and no error", name, got)
		}
	}
}

func sparingDecoder(t *testing.T) func([]byte) (runtime.Object, *schema.GroupVersionKind, error) {
	t.Helper()
	serializers := Sparing(scheme.Codecs.WithoutConversion(), map[string]*Fields{"Pod": some})
	info, ok := runtime.SerializerInfoForMediaType(serializers.SupportedMediaTypes(), ContentType)
	if !ok {
		t.Fatal("no serializer for protobuf")
	}
	return func(data []byte) (runtime.Object, *schema.GroupVersionKind, error) {
		return info.Serializer.Decode(data, nil, nil)
	}
}

func TestReadList(t *testing.T) {
	for _, n := range []int{0, 1, 50} {
		list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "7", Continue: "more"}, Items: randomPods(n)}
		encoded := encode(t, list, "PodList")
		var got []corev1.Pod
		meta, err := ReadList(bytes.NewReader(encoded), func(item []byte) error {
			var pod corev1.Pod
			err := pod.Unmarshal(item)
			got = append(got, pod)
			return err
		})
		if err != nil || meta.ResourceVersion != "7" || meta.Continue != "more" {
			t.Errorf("%d pods: %+v, %v", n, meta, err)
		}
		var want corev1.PodList
		if err := want.Unmarshal(marshal(t, list)); err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(got, want.Items) {
			t.Errorf("%d pods: the items differ", n)
		}
	}
}

// TestReadListThatEnds: an answer that is cut anywhere is an error, as a connection
// that breaks makes it.
func TestReadListThatEnds(t *testing.T) {
	encoded := encode(t, &corev1.PodList{Items: randomPods(2)}, "PodList")
	// The fields after the list, which say of its encoding that there is nothing to say.
	const after = "\x1a\x00\x22\x00"
	list, ok := bytes.CutSuffix(encoded, []byte(after))
	if !ok {
		t.Fatalf("a list ends with %q", encoded[len(encoded)-8:])
	}
	for n := range list {
		_, err := ReadList(bytes.NewReader(encoded[:n]), func([]byte) error { return nil })
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("after %d of %d bytes: %v", n, len(encoded), err)
		}
	}
}

func TestReadListOfMalformed(t *testing.T) {
	refused := errors.New("refused")
	for name, tc := range map[string]struct{ data, want string }{
		"JSON":                    {`{"kind":"PodList"}`, "reading a list: no Kubernetes protobuf: the magic bytes are missing"},
		"a field of another kind": {magic + "\x10\x01", "reading a list: field 2 is of kind 0 in place of bytes"},
		"an item beyond the list": {magic + "\x12\x03\x12\x02ab", "reading a list: an item is longer than the list"},
		"an item without a size":  {magic + "\x12\x01\x12\x02ab", "reading a list: an item is longer than the list"},
		"a gigantic item":         {magic + "\x12\x80\x80\x80\x80\x80\x01\x12\x80\x80\x80\x80\x7f", "reading a list: an item of 34091302912 bytes: no object is that large"},
		"a tag without an end":    {magic + strings.Repeat("\xff", 11), "reading a list: binary: varint overflows a 64-bit integer"},
		"metadata that are none":  {magic + "\x12\x03\x0a\x01\xff", "reading a list: unexpected EOF"},
		"an item that is refused": {magic + "\x12\x03\x12\x01a", "reading a list: refused"},
	} {
		_, err := ReadList(strings.NewReader(tc.data), func([]byte) error { return refused })
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// BenchmarkReadList compares a list of pods that is read item by item, of each only
// what is wanted, with decoding it as a whole.
func BenchmarkReadList(b *testing.B) {
	encoded := encode(b, &corev1.PodList{Items: randomPods(500)}, "PodList")
	b.Run("whole", func(b *testing.B) {
		b.SetBytes(int64(len(encoded)))
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(encoded, nil, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sparing", func(b *testing.B) {
		b.SetBytes(int64(len(encoded)))
		b.ReportAllocs()
		for b.Loop() {
			var pruned []byte
			_, err := ReadList(bytes.NewReader(encoded), func(item []byte) (err error) {
				if pruned, err = some.Prune(pruned[:0], item); err != nil {
					return err
				}
				var pod corev1.Pod
				return pod.Unmarshal(pruned)
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
