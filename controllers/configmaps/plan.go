// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// verb is what a step does to one ConfigMap.
type verb string

const (
	keep    verb = "keep"    // it is right, or must not be touched
	create  verb = "create"  //
	update  verb = "update"  // patch data and labels
	replace verb = "replace" // delete and create: immutable, or another pod's of this name
	remove  verb = "remove"  // no config asks for it any more
)

// observation is all that planning for one pod reads.
type observation struct {
	pod *observed.Pod
	// targets are the configs that match the pod.
	targets []target
	// owned are the ConfigMaps whose owner reference names the pod.
	owned []*observed.ConfigMap
}

// target is a ConfigMap that a config wants for the pod.
type target struct {
	config *Config
	name   string
	// holder is the ConfigMap that has the name now, or nil.
	holder *observed.ConfigMap
	// foreign tells that the name was found taken a short while ago by a
	// ConfigMap that the caches do not show.
	foreign bool
}

// step is one decision, and what is known of it.
type step struct {
	verb    verb
	config  *Config // nil for remove
	name    string
	current *observed.ConfigMap
	data    map[string]string
	// failure says why a kept ConfigMap does not reflect its config.
	failure *ledger.Failure
	// waiting tells that a kept ConfigMap has to go first: it is being deleted.
	waiting bool
}

// makePlan decides what to do for a pod. It is pure.
func makePlan(seen observation) []step {
	steps := make([]step, 0, len(seen.targets)+1)
	wanted := make(map[string]bool, len(seen.targets))
	for i := range seen.targets {
		wanted[seen.targets[i].name] = true
		steps = append(steps, planTarget(seen.pod, &seen.targets[i]))
	}
	for _, cm := range seen.owned {
		if !wanted[cm.Name] && cm.OwnerUID == seen.pod.UID && cm.Ours() && !cm.Deleting {
			steps = append(steps, step{verb: remove, name: cm.Name, current: cm})
		}
	}
	return steps
}

func planTarget(pod *observed.Pod, t *target) step {
	s := step{verb: keep, config: t.config, name: t.name, current: t.holder}
	if s.failure = conflict(pod, t); s.failure != nil {
		return s
	}
	if s.data, s.failure = t.config.Render(pod); s.failure != nil {
		return s
	}
	switch {
	case t.holder == nil:
		s.verb = create
	case t.holder.Deleting:
		s.waiting = true
	case t.holder.OwnerUID != pod.UID || t.holder.Immutable:
		s.verb = replace
	case !reflects(t.holder, pod, t.config, s.data):
		s.verb = update
	}
	return s
}

// conflict tells whether the name is taken by what this pod may not touch: a
// ConfigMap that is not ours, or ours for another pod. One for an earlier pod of
// the same name is this pod's to replace.
func conflict(pod *observed.Pod, t *target) *ledger.Failure {
	switch {
	case t.foreign, t.holder != nil && !t.holder.Ours():
		return nameConflict("ConfigMap %q is needed for config %q, but exists and was not made by this operator; delete or rename it", t.name, t.config.Name)
	case t.holder != nil && t.holder.OwnerName != pod.Name:
		return nameConflict("ConfigMap %q is needed for config %q, but belongs to pod %q of config %q; rename the pod or the config, or wait until it is free",
			t.name, t.config.Name, t.holder.OwnerName, t.holder.Config.Value())
	}
	return nil
}

func nameConflict(format string, args ...any) *ledger.Failure {
	return &ledger.Failure{Reason: v1alpha1.ReasonNameConflict, Message: fmt.Sprintf(format, args...)}
}

// reflects tells whether the ConfigMap holds just the data and our labels.
func reflects(cm *observed.ConfigMap, pod *observed.Pod, config *Config, data map[string]string) bool {
	return cm.Config.Value() == config.Name && cm.PodUID == pod.UID && !cm.HasBinaryData && cm.Data == observed.DigestOf(data)
}

// present tells whether the pod has a ConfigMap of the step's config before
// anything is done.
func (s *step) present(pod types.UID) bool { return s.current != nil && s.current.OwnerUID == pod }
