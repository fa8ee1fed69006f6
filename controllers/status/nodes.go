// SPDX-License-Identifier: Apache-2.0

package status

import (
	"maps"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// reports are what the node agents told, by config. Its methods may be called
// from several goroutines.
type reports struct {
	mu sync.Mutex
	// byNode holds which configs a node has reported on, and that it has.
	byNode   map[string][]types.NamespacedName
	byConfig map[types.NamespacedName]map[string]v1alpha1.EBPFNodeConfig
}

func newReports() *reports {
	return &reports{byNode: map[string][]types.NamespacedName{}, byConfig: map[types.NamespacedName]map[string]v1alpha1.EBPFNodeConfig{}}
}

// set takes a node's report in, and returns the configs that it changes. A node
// that reports for the first time, or no longer, may matter to every config: then
// all is true.
func (r *reports) set(node string, configs []v1alpha1.EBPFNodeConfig) (changed []types.NamespacedName, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, known := r.byNode[node]
	now := make([]types.NamespacedName, 0, len(configs))
	for _, c := range configs {
		key := types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
		now = append(now, key)
		of := r.byConfig[key]
		if of == nil {
			of = map[string]v1alpha1.EBPFNodeConfig{}
			r.byConfig[key] = of
		}
		if old, had := of[node]; !had || old != c {
			of[node] = c
			changed = append(changed, key)
		}
	}
	for _, key := range before {
		if !slices.Contains(now, key) {
			r.remove(key, node)
			changed = append(changed, key)
		}
	}
	r.byNode[node] = now
	return changed, !known
}

// drop forgets a node, and tells whether it was known. That may matter to every
// config.
func (r *reports) drop(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, known := r.byNode[node]
	for _, key := range before {
		r.remove(key, node)
	}
	delete(r.byNode, node)
	return known
}

func (r *reports) remove(key types.NamespacedName, node string) {
	delete(r.byConfig[key], node)
	if len(r.byConfig[key]) == 0 {
		delete(r.byConfig, key)
	}
}

// of returns the reports on a config, and which of the nodes have reported at all.
func (r *reports) of(config types.NamespacedName, nodes map[string]onNode) (map[string]v1alpha1.EBPFNodeConfig, map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reporting := map[string]bool{}
	for node := range nodes {
		_, reporting[node] = r.byNode[node]
	}
	return maps.Clone(r.byConfig[config]), reporting
}
