// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
)

// waiting knows which pods wait for which ConfigMap's name to become free.
type waiting struct {
	mu    sync.Mutex
	pods  map[types.NamespacedName]sets.Set[types.NamespacedName] // by ConfigMap
	names map[types.NamespacedName][]string                       // by pod
}

func newWaiting() *waiting {
	return &waiting{pods: map[types.NamespacedName]sets.Set[types.NamespacedName]{}, names: map[types.NamespacedName][]string{}}
}

// set replaces the names that a pod waits for, and returns those that it does
// no longer.
func (w *waiting) set(pod types.NamespacedName, names []string) (left []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range w.names[pod] {
		if !slices.Contains(names, name) {
			left = append(left, name)
		}
		cm := types.NamespacedName{Namespace: pod.Namespace, Name: name}
		if w.pods[cm].Delete(pod); w.pods[cm].Len() == 0 {
			delete(w.pods, cm)
		}
	}
	delete(w.names, pod)
	for _, name := range names {
		cm := types.NamespacedName{Namespace: pod.Namespace, Name: name}
		if w.pods[cm] == nil {
			w.pods[cm] = sets.New[types.NamespacedName]()
		}
		w.pods[cm].Insert(pod)
		w.names[pod] = append(w.names[pod], name)
	}
	return left
}

// on returns the pods that wait for a ConfigMap's name.
func (w *waiting) on(cm types.NamespacedName) []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pods[cm].UnsortedList()
}
