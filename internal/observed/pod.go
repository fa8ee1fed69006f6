// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Text is a string that many objects share, such as a namespace, a node, an
// image or a label.
type Text = unique.Handle[string]

// Pod is what the operator keeps of a pod: what selectors and rendering read.
// It is immutable.
type Pod struct {
	Namespace       Text
	Name            string
	UID             types.UID
	ResourceVersion string

	Labels, Annotations Pairs

	NodeName, Phase, ServiceAccountName, QOSClass Text

	PodIPs, HostIPs []string
	Owner           Owner
	Containers      []Container
	StartTime       time.Time
}

// Owner is a pod's controller; both fields are empty where it has none.
type Owner struct{ Kind, Name Text }

// Container is one of a pod's containers, without init and ephemeral ones.
type Container struct{ Name, Image Text }

// NewPod copies what the operator reads of a pod; nothing of the original
// stays referenced.
func NewPod(pod *corev1.Pod) *Pod {
	p := describePod(pod)
	p.pack()
	return p
}

// describePod shares its strings with the original.
func describePod(pod *corev1.Pod) *Pod {
	p := &Pod{
		Namespace:          unique.Make(pod.Namespace),
		Name:               pod.Name,
		UID:                pod.UID,
		ResourceVersion:    pod.ResourceVersion,
		Labels:             newPairs(pod.Labels),
		Annotations:        newPairs(pod.Annotations),
		NodeName:           unique.Make(pod.Spec.NodeName),
		Phase:              unique.Make(string(pod.Status.Phase)),
		ServiceAccountName: unique.Make(pod.Spec.ServiceAccountName),
		QOSClass:           unique.Make(string(pod.Status.QOSClass)),
		Owner:              newOwner(metav1.GetControllerOf(pod)),
		Containers:         make([]Container, len(pod.Spec.Containers)),
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		p.Containers[i] = Container{Name: unique.Make(c.Name), Image: unique.Make(c.Image)}
	}
	p.setIPs(&pod.Status)
	if pod.Status.StartTime != nil {
		p.StartTime = pod.Status.StartTime.UTC()
	}
	return p
}

// settle takes the strings out of the original. Most changes of a pod are to what
// nobody reads here: whatever is as it was is shared with what was kept before, if
// anything was.
func (p *Pod) settle(before *Pod) {
	if before == nil || p.Name != before.Name || p.UID != before.UID ||
		!slices.Equal(p.PodIPs, before.PodIPs) || !slices.Equal(p.HostIPs, before.HostIPs) {
		p.pack()
		return
	}
	p.Name, p.UID, p.PodIPs, p.HostIPs = before.Name, before.UID, before.PodIPs, before.HostIPs
	p.ResourceVersion = strings.Clone(p.ResourceVersion)
	if slices.Equal(p.Labels, before.Labels) {
		p.Labels = before.Labels
	}
	if slices.Equal(p.Annotations, before.Annotations) {
		p.Annotations = before.Annotations
	}
	if slices.Equal(p.Containers, before.Containers) {
		p.Containers = before.Containers
	}
}

func (p *Pod) pack() {
	own := []*string{&p.Name, (*string)(&p.UID), &p.ResourceVersion}
	for _, ips := range [][]string{p.PodIPs, p.HostIPs} {
		for i := range ips {
			own = append(own, &ips[i])
		}
	}
	pack(own...)
}

// setIPs copies the addresses; old kubelets set the single ones only.
func (p *Pod) setIPs(status *corev1.PodStatus) {
	ips := make([]string, 0, max(1, len(status.PodIPs))+max(1, len(status.HostIPs)))
	for _, ip := range status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) == 0 && status.PodIP != "" {
		ips = append(ips, status.PodIP)
	}
	pods := len(ips)
	for _, ip := range status.HostIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) == pods && status.HostIP != "" {
		ips = append(ips, status.HostIP)
	}
	p.PodIPs, p.HostIPs = ips[:pods:pods], ips[pods:]
}

func newOwner(ref *metav1.OwnerReference) Owner {
	if ref == nil {
		return Owner{Kind: unique.Make(""), Name: unique.Make("")}
	}
	return Owner{Kind: unique.Make(ref.Kind), Name: unique.Make(ref.Name)}
}

// Key is the pod's namespace and name.
func (p *Pod) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace.Value(), Name: p.Name}
}

// Same tells whether nothing that selectors or rendering read differs, as after
// a heartbeat of the pod's status.
func (p *Pod) Same(other *Pod) bool {
	a, b := *p, *other
	a.ResourceVersion, b.ResourceVersion = "", ""
	return reflect.DeepEqual(a, b)
}

// GetObjectKind is part of runtime.Object, which informers ask for; it tells nothing.
func (p *Pod) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject is part of runtime.Object. What is immutable is its own copy.
func (p *Pod) DeepCopyObject() runtime.Object { return p }

// GetObjectMeta lets informers find the object's key; it allocates.
func (p *Pod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{
		Namespace: p.Namespace.Value(), Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
	}
}

// Pairs are labels or annotations, in the order of their keys. They implement
// labels.Labels.
type Pairs []Pair

// Pair is one label or annotation.
type Pair struct{ Key, Value Text }

func newPairs(m map[string]string) Pairs {
	if len(m) == 0 {
		return nil
	}
	pairs := make(Pairs, 0, len(m))
	for k, v := range m {
		pairs = append(pairs, Pair{unique.Make(k), unique.Make(v)})
	}
	slices.SortFunc(pairs, func(a, b Pair) int { return cmp.Compare(a.Key.Value(), b.Key.Value()) })
	return pairs
}

// Lookup returns a key's value, and whether the key is there.
func (p Pairs) Lookup(key string) (string, bool) {
	for i := range p {
		if p[i].Key.Value() == key {
			return p[i].Value.Value(), true
		}
	}
	return "", false
}

// Has tells whether the key is there.
func (p Pairs) Has(key string) bool { _, ok := p.Lookup(key); return ok }

// Get returns the key's value, or an empty string.
func (p Pairs) Get(key string) string { value, _ := p.Lookup(key); return value }

// Map makes a fresh map of the pairs.
func (p Pairs) Map() map[string]string {
	m := make(map[string]string, len(p))
	for i := range p {
		m[p[i].Key.Value()] = p[i].Value.Value()
	}
	return m
}
