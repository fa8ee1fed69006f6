// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
)

const (
	// namedFailures is how many pods a config's message names.
	namedFailures = 3
	// maxMessage is what fits into a message of the report.
	maxMessage = 1024
	// maxConfigs is how many configs fit into the report.
	maxConfigs = 4096
)

// NodeFacts are what does not change while the agent runs.
type NodeFacts struct {
	KernelVersion, Architecture, CgroupVersion string
	BTF                                        bool
	Features                                   []v1alpha1.EBPFNodeFeature
}

// Supports tells whether the node supports a feature, and if not, why.
func (n *NodeFacts) Supports(feature v1alpha1.EBPFFeature) (supports bool, reason string) {
	for _, f := range n.Features {
		if f.Name == feature {
			return f.Supported, f.Reason
		}
	}
	return false, "not known"
}

// Report computes the status of the node's EBPFNode.
func (r *Reconciler) Report(facts *NodeFacts) *v1alpha1.EBPFNodeStatus {
	return statusOf(facts, r.board.all())
}

// statusOf is pure, but for the transition times of conditions, which it leaves
// empty.
func statusOf(facts *NodeFacts, standings []*standing) *v1alpha1.EBPFNodeStatus {
	status := &v1alpha1.EBPFNodeStatus{
		KernelVersion: facts.KernelVersion, Architecture: facts.Architecture, CgroupVersion: facts.CgroupVersion,
		BTF: facts.BTF, Features: facts.Features, AttachedPods: int32(attachedPods(standings)),
	}
	slices.SortFunc(standings, func(a, b *standing) int {
		return cmp.Or(strings.Compare(a.pod.Namespace, b.pod.Namespace), strings.Compare(a.pod.Name, b.pod.Name))
	})
	failedPods := 0
	sums := map[types.NamespacedName]*configSum{}
	for _, s := range standings {
		if len(s.failures) > 0 {
			failedPods++
		}
		for _, config := range s.sources {
			sum := sums[config.Key()]
			if sum == nil {
				sum = &configSum{facts: facts, EBPFNodeConfig: v1alpha1.EBPFNodeConfig{Namespace: config.Namespace, Name: config.Name, Generation: config.Generation}}
				sums[config.Key()] = sum
			}
			sum.add(config, s)
		}
	}
	for _, sum := range sums {
		status.Configs = append(status.Configs, sum.done())
	}
	slices.SortFunc(status.Configs, func(a, b v1alpha1.EBPFNodeConfig) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	status.Configs = status.Configs[:min(len(status.Configs), maxConfigs)]
	status.Conditions = []metav1.Condition{readyCondition(facts, failedPods)}
	return status
}

func attachedPods(standings []*standing) int {
	n := 0
	for _, s := range standings {
		if s.counted || s.filtered {
			n++
		}
	}
	return n
}

func readyCondition(facts *NodeFacts, failedPods int) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonServing, Message: "the node supports every feature, and every pod is served"}
	var problems []string
	for _, f := range facts.Features {
		if !f.Supported {
			problems = append(problems, fmt.Sprintf("%s is not supported: %s", f.Name, f.Reason))
		}
	}
	if failedPods > 0 {
		problems = append(problems, fmt.Sprintf("%d pod(s) could not be served; their Events say why", failedPods))
	}
	if len(problems) > 0 {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonDegraded, eventnote.Shorten(strings.Join(problems, ". "), maxMessage)
	}
	return c
}

// configSum sums up what became of one config's pods.
type configSum struct {
	v1alpha1.EBPFNodeConfig
	facts    *NodeFacts
	problems []string
	lacks    map[v1alpha1.EBPFFeature]bool
}

func (c *configSum) add(config *Config, s *standing) {
	// Of two pods that were looked at before and after a change, the older says
	// what the node has reached.
	c.Generation = min(c.Generation, config.Generation)
	c.Desired++
	var outcomes []outcome
	if config.syscalls != nil {
		outcomes = append(outcomes, c.outcome(s, SyscallCounter, v1alpha1.FeatureSyscallCounter))
	}
	if config.firewall != nil {
		outcomes = append(outcomes, c.outcome(s, L4Firewall, v1alpha1.FeatureL4Firewall))
	}
	switch slices.Max(outcomes) {
	case failed:
		c.Failed++
	case unsupported:
		c.Unsupported++
	case atWork:
		if !slices.Contains(outcomes, pending) {
			c.Attached++
		}
	}
}

func (c *configSum) outcome(s *standing, program Program, feature v1alpha1.EBPFFeature) outcome {
	o := s.of(program)
	switch o {
	case unsupported:
		if c.lacks == nil {
			c.lacks = map[v1alpha1.EBPFFeature]bool{}
		}
		if !c.lacks[feature] {
			_, reason := c.facts.Supports(feature)
			c.problems = append(c.problems, fmt.Sprintf("%s is not supported: %s", feature, reason))
		}
		c.lacks[feature] = true
	case failed:
		for _, f := range s.failures {
			if f.program == program {
				c.problems = append(c.problems, fmt.Sprintf("pod %q: %v", s.pod.Name, f.err))
			}
		}
	}
	return o
}

func (c *configSum) done() v1alpha1.EBPFNodeConfig {
	named := c.problems[:min(len(c.problems), namedFailures)]
	c.Message = strings.Join(named, "; ")
	if more := len(c.problems) - len(named); more > 0 {
		c.Message += fmt.Sprintf("; and %d more", more)
	}
	c.Message = eventnote.Shorten(c.Message, maxMessage)
	return c.EBPFNodeConfig
}
