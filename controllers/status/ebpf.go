// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/subsystem"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// namedNodes is how many nodes a condition names.
const namedNodes = 3

// reportPatience is how long EBPFReady stays True while a node has not reported
// on a new pod yet: agents report at most every five seconds.
const reportPatience = 10 * time.Second

// onNode are the matching pods of one node that have not finished.
type onNode struct{ pods, running int }

// ebpfFacts are what the condition EBPFReady is made of.
type ebpfFacts struct {
	enabled bool
	// namespace is the agents'.
	namespace string
	agents    subsystem.State
	nodes     map[string]onNode
	// reports are the agents' on this config, by node; reporting are the nodes
	// that have an agent's report at all.
	reports   map[string]v1alpha1.EBPFNodeConfig
	reporting map[string]bool
}

// nodesOf counts the pods that a node has to serve.
func nodesOf(pods []*observed.Pod) map[string]onNode {
	nodes := map[string]onNode{}
	for _, pod := range pods {
		name, phase := pod.NodeName.Value(), corev1.PodPhase(pod.Phase.Value())
		if name == "" || phase == corev1.PodSucceeded || phase == corev1.PodFailed {
			continue
		}
		n := nodes[name]
		n.pods++
		if phase == corev1.PodRunning {
			n.running++
		}
		nodes[name] = n
	}
	return nodes
}

// tally sorts the nodes of a config by what became of its pods there.
type tally struct {
	v1alpha1.EBPFStatus
	pods int
	// failed, unsupported and behind are nodes in the order of their names, absent
	// those without any agent's report, silent those with one whose agent is not ready.
	failed, unsupported, behind, absent, silent []string
}

func (f *ebpfFacts) tally(generation int64) *tally {
	t := &tally{}
	for _, node := range slices.Sorted(maps.Keys(f.nodes)) {
		has := f.nodes[node]
		t.pods += has.pods
		report, reported := f.reports[node]
		t.AttachedPods += report.Attached
		t.FailedPods += report.Failed
		t.UnsupportedPods += report.Unsupported
		if report.Failed > 0 {
			t.failed = append(t.failed, node)
		}
		if report.Unsupported > 0 {
			t.unsupported = append(t.unsupported, node)
		}
		done := report.Attached + report.Failed + report.Unsupported
		switch {
		case !f.reporting[node]:
			t.absent = append(t.absent, node)
		case !f.agents.Silent[node].IsZero():
			t.silent = append(t.silent, node)
		// A pod that is not running yet may be unknown to the agent.
		case !reported && has.running == 0:
		case !reported, report.Generation != generation, done < report.Desired, int(report.Desired) < has.running:
			t.behind = append(t.behind, node)
		}
	}
	return t
}

// ebpfReady is the condition of the eBPF features that the config asks for, and
// the counts, which are nil where there is nothing to count.
func ebpfReady(pcmc *v1alpha1.PodConfigMapConfig, f *ebpfFacts) (metav1.Condition, *v1alpha1.EBPFStatus) {
	c := metav1.Condition{Type: v1alpha1.ConditionEBPFReady, Status: metav1.ConditionFalse}
	switch {
	case !pcmc.Spec.EBPFConfig.Requested():
		c.Reason, c.Message = v1alpha1.ReasonNotRequested, "spec.ebpfConfig enables neither syscallMonitoring nor l4Firewall"
		return c, nil
	case !f.enabled:
		c.Reason = v1alpha1.ReasonFeatureDisabled
		c.Message = "the operator's feature flag EBPF_ENABLED is off: set it to \"true\" in the Subscription's spec.config.env (OLM), by --set ebpf.enabled=true (Helm), or on the manager's Deployment"
		return c, nil
	}
	t := f.tally(pcmc.Generation)
	switch {
	case f.agents.Refused != "":
		c.Reason, c.Message = v1alpha1.ReasonAgentNotAdmitted, f.agents.Refused
	case len(t.failed) > 0:
		c.Reason = v1alpha1.ReasonAttachFailed
		c.Message = fmt.Sprintf("%s of %s not served; the agent tries again by itself, its log and the pods' Events tell more: %s",
			count(int(t.FailedPods), "pod"), count(t.pods, "matching pod"), f.name(t.failed, "failed", func(r v1alpha1.EBPFNodeConfig) int32 { return r.Failed }))
	case len(t.unsupported) > 0:
		c.Reason = v1alpha1.ReasonNodeUnsupported
		c.Message = fmt.Sprintf("%s of %s on nodes that cannot serve what the config asks for: %s",
			count(int(t.UnsupportedPods), "pod"), count(t.pods, "matching pod"), f.name(t.unsupported, "unsupported", func(r v1alpha1.EBPFNodeConfig) int32 { return r.Unsupported }))
	case len(t.absent) > 0:
		c.Reason, c.Message = v1alpha1.ReasonProgressing, f.absentMessage(t.absent)
	case len(t.silent) > 0:
		c.Reason, c.Message = v1alpha1.ReasonProgressing, f.silentMessage(t.silent)
	case len(t.behind) > 0:
		c.Reason = v1alpha1.ReasonProgressing
		c.Message = fmt.Sprintf("waiting for %s: %s", count(len(t.behind), "node agent"), list(t.behind))
	default:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonAttached
		c.Message = fmt.Sprintf("%s on %s; those that run are served", count(t.pods, "matching pod"), count(len(f.nodes), "node"))
	}
	return c, &t.EBPFStatus
}

// name lists nodes with how many of their pods are meant, and their agents' words.
func (f *ebpfFacts) name(nodes []string, what string, of func(v1alpha1.EBPFNodeConfig) int32) string {
	var parts []string
	for i, node := range nodes {
		if i == namedNodes {
			parts = append(parts, "and "+count(len(nodes)-i, "more node"))
			break
		}
		part := fmt.Sprintf("node %q: %d %s", node, of(f.reports[node]), what)
		if said := f.reports[node].Message; said != "" {
			part += ", " + said
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

func (f *ebpfFacts) absentMessage(nodes []string) string {
	message := fmt.Sprintf("no node agent has reported from %s yet: %s; ", count(len(nodes), "node"), list(nodes))
	if f.agents.Problem != "" {
		return message + f.agents.Problem
	}
	return message + fmt.Sprintf("see kubectl -n %s get pods -l app.kubernetes.io/component=agent -o wide, and AGENT_NODE_SELECTOR", f.namespace)
}

// silentMessage names nodes whose agent may know nothing of what is new: nothing tells
// whether it is at work there.
func (f *ebpfFacts) silentMessage(nodes []string) string {
	since := make([]string, len(nodes))
	for i, node := range nodes {
		since[i] = node + " since " + f.agents.Silent[node].Format(time.RFC3339)
	}
	return fmt.Sprintf("%s not ready: %s; pods served before keep their programs and rules; see kubectl -n %s get pods -l app.kubernetes.io/component=agent -o wide",
		count(len(nodes), "node agent"), list(since), f.namespace)
}

func list(nodes []string) string {
	if more := len(nodes) - namedNodes; more > 0 {
		return strings.Join(nodes[:namedNodes], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(nodes, ", ")
}

// held returns the condition of before where it still stands: nothing is known
// yet of the agents, as after a restart, or a node has been asked a moment ago.
func held(before []metav1.Condition, now metav1.Condition, generation int64, known, patient bool) (metav1.Condition, bool) {
	was := meta.FindStatusCondition(before, now.Type)
	if was == nil || was.ObservedGeneration != generation {
		return now, false
	}
	switch now.Reason {
	case v1alpha1.ReasonNotRequested, v1alpha1.ReasonFeatureDisabled:
		return now, false
	}
	waits := now.Reason == v1alpha1.ReasonProgressing && was.Status == metav1.ConditionTrue && patient
	if was.Reason != v1alpha1.ReasonFeatureDisabled && !known || waits {
		return *was, true
	}
	return now, false
}
