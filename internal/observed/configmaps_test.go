// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

func exampleConfigMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "cm", UID: "cm-uid", ResourceVersion: "10",
			Labels:          map[string]string{v1alpha1.LabelGeneratedBy: "meta", v1alpha1.LabelPodUID: "pod-uid"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "pod-uid"}},
		},
		Data: map[string]string{"k": "v"},
	}
}

func changed(change func(*corev1.ConfigMap)) *ConfigMap {
	cm := exampleConfigMap()
	change(cm)
	return NewConfigMap(cm)
}

// TestPlain: only metadata with nothing of others' may be written anew as a whole.
func TestPlain(t *testing.T) {
	yes, no := true, false
	ours := metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "pod-uid", Controller: &yes}
	for name, tc := range map[string]struct {
		change func(*corev1.ConfigMap)
		plain  bool
	}{
		"as created":               {func(*corev1.ConfigMap) {}, true},
		"managed fields":           {func(cm *corev1.ConfigMap) { cm.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}} }, true},
		"binary data":              {func(cm *corev1.ConfigMap) { cm.BinaryData = map[string][]byte{"b": nil} }, true},
		"a label of ours lacks":    {func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelPodUID) }, true},
		"no annotations":           {func(cm *corev1.ConfigMap) { cm.Annotations = map[string]string{} }, true},
		"a foreign label":          {func(cm *corev1.ConfigMap) { cm.Labels["theirs"] = "x" }, false},
		"a foreign label instead":  {func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelPodUID); cm.Labels["theirs"] = "x" }, false},
		"an annotation":            {func(cm *corev1.ConfigMap) { cm.Annotations = map[string]string{"theirs": ""} }, false},
		"a finalizer":              {func(cm *corev1.ConfigMap) { cm.Finalizers = []string{"theirs"} }, false},
		"a generated name":         {func(cm *corev1.ConfigMap) { cm.GenerateName = "c" }, false},
		"no owner":                 {func(cm *corev1.ConfigMap) { cm.OwnerReferences = nil }, false},
		"a second owner":           {func(cm *corev1.ConfigMap) { cm.OwnerReferences = append(cm.OwnerReferences, ours) }, false},
		"an owner of another kind": {func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].Kind = "Node" }, false},
		"not its controller":       {func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].Controller = &no }, false},
		"an owner that it blocks":  {func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].BlockOwnerDeletion = &no }, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := changed(func(cm *corev1.ConfigMap) {
				cm.OwnerReferences = []metav1.OwnerReference{ours}
				tc.change(cm)
			})
			if got.Plain != tc.plain {
				t.Errorf("plain: %t, want %t", got.Plain, tc.plain)
			}
		})
	}
}

func TestNewConfigMap(t *testing.T) {
	c := NewConfigMap(exampleConfigMap())
	got := fmt.Sprintln(c.Key(), c.Owner(), c.UID, c.ResourceVersion, c.Config.Value(), c.PodUID, c.OwnerUID,
		c.HasBinaryData, c.Immutable, c.Deleting, c.WrittenByUs, c.Ours(), c.Data == DigestOf(map[string]string{"k": "v"}))
	if want := "shop/cm shop/web cm-uid 10 meta pod-uid pod-uid false false false false true true\n"; got != want {
		t.Errorf("NewConfigMap copies\n%s, want\n%s", got, want)
	}
	if m := c.GetObjectMeta(); m.GetNamespace() != "shop" || m.GetName() != "cm" || m.GetUID() != "cm-uid" || m.GetResourceVersion() != "10" {
		t.Errorf("metadata %v", m)
	}
	yes := true
	for name, tc := range map[string]struct {
		change func(*corev1.ConfigMap)
		holds  func(*ConfigMap) bool
	}{
		"binary data": {func(cm *corev1.ConfigMap) { cm.BinaryData = map[string][]byte{"b": nil} }, func(c *ConfigMap) bool { return c.HasBinaryData }},
		"immutable":   {func(cm *corev1.ConfigMap) { cm.Immutable = &yes }, func(c *ConfigMap) bool { return c.Immutable }},
		"deleting":    {func(cm *corev1.ConfigMap) { cm.DeletionTimestamp = &metav1.Time{} }, func(c *ConfigMap) bool { return c.Deleting }},
		"no labels":   {func(cm *corev1.ConfigMap) { cm.Labels = nil }, func(c *ConfigMap) bool { return c.PodUID == "" && c.Config.Value() == "" }},
		"written by us": {func(cm *corev1.ConfigMap) {
			cm.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: FieldManager}, {Manager: "kubectl"}}
		}, func(c *ConfigMap) bool { return c.WrittenByUs }},
		"the pod among owners": {func(cm *corev1.ConfigMap) {
			cm.OwnerReferences = append([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n", UID: "n"}}, cm.OwnerReferences...)
		}, func(c *ConfigMap) bool { return c.OwnerName == "web" }},
		"a Pod of another group": {func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].APIVersion = "example.com/v1" }, func(c *ConfigMap) bool { return c.OwnerName == "" }},
	} {
		if !tc.holds(changed(tc.change)) {
			t.Errorf("%s: not seen", name)
		}
	}
}

func TestOurs(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*corev1.ConfigMap)
		ours   bool
	}{
		"both labels":           {func(*corev1.ConfigMap) {}, true},
		"config's label alone":  {func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelPodUID) }, true},
		"pod's label alone":     {func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelGeneratedBy) }, true},
		"an owner alone":        {func(cm *corev1.ConfigMap) { cm.Labels = nil }, false},
		"labels alone":          {func(cm *corev1.ConfigMap) { cm.OwnerReferences = nil }, false},
		"owner, field manager":  {func(cm *corev1.ConfigMap) { cm.Labels, cm.ManagedFields = nil, ourFields }, true},
		"field manager alone":   {func(cm *corev1.ConfigMap) { cm.Labels, cm.OwnerReferences, cm.ManagedFields = nil, nil, ourFields }, false},
		"owned by another kind": {func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].Kind = "Node" }, false},
	} {
		if got := changed(tc.change).Ours(); got != tc.ours {
			t.Errorf("%s: ours %t, want %t", name, got, tc.ours)
		}
	}
}

var ourFields = []metav1.ManagedFieldsEntry{{Manager: FieldManager}}

func TestDigest(t *testing.T) {
	seen := map[Digest]string{}
	for name, data := range map[string]map[string]string{
		"none":            nil,
		"one":             {"a": "b"},
		"value moved":     {"ab": ""},
		"two":             {"a": "b", "c": "d"},
		"swapped":         {"a": "d", "c": "b"},
		"run together":    {"a": "bcd"},
		"the other way":   {"abc": "d"},
		"an empty value":  {"a": "b", "c": ""},
		"like two pieces": {"a": "b\x01\x00\x00\x00\x01\x00\x00\x00cd"},
	} {
		digest := DigestOf(data)
		if other, taken := seen[digest]; taken {
			t.Errorf("%q and %q have one digest", name, other)
		}
		seen[digest] = name
	}
	if DigestOf(nil) != DigestOf(map[string]string{}) {
		t.Error("no data and empty data differ")
	}
	for range 20 {
		if DigestOf(map[string]string{"a": "1", "b": "2", "c": "3"}) != DigestOf(map[string]string{"c": "3", "b": "2", "a": "1"}) {
			t.Fatal("the order of keys matters")
		}
	}
}

// overlaid is a store without a watch: the test says what it has shown.
type overlaid struct {
	*ConfigMaps
	t   *testing.T
	now time.Time
}

func newOverlaid(t *testing.T) *overlaid {
	t.Helper()
	c, err := NewConfigMaps(&rest.RESTClient{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &overlaid{c, t, time.Unix(1_000_000, 0)}
	c.now = func() time.Time { return o.now }
	return o
}

func at(name, uid, version string) *ConfigMap {
	return changed(func(cm *corev1.ConfigMap) { cm.Name, cm.UID, cm.ResourceVersion = name, types.UID(uid), version })
}

func (o *overlaid) indexer() cache.Indexer { return o.store.indexer("shop") }

// event has the watch show a ConfigMap, as informers do: the store first, then
// the handlers.
func (o *overlaid) event(cm *ConfigMap, deleted bool) (echo bool) {
	o.t.Helper()
	change := o.indexer().Update
	if deleted {
		change = o.indexer().Delete
	}
	if err := change(cm); err != nil {
		o.t.Fatal(err)
	}
	return o.Confirm(cm, deleted)
}

// owned is what OwnedBy tells of the example's pod: names, UIDs and versions.
func (o *overlaid) owned() string {
	var all []string
	for _, c := range o.OwnedBy(types.NamespacedName{Namespace: "shop", Name: "web"}) {
		all = append(all, fmt.Sprintf("%s/%s@%s", c.Name, c.UID, c.ResourceVersion))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (o *overlaid) expect(when, want string) {
	o.t.Helper()
	if got := o.owned(); got != want {
		o.t.Errorf("%s: %q, want %q", when, got, want)
	}
}

func (o *overlaid) expectEcho(when string, got, want bool) {
	o.t.Helper()
	if got != want {
		o.t.Errorf("%s: echo %t, want %t", when, got, want)
	}
}

func (o *overlaid) expectEmpty() {
	o.t.Helper()
	if len(o.writes) > 0 {
		o.t.Errorf("writes are kept that need not be: %v", o.writes)
	}
}

// TestConfigMapThatIsKept: what is seen of a ConfigMap does not depend on what was
// kept of it, but mostly lies where that lies.
func TestConfigMapThatIsKept(t *testing.T) {
	o := newOverlaid(t)
	first := NewConfigMap(exampleConfigMap())
	o.event(first, false)
	for name, change := range map[string]func(*corev1.ConfigMap){
		"nothing":          func(*corev1.ConfigMap) {},
		"data":             func(cm *corev1.ConfigMap) { cm.Data["k"] = "other" },
		"resource version": func(cm *corev1.ConfigMap) { cm.ResourceVersion = "11" },
		"another name":     func(cm *corev1.ConfigMap) { cm.Name = "other" },
		"made again":       func(cm *corev1.ConfigMap) { cm.UID = "other" },
		"another pod":      func(cm *corev1.ConfigMap) { cm.Labels[v1alpha1.LabelPodUID] = "other" },
		"another config":   func(cm *corev1.ConfigMap) { cm.Labels[v1alpha1.LabelGeneratedBy] = "other" },
		"another owner":    func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].UID = "other" },
		"renamed owner":    func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].Name = "other" },
		"no owner":         func(cm *corev1.ConfigMap) { cm.OwnerReferences = nil },
		"deleting":         func(cm *corev1.ConfigMap) { cm.DeletionTimestamp = &metav1.Time{} },
	} {
		cm := exampleConfigMap()
		change(cm)
		if got, want := o.Observe(cm), NewConfigMap(cm); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	cm := exampleConfigMap()
	cm.ResourceVersion, cm.Data["k"] = "11", "other"
	second := o.Observe(cm)
	if unsafe.StringData(second.Name) != unsafe.StringData(first.Name) || unsafe.StringData(string(second.UID)) != unsafe.StringData(string(first.UID)) {
		t.Error("after an update the names are copied again")
	}
	if unsafe.StringData(second.ResourceVersion) == unsafe.StringData(cm.ResourceVersion) {
		t.Error("a string of the original is kept")
	}
}

// TestEchoOfOwnWrite: the echo of an own write is what the answer was; nothing else
// is.
func TestEchoOfOwnWrite(t *testing.T) {
	o := newOverlaid(t)
	answer := at("a", "1", "10")
	o.Wrote(answer)
	echo := func(uid, version string) *ConfigMap {
		cm := exampleConfigMap()
		cm.Name, cm.UID, cm.ResourceVersion = "a", types.UID(uid), version
		obj, err := o.compact(cm)
		if err != nil {
			t.Fatal(err)
		}
		return obj.(*ConfigMap)
	}
	if echo("1", "10") != answer {
		t.Error("the echo is copied again")
	}
	if echo("1", "11") == answer || echo("2", "10") == answer {
		t.Error("what is no echo is taken for one")
	}
	o.Deleted(answer)
	if echo("1", "10") == answer {
		t.Error("what was deleted is taken for an echo")
	}
}

func TestOwnWriteIsSeenAtOnce(t *testing.T) {
	o := newOverlaid(t)
	o.expect("at first", "")
	o.Wrote(at("a", "1", "10"))
	o.expect("created", "a/1@10")
	o.expectEcho("the watch shows it", o.event(at("a", "1", "10"), false), true)
	o.expectEmpty()
	o.expect("shown", "a/1@10")
	o.Wrote(at("a", "1", "20"))
	o.expect("updated", "a/1@20")
	o.expectEcho("a delayed older event", o.event(at("a", "1", "15"), false), false)
	o.expect("the write is newer", "a/1@20")
	o.expectEcho("the watch shows it", o.event(at("a", "1", "20"), false), true)
	o.expectEcho("somebody's change", o.event(at("a", "1", "30"), false), false)
	o.expect("changed", "a/1@30")
	o.expectEmpty()
}

// TestWatchBeatsTheAnswer: the event of a write often comes before the answer.
func TestWatchBeatsTheAnswer(t *testing.T) {
	o := newOverlaid(t)
	o.expectEcho("created", o.event(at("a", "1", "10"), false), false)
	o.Wrote(at("a", "1", "10"))
	o.expectEmpty()
	o.event(at("b", "2", "20"), false)
	o.event(at("b", "2", "21"), true)
	o.Wrote(at("b", "2", "20"))
	o.expect("deleted by somebody before the answer came", "a/1@10")
	o.expectEmpty()
	o.Wrote(at("b", "3", "22"))
	o.expect("created anew", "a/1@10 b/3@22")
}

func TestSomebodyBeatsTheEcho(t *testing.T) {
	o := newOverlaid(t)
	o.Wrote(at("a", "1", "10"))
	o.expectEcho("events were merged", o.event(at("a", "1", "12"), false), false)
	o.expect("theirs is newer", "a/1@12")
	o.expectEmpty()
	o.Wrote(at("a", "1", "20"))
	o.expectEcho("deleted by somebody", o.event(at("a", "1", "21"), true), false)
	o.expect("gone", "")
	o.expectEmpty()
}

func TestOwnDeletionIsSeenAtOnce(t *testing.T) {
	o := newOverlaid(t)
	o.event(at("a", "1", "10"), false)
	o.event(at("b", "2", "11"), false)
	o.Deleted(at("a", "1", "10"))
	o.expect("deleted", "b/2@11")
	o.expectEcho("an older event", o.event(at("a", "1", "10"), false), false)
	o.expect("still deleted", "b/2@11")
	o.expectEcho("the watch shows it", o.event(at("a", "1", "12"), true), true)
	o.expectEmpty()
	o.expect("shown", "b/2@11")
}

// TestFinalizerHoldsWhatWeDeleted: the end of one that a finalizer held is news.
func TestFinalizerHoldsWhatWeDeleted(t *testing.T) {
	o := newOverlaid(t)
	o.event(at("a", "1", "10"), false)
	o.Deleted(at("a", "1", "10"))
	held := at("a", "1", "12")
	held.Deleting = true
	o.expectEcho("the deletion is only marked", o.event(held, false), false)
	o.expect("it is still there", "a/1@12")
	o.expectEmpty()
	o.expectEcho("the finalizer goes", o.event(at("a", "1", "13"), true), false)
	o.expect("gone", "")
}

// TestWatchBeatsTheDeletion: nothing is kept that no event can confirm.
func TestWatchBeatsTheDeletion(t *testing.T) {
	o := newOverlaid(t)
	o.event(at("a", "1", "10"), false)
	o.event(at("a", "1", "11"), true)
	o.Deleted(at("a", "1", "10"))
	o.expectEmpty()
	o.event(at("a", "2", "20"), false)
	o.Deleted(at("a", "1", "10"))
	o.expect("another one of that name came", "a/2@20")
	o.expectEmpty()
}

func TestExpiredWritesGo(t *testing.T) {
	o := newOverlaid(t)
	o.Wrote(at("a", "1", "10"))
	o.now = o.now.Add(ownWriteTTL)
	o.expect("never confirmed", "")
	o.expectEmpty()
}

func TestReplacement(t *testing.T) {
	o := newOverlaid(t)
	o.event(at("a", "1", "10"), false)
	o.Deleted(at("a", "1", "10"))
	o.Wrote(at("a", "2", "12"))
	o.expect("replaced", "a/2@12")
	o.expectEcho("the old one goes", o.event(at("a", "1", "11"), true), false)
	o.expect("the old one went", "a/2@12")
	o.expectEcho("the new one comes", o.event(at("a", "2", "12"), false), true)
	o.expectEmpty()
	o.expect("shown", "a/2@12")
}

func TestDeletedAndMadeBySomebody(t *testing.T) {
	o := newOverlaid(t)
	o.event(at("a", "1", "10"), false)
	o.Deleted(at("a", "1", "10"))
	o.expectEcho("another one of that name", o.event(at("a", "9", "20"), false), false)
	o.expect("it is there", "a/9@20")
}

func TestOwnWritesExpire(t *testing.T) {
	o := newOverlaid(t)
	o.event(at("b", "2", "5"), false)
	o.Wrote(at("a", "1", "10"))
	o.Deleted(at("b", "2", "5"))
	o.now = o.now.Add(ownWriteTTL - 1)
	o.expect("believed to the last moment", "a/1@10")
	o.now = o.now.Add(1)
	o.expect("what the watch shows is right again", "b/2@5")
	o.event(at("c", "3", "11"), false)
	o.expectEmpty()
}

func TestOtherPodsAreNotConcerned(t *testing.T) {
	o := newOverlaid(t)
	o.Wrote(changed(func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].Name = "other" }))
	o.Wrote(changed(func(cm *corev1.ConfigMap) { cm.Namespace = "other" }))
	o.expect("others' writes", "")
}
