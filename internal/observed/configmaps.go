// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

const (
	ownerIndex = "owner"
	// ownWriteTTL bounds how long one of our own writes is believed that no
	// event confirms, as when a watch broke and somebody undid the write before
	// it was set up again.
	ownWriteTTL = time.Minute
)

// ConfigMaps are the ConfigMaps that carry the label generated-by-pcmc. Reads
// include the operator's own writes before the watch brings them back.
type ConfigMaps struct {
	*store[ConfigMap]

	mu     sync.Mutex
	writes map[types.NamespacedName][]ownWrite // by the owning pod
	now    func() time.Time
}

// ownWrite is what the operator knows to hold and the watch has not shown yet.
type ownWrite struct {
	configMap *ConfigMap // as written, or as it was before it was deleted
	deleted   bool
	at        time.Time
}

// NewConfigMaps returns a store of generated ConfigMaps. Without namespaces it
// watches all.
func NewConfigMaps(client rest.Interface, namespaces []string) (*ConfigMaps, error) {
	c := &ConfigMaps{writes: map[types.NamespacedName][]ownWrite{}, now: time.Now}
	var err error
	c.store, err = newStore[ConfigMap](client, source{
		resource: "configmaps", selector: v1alpha1.LabelGeneratedBy,
		fresh: func() object { return &corev1.ConfigMap{} }, fields: configMapFields, compact: c.compact,
		indexers: cache.Indexers{ownerIndex: byOwner},
	}, namespaces, 0)
	return c, err
}

func (c *ConfigMaps) compact(obj any) (any, error) {
	if cm, ok := obj.(*corev1.ConfigMap); ok {
		return c.Observe(cm), nil
	}
	return obj, nil
}

// Observe copies what the operator reads of a ConfigMap. What it keeps of it
// already is shared.
func (c *ConfigMaps) Observe(cm *corev1.ConfigMap) *ConfigMap {
	seen := describe(cm)
	if own := c.written(seen); own != nil {
		return own
	}
	seen.Data = DigestOf(cm.Data)
	seen.settle(c.Get(seen.Key()))
	return seen
}

// written returns what an own write made of a ConfigMap in exactly this version,
// or nil.
func (c *ConfigMaps) written(seen *ConfigMap) *ConfigMap {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.writes[seen.Owner()] {
		if is := w.configMap; !w.deleted && is.Name == seen.Name && is.UID == seen.UID && is.ResourceVersion == seen.ResourceVersion {
			return is
		}
	}
	return nil
}

func byOwner(obj any) ([]string, error) {
	cm, ok := obj.(*ConfigMap)
	if !ok || cm.OwnerName == "" {
		return nil, nil
	}
	return []string{cm.Owner().String()}, nil
}

// OwnedBy returns the ConfigMaps whose owner reference names the pod, whatever
// its UID.
func (c *ConfigMaps) OwnedBy(pod types.NamespacedName) []*ConfigMap {
	all := c.indexed(pod.Namespace, ownerIndex, pod.String())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(pod, c.expired)
	for _, w := range c.writes[pod] {
		all = w.overlay(all)
	}
	return all
}

// overlay puts the write in the place of what the watch showed last.
func (w ownWrite) overlay(all []*ConfigMap) []*ConfigMap {
	for i, seen := range all {
		if seen.Name != w.configMap.Name {
			continue
		}
		switch {
		case w.deleted && seen.UID == w.configMap.UID:
			return append(all[:i:i], all[i+1:]...)
		case !w.deleted && newer(w.configMap.ResourceVersion, seen.ResourceVersion):
			all[i] = w.configMap
		}
		return all
	}
	if w.deleted {
		return all
	}
	return append(all, w.configMap)
}

// Wrote remembers a ConfigMap as the API server answered it.
func (c *ConfigMaps) Wrote(cm *ConfigMap) { c.remember(ownWrite{configMap: cm}) }

// Deleted remembers that a ConfigMap was deleted.
func (c *ConfigMaps) Deleted(cm *ConfigMap) { c.remember(ownWrite{configMap: cm, deleted: true}) }

func (c *ConfigMaps) remember(w ownWrite) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.at = c.now()
	pod := w.configMap.Owner()
	c.forget(pod, func(other ownWrite) bool { return other.configMap.Name == w.configMap.Name })
	if c.watchWasFaster(w) {
		return // no event is left that would confirm it
	}
	c.writes[pod] = append(c.writes[pod], w)
}

// watchWasFaster tells whether the watch has shown a write before its answer
// came.
func (c *ConfigMaps) watchWasFaster(w ownWrite) bool {
	shown := c.Get(w.configMap.Key())
	switch {
	case w.deleted:
		return shown == nil || shown.UID != w.configMap.UID || shown.Deleting
	case shown == nil:
		return !newer(w.configMap.ResourceVersion, c.version(w.configMap.Namespace.Value()))
	default:
		// Not the informer's version: that runs ahead of what is shown.
		return !newer(w.configMap.ResourceVersion, shown.ResourceVersion)
	}
}

// Confirm takes note of an event that the watch brought, and tells whether it
// is just the echo of one of our own writes.
func (c *ConfigMaps) Confirm(cm *ConfigMap, deleted bool) (echo bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(cm.Owner(), func(w ownWrite) bool {
		if w.configMap.Name != cm.Name {
			return c.expired(w)
		}
		is, shown := w.confirmedBy(cm, deleted)
		echo = echo || is
		return shown
	})
	return echo
}

// confirmedBy tells whether an event about a ConfigMap of the write's name is
// its echo, and whether the watch now shows as much as the write does.
func (w ownWrite) confirmedBy(cm *ConfigMap, deleted bool) (echo, shown bool) {
	same := w.configMap.UID == cm.UID
	switch {
	case w.deleted && deleted:
		return same, same
	case w.deleted:
		// A finalizer holds it: its end will be news, not our echo.
		return false, same && cm.Deleting
	case deleted:
		return false, same
	default:
		return w.configMap.ResourceVersion == cm.ResourceVersion,
			!newer(w.configMap.ResourceVersion, cm.ResourceVersion)
	}
}

func (c *ConfigMaps) expired(w ownWrite) bool { return c.now().Sub(w.at) >= ownWriteTTL }

// forget drops the writes about a pod that the test selects; c.mu is held.
func (c *ConfigMaps) forget(pod types.NamespacedName, drop func(ownWrite) bool) {
	kept := c.writes[pod][:0]
	for _, w := range c.writes[pod] {
		if !drop(w) {
			kept = append(kept, w)
		}
	}
	if len(kept) == 0 {
		delete(c.writes, pod)
		return
	}
	c.writes[pod] = kept
}

// newer tells whether resource version a is later than b. What cannot be
// compared counts as newer, so that our own write is kept.
func newer(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || order > 0
}
