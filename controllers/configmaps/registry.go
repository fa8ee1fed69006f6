// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// registry holds every config, compiled once per generation.
type registry struct {
	mu      sync.RWMutex
	configs map[string][]*Config // by namespace, in the order of names; never changed in place
}

func newRegistry() *registry { return &registry{configs: map[string][]*Config{}} }

// inNamespace returns the configs of a namespace.
func (r *registry) inNamespace(namespace string) []*Config {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.configs[namespace]
}

func (r *registry) get(key types.NamespacedName) *Config {
	for _, c := range r.inNamespace(key.Namespace) {
		if c.Name == key.Name {
			return c
		}
	}
	return nil
}

// put adds a config, or a new generation of it.
func (r *registry) put(config *Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := without(r.configs[config.Namespace], config.Name)
	at, _ := slices.BinarySearchFunc(all, config.Name, func(c *Config, name string) int {
		return strings.Compare(c.Name, name)
	})
	r.configs[config.Namespace] = slices.Insert(all, at, config)
}

func (r *registry) remove(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if all := without(r.configs[key.Namespace], key.Name); len(all) > 0 {
		r.configs[key.Namespace] = all
	} else {
		delete(r.configs, key.Namespace)
	}
}

// without copies the configs but the named one.
func without(configs []*Config, name string) []*Config {
	all := make([]*Config, 0, len(configs)+1)
	for _, c := range configs {
		if c.Name != name {
			all = append(all, c)
		}
	}
	return all
}
