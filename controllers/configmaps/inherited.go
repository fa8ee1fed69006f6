// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
)

// inherited are the pods that were there when this manager began to lead, and
// that it has not looked at yet. What the one before told of them, as their
// config's status shows, is not told by Events again.
type inherited struct {
	mu   sync.Mutex
	pods sets.Set[types.NamespacedName]
}

func newInherited() *inherited { return &inherited{pods: sets.New[types.NamespacedName]()} }

func (i *inherited) add(pod types.NamespacedName) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pods.Insert(pod)
}

// take tells whether the pod is one of them; from then on it is not.
func (i *inherited) take(pod types.NamespacedName) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	is := i.pods.Has(pod)
	i.pods.Delete(pod)
	return is
}
