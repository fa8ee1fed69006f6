// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// FieldManager is the name under which the operator writes.
const FieldManager = "podconfigmap-controller"

// Digest stands for a ConfigMap's data.
type Digest [16]byte

// DigestOf computes the digest of data; equal data have equal digests.
func DigestOf(data map[string]string) Digest {
	hash := sha256.New()
	var size [8]byte
	for _, key := range slices.Sorted(maps.Keys(data)) {
		value := data[key]
		binary.LittleEndian.PutUint32(size[:4], uint32(len(key)))
		binary.LittleEndian.PutUint32(size[4:], uint32(len(value)))
		hash.Write(size[:])
		hash.Write([]byte(key))
		hash.Write([]byte(value))
	}
	return Digest(hash.Sum(nil)[:len(Digest{})])
}

// ConfigMap is what the operator keeps of a ConfigMap. It is immutable.
type ConfigMap struct {
	Namespace       Text
	Name            string
	UID             types.UID
	ResourceVersion string

	// Config is the value of the label generated-by-pcmc, PodUID that of pod-uid.
	Config Text
	PodUID types.UID

	// OwnerName and OwnerUID are the owner reference's to a pod; empty without one.
	OwnerName string
	OwnerUID  types.UID

	Data Digest

	HasBinaryData bool
	Immutable     bool
	Deleting      bool
	WrittenByUs   bool // our field manager stands in its managed fields
	// Plain tells that its metadata hold nothing beyond what the operator writes, so
	// that an update of the whole takes nothing away.
	Plain bool
}

// NewConfigMap copies what the operator reads of a ConfigMap.
func NewConfigMap(cm *corev1.ConfigMap) *ConfigMap {
	c := describe(cm)
	c.Data = DigestOf(cm.Data)
	c.pack()
	return c
}

// describe has all but the digest, and shares its strings with the original.
func describe(cm *corev1.ConfigMap) *ConfigMap {
	c := &ConfigMap{
		Namespace:       unique.Make(cm.Namespace),
		Name:            cm.Name,
		UID:             cm.UID,
		ResourceVersion: cm.ResourceVersion,
		Config:          unique.Make(cm.Labels[v1alpha1.LabelGeneratedBy]),
		PodUID:          types.UID(cm.Labels[v1alpha1.LabelPodUID]),
		HasBinaryData:   len(cm.BinaryData) > 0,
		Immutable:       cm.Immutable != nil && *cm.Immutable,
		Deleting:        cm.DeletionTimestamp != nil,
		Plain:           isPlain(&cm.ObjectMeta),
	}
	for i := range cm.OwnerReferences {
		if ref := &cm.OwnerReferences[i]; ref.Kind == "Pod" && ref.APIVersion == "v1" {
			c.OwnerName, c.OwnerUID = ref.Name, ref.UID
			break
		}
	}
	for i := range cm.ManagedFields {
		c.WrittenByUs = c.WrittenByUs || cm.ManagedFields[i].Manager == FieldManager
	}
	return c
}

func isPlain(m *metav1.ObjectMeta) bool {
	if len(m.Annotations) > 0 || len(m.Finalizers) > 0 || m.GenerateName != "" {
		return false
	}
	for key := range m.Labels {
		if key != v1alpha1.LabelGeneratedBy && key != v1alpha1.LabelPodUID {
			return false
		}
	}
	return len(m.OwnerReferences) == 1 && isPlainOwner(&m.OwnerReferences[0])
}

// isPlainOwner tells whether an owner reference is as the operator writes it.
func isPlainOwner(ref *metav1.OwnerReference) bool {
	return ref.APIVersion == "v1" && ref.Kind == "Pod" && ref.Controller != nil && *ref.Controller && ref.BlockOwnerDeletion == nil
}

// settle takes the strings out of the original: those that are as they were are
// shared with what was kept before, if anything was.
func (c *ConfigMap) settle(before *ConfigMap) {
	if before == nil || c.Name != before.Name || c.UID != before.UID || c.PodUID != before.PodUID ||
		c.OwnerName != before.OwnerName || c.OwnerUID != before.OwnerUID {
		c.pack()
		return
	}
	c.Name, c.UID, c.PodUID = before.Name, before.UID, before.PodUID
	c.OwnerName, c.OwnerUID = before.OwnerName, before.OwnerUID
	c.ResourceVersion = strings.Clone(c.ResourceVersion)
}

// pack makes one string in memory of several; the pod's name and UID mostly
// stand in others of them.
func (c *ConfigMap) pack() {
	own := []*string{&c.Name, (*string)(&c.UID), &c.ResourceVersion, (*string)(&c.PodUID)}
	sameUID, at := c.OwnerUID == c.PodUID, strings.Index(c.Name, c.OwnerName)
	if !sameUID {
		own = append(own, (*string)(&c.OwnerUID))
	}
	if at < 0 {
		own = append(own, &c.OwnerName)
	}
	pack(own...)
	if sameUID {
		c.OwnerUID = c.PodUID
	}
	if at >= 0 {
		c.OwnerName = c.Name[at : at+len(c.OwnerName)]
	}
}

// Key is the ConfigMap's namespace and name.
func (c *ConfigMap) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace.Value(), Name: c.Name}
}

// Owner is the key of the pod that the ConfigMap's owner reference names; its
// name is empty where there is none.
func (c *ConfigMap) Owner() types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace.Value(), Name: c.OwnerName}
}

// Ours tells whether the operator may write or delete the ConfigMap: it is
// owned by a pod and carries our labels or our field manager.
func (c *ConfigMap) Ours() bool {
	return c.OwnerUID != "" && (c.Config.Value() != "" || c.PodUID != "" || c.WrittenByUs)
}

// GetObjectKind is part of runtime.Object, which informers ask for; it tells nothing.
func (c *ConfigMap) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject is part of runtime.Object. What is immutable is its own copy.
func (c *ConfigMap) DeepCopyObject() runtime.Object { return c }

// GetObjectMeta lets informers find the object's key; it allocates.
func (c *ConfigMap) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{
		Namespace: c.Namespace.Value(), Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion,
	}
}
