// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// intake takes in what watches and timers tell, and keeps for the reconciler
// which pods to look at. It is safe for concurrent use.
type intake struct {
	mu      sync.Mutex
	pods    map[types.UID]*Pod
	configs registry
	dirty   map[types.UID]struct{}
	wake    chan struct{} // has an element while there may be dirty pods
}

func newIntake() *intake {
	return &intake{
		pods: map[types.UID]*Pod{}, configs: registry{}, dirty: map[types.UID]struct{}{}, wake: make(chan struct{}, 1),
	}
}

// podSeen takes in a pod that is new or changed. Of two that claim one cgroup,
// as only mirror pods can, the older one has it.
func (i *intake) podSeen(pod *Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	old := i.pods[pod.UID]
	if old != nil && old.ObjectUID != pod.ObjectUID && !pod.Created.Before(old.Created) {
		return
	}
	i.pods[pod.UID] = pod
	i.mark(pod.UID)
}

func (i *intake) podGone(pod *Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if known := i.pods[pod.UID]; known != nil && known.ObjectUID == pod.ObjectUID {
		delete(i.pods, pod.UID)
		i.mark(pod.UID)
	}
}

func (i *intake) configSeen(config *Config) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.configs.put(config) {
		i.markNamespace(config.Namespace)
	}
}

func (i *intake) configGone(key types.NamespacedName) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.configs.remove(key) {
		i.markNamespace(key.Namespace)
	}
}

// look has the pods looked at.
func (i *intake) look(uids ...types.UID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.mark(uids...)
}

func (i *intake) markNamespace(namespace string) {
	for uid, pod := range i.pods {
		if pod.Namespace == namespace {
			i.mark(uid)
		}
	}
}

func (i *intake) mark(uids ...types.UID) {
	for _, uid := range uids {
		i.dirty[uid] = struct{}{}
	}
	select {
	case i.wake <- struct{}{}:
	default: // it is to wake already
	}
}

// sighted is what the intake knows of one pod to look at.
type sighted struct {
	uid     types.UID
	pod     *Pod // nil: gone
	configs []*Config
}

// take returns the pods to look at, and counts them as looked at.
func (i *intake) take() []sighted {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := make([]sighted, 0, len(i.dirty))
	for uid := range i.dirty {
		s := sighted{uid: uid, pod: i.pods[uid]}
		if s.pod != nil {
			s.configs = i.configs[s.pod.Namespace]
		}
		all = append(all, s)
	}
	clear(i.dirty)
	return all
}

// known tells how many pods there are.
func (i *intake) known() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.pods)
}
