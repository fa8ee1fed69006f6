// SPDX-License-Identifier: Apache-2.0

package status

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/subsystem"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// asks is a config that asks for the firewall.
func asks() *v1alpha1.PodConfigMapConfig {
	pcmc := config()
	pcmc.Spec.EBPFConfig = &v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{Enabled: true}}
	return pcmc
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

const disabled = `the operator's feature flag EBPF_ENABLED is off: set it to "true" in the Subscription's spec.config.env (OLM), by --set ebpf.enabled=true (Helm), or on the manager's Deployment`

func TestEBPFNotAskedFor(t *testing.T) {
	off := config()
	off.Spec.EBPFConfig = &v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{}}
	for name, tc := range map[string]struct {
		pcmc        *v1alpha1.PodConfigMapConfig
		enabled     bool
		want, ready string
	}{
		"not asked for":              {config(), true, "False NotRequested: spec.ebpfConfig enables neither syscallMonitoring nor l4Firewall", "True Ready: every matching pod is served"},
		"switched off in the config": {off, false, "False NotRequested: spec.ebpfConfig enables neither syscallMonitoring nor l4Firewall", "True Ready: every matching pod is served"},
		"the flag is off":            {asks(), false, "False FeatureDisabled: " + disabled, "False FeatureDisabled: EBPFReady: " + disabled},
	} {
		t.Run(name, func(t *testing.T) {
			f := &ebpfFacts{enabled: tc.enabled, agents: subsystem.State{Refused: "no matter"}, nodes: map[string]onNode{"a": {1, 1}}}
			status := statusWith(tc.pcmc, &summary{}, f)
			if got := show(status, v1alpha1.ConditionEBPFReady); got != tc.want {
				t.Errorf("EBPFReady is\n%s, want\n%s", got, tc.want)
			}
			if got := show(status, v1alpha1.ConditionReady); got != tc.ready {
				t.Errorf("Ready is\n%s, want\n%s", got, tc.ready)
			}
			if status.EBPF != nil {
				t.Errorf("counts %+v", status.EBPF)
			}
		})
	}
}

func TestEBPFReady(t *testing.T) {
	// on is a node's report: desired, attached, failed, unsupported.
	on := func(counts [4]int32, message string) *v1alpha1.EBPFNodeConfig {
		return &v1alpha1.EBPFNodeConfig{Namespace: "n", Name: "c", Generation: generation,
			Desired: counts[0], Attached: counts[1], Failed: counts[2], Unsupported: counts[3], Message: message}
	}
	old := on([4]int32{1, 1, 0, 0}, "")
	old.Generation--
	type nodes map[string]struct {
		onNode
		silent bool // it has no EBPFNode
		report *v1alpha1.EBPFNodeConfig
	}
	one := func(pods onNode, report *v1alpha1.EBPFNodeConfig) nodes { return nodes{"a": {pods, false, report}} }
	const see = "; see kubectl -n operators get pods -l app.kubernetes.io/component=agent -o wide, and AGENT_NODE_SELECTOR"
	for name, tc := range map[string]struct {
		nodes  nodes
		agents subsystem.State
		counts [3]int32 // attached, failed, unsupported
		want   string
	}{
		"no pods": {want: "True Attached: 0 matching pods on 0 nodes; those that run are served"},
		"one pod": {nodes: one(onNode{1, 1}, on([4]int32{1, 1, 0, 0}, "")), counts: [3]int32{1, 0, 0}, want: "True Attached: 1 matching pod on 1 node; those that run are served"},
		"two nodes": {
			nodes:  nodes{"a": {onNode{2, 2}, false, on([4]int32{2, 2, 0, 0}, "")}, "b": {onNode{1, 1}, false, on([4]int32{1, 1, 0, 0}, "")}},
			counts: [3]int32{3, 0, 0}, want: "True Attached: 3 matching pods on 2 nodes; those that run are served",
		},
		"a pod that does not run yet": {nodes: one(onNode{1, 0}, nil), want: "True Attached: 1 matching pod on 1 node; those that run are served"},
		"a pod that runs":             {nodes: one(onNode{1, 1}, nil), want: "False Progressing: waiting for 1 node agent: a"},
		"a pod more than the agent knows": {nodes: one(onNode{2, 2}, on([4]int32{1, 1, 0, 0}, "")), counts: [3]int32{1, 0, 0},
			want: "False Progressing: waiting for 1 node agent: a"},
		"a pod fewer than the agent knows": {nodes: one(onNode{1, 1}, on([4]int32{2, 2, 0, 0}, "")), counts: [3]int32{2, 0, 0},
			want: "True Attached: 1 matching pod on 1 node; those that run are served"},
		"the generation before": {nodes: one(onNode{1, 1}, old), counts: [3]int32{1, 0, 0}, want: "False Progressing: waiting for 1 node agent: a"},
		"under way":             {nodes: one(onNode{3, 3}, on([4]int32{3, 1, 0, 0}, "")), counts: [3]int32{1, 0, 0}, want: "False Progressing: waiting for 1 node agent: a"},
		"no agent": {nodes: nodes{"a": {onNode{1, 0}, true, nil}, "b": {onNode{1, 1}, false, on([4]int32{1, 1, 0, 0}, "")}}, counts: [3]int32{1, 0, 0},
			want: "False Progressing: no node agent has reported from 1 node yet: a" + see},
		"no agents": {nodes: nodes{"d": {onNode{1, 1}, true, nil}, "b": {onNode{1, 1}, true, nil}, "c": {onNode{1, 1}, true, nil}, "a": {onNode{1, 1}, true, nil}, "e": {onNode{1, 1}, true, nil}},
			want: "False Progressing: no node agent has reported from 5 nodes yet: a, b, c and 2 more" + see},
		"no agent can be deployed": {nodes: nodes{"a": {onNode{1, 1}, true, nil}}, agents: subsystem.State{Problem: "the image is not known"},
			want: "False Progressing: no node agent has reported from 1 node yet: a; the image is not known"},
		"a problem that no pod meets": {nodes: one(onNode{1, 1}, on([4]int32{1, 1, 0, 0}, "")), agents: subsystem.State{Problem: "the API server is away"}, counts: [3]int32{1, 0, 0},
			want: "True Attached: 1 matching pod on 1 node; those that run are served"},
		"an agent that is not ready": {
			nodes:  nodes{"a": {onNode{1, 1}, false, on([4]int32{1, 1, 0, 0}, "")}, "b": {onNode{2, 2}, false, on([4]int32{1, 1, 0, 0}, "")}},
			agents: subsystem.State{Silent: map[string]time.Time{"b": noon, "nobody": noon}}, counts: [3]int32{2, 0, 0},
			want: "False Progressing: 1 node agent not ready: b since 2026-01-01T12:00:00Z; pods served before keep their programs and rules; see kubectl -n operators get pods -l app.kubernetes.io/component=agent -o wide",
		},
		"one that was never heard of beats it": {
			nodes:  nodes{"a": {onNode{1, 1}, true, nil}, "b": {onNode{1, 1}, false, on([4]int32{1, 1, 0, 0}, "")}},
			agents: subsystem.State{Silent: map[string]time.Time{"a": noon, "b": noon}}, counts: [3]int32{1, 0, 0},
			want: "False Progressing: no node agent has reported from 1 node yet: a" + see,
		},
		"refused": {nodes: one(onNode{1, 1}, on([4]int32{1, 1, 0, 0}, "")), agents: subsystem.State{Refused: "label it"}, counts: [3]int32{1, 0, 0},
			want: "False AgentNotAdmitted: label it"},
		"refused, without pods": {agents: subsystem.State{Refused: "label it"}, want: "False AgentNotAdmitted: label it"},
		"unsupported": {
			nodes:  nodes{"a": {onNode{1, 1}, false, on([4]int32{1, 1, 0, 0}, "")}, "b": {onNode{2, 2}, false, on([4]int32{2, 0, 0, 2}, "no BTF; use a kernel with CONFIG_DEBUG_INFO_BTF")}},
			counts: [3]int32{1, 0, 2},
			want:   `False NodeUnsupported: 2 pods of 3 matching pods on nodes that cannot serve what the config asks for: node "b": 2 unsupported, no BTF; use a kernel with CONFIG_DEBUG_INFO_BTF`,
		},
		"failed beats unsupported": {
			nodes:  nodes{"a": {onNode{1, 1}, false, on([4]int32{1, 0, 1, 0}, "no memory")}, "b": {onNode{1, 1}, false, on([4]int32{1, 0, 0, 1}, "no BTF")}, "c": {onNode{1, 1}, true, nil}},
			counts: [3]int32{0, 1, 1},
			want:   `False AttachFailed: 1 pod of 3 matching pods not served; the agent tries again by itself, its log and the pods' Events tell more: node "a": 1 failed, no memory`,
		},
		"three nodes are named": {
			nodes: nodes{"a": {onNode{1, 1}, false, on([4]int32{1, 0, 1, 0}, "")}, "b": {onNode{1, 1}, false, on([4]int32{1, 0, 1, 0}, "")}, "c": {onNode{1, 1}, false, on([4]int32{1, 0, 1, 0}, "")},
				"d": {onNode{1, 1}, false, on([4]int32{1, 0, 1, 0}, "")}},
			counts: [3]int32{0, 4, 0},
			want:   `False AttachFailed: 4 pods of 4 matching pods not served; the agent tries again by itself, its log and the pods' Events tell more: node "a": 1 failed; node "b": 1 failed; node "c": 1 failed; and 1 more node`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &ebpfFacts{enabled: true, namespace: "operators", agents: tc.agents,
				nodes: map[string]onNode{}, reports: map[string]v1alpha1.EBPFNodeConfig{}, reporting: map[string]bool{}}
			for node, n := range tc.nodes {
				f.nodes[node], f.reporting[node] = n.onNode, !n.silent
				if n.report != nil {
					f.reports[node] = *n.report
				}
			}
			// What a node without matching pods tells is of no matter.
			f.reports["other"], f.reporting["other"] = *on([4]int32{9, 0, 9, 0}, "gone"), true
			status := statusWith(asks(), &summary{}, f)
			if got := show(status, v1alpha1.ConditionEBPFReady); got != tc.want {
				t.Errorf("EBPFReady is\n%s, want\n%s", got, tc.want)
			}
			if got := [3]int32{status.EBPF.AttachedPods, status.EBPF.FailedPods, status.EBPF.UnsupportedPods}; got != tc.counts {
				t.Errorf("counts %v, want %v", got, tc.counts)
			}
		})
	}
}

func TestNodesOf(t *testing.T) {
	pod := func(node string, phase corev1.PodPhase) *observed.Pod {
		return observed.NewPod(&corev1.Pod{Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}})
	}
	got := nodesOf([]*observed.Pod{
		pod("", corev1.PodPending), pod("a", corev1.PodPending), pod("a", corev1.PodRunning), pod("b", corev1.PodSucceeded),
		pod("b", corev1.PodFailed), pod("c", corev1.PodRunning), pod("c", corev1.PodRunning), pod("d", corev1.PodUnknown), pod("c", corev1.PodFailed),
	})
	want := map[string]onNode{"a": {2, 1}, "c": {2, 2}, "d": {1, 0}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("nodes %v, want %v", got, want)
	}
}

func TestHeld(t *testing.T) {
	condition := func(status metav1.ConditionStatus, reason string, generation int64) metav1.Condition {
		return metav1.Condition{Type: v1alpha1.ConditionEBPFReady, Status: status, Reason: reason, ObservedGeneration: generation}
	}
	attached, waits := condition(metav1.ConditionTrue, v1alpha1.ReasonAttached, 2), condition(metav1.ConditionFalse, v1alpha1.ReasonProgressing, 2)
	failed, off := condition(metav1.ConditionFalse, v1alpha1.ReasonAttachFailed, 2), condition(metav1.ConditionFalse, v1alpha1.ReasonFeatureDisabled, 2)
	for name, tc := range map[string]struct {
		before         []metav1.Condition
		now            metav1.Condition
		known, patient bool
		held           bool
	}{
		"the first":                         {nil, waits, true, true, false},
		"a node that has a moment more":     {[]metav1.Condition{attached}, waits, true, true, true},
		"a node that took too long":         {[]metav1.Condition{attached}, waits, true, false, false},
		"another generation":                {[]metav1.Condition{condition(metav1.ConditionTrue, v1alpha1.ReasonAttached, 1)}, waits, true, true, false},
		"a failure is told at once":         {[]metav1.Condition{attached}, failed, true, true, false},
		"and when it ends":                  {[]metav1.Condition{failed}, waits, true, true, false},
		"after a restart":                   {[]metav1.Condition{failed}, waits, false, false, true},
		"after a restart, another":          {[]metav1.Condition{condition(metav1.ConditionTrue, v1alpha1.ReasonAttached, 1)}, waits, false, false, false},
		"the flag went on":                  {[]metav1.Condition{off}, waits, false, false, false},
		"the flag went off":                 {[]metav1.Condition{attached}, off, false, false, false},
		"what it asked for is no longer so": {[]metav1.Condition{attached}, condition(metav1.ConditionFalse, v1alpha1.ReasonNotRequested, 2), true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, is := held(tc.before, tc.now, 2, tc.known, tc.patient)
			want := tc.now
			if tc.held {
				want = tc.before[0]
			}
			if is != tc.held || got != want {
				t.Errorf("held %t, %+v; want %t", is, got, tc.held)
			}
		})
	}
}

func TestReportPatience(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	m := &memory{now: func() time.Time { return now }, configs: map[types.NamespacedName]times{}}
	key := types.NamespacedName{Name: "a"}
	for i, look := range []struct {
		after time.Duration
		waits bool
		want  time.Duration
	}{
		{0, false, 0}, {0, true, 10 * time.Second}, {4 * time.Second, true, 6 * time.Second}, {7 * time.Second, true, 0},
		{time.Hour, true, 0}, {0, false, 0}, {0, true, 10 * time.Second},
	} {
		now = now.Add(look.after)
		if got := m.reportPatience(key, look.waits); got != look.want {
			t.Errorf("look %d: %v, want %v", i, got, look.want)
		}
	}
}

func TestReports(t *testing.T) {
	r := newReports()
	c := func(name string, attached int32) v1alpha1.EBPFNodeConfig {
		return v1alpha1.EBPFNodeConfig{Namespace: "n", Name: name, Attached: attached}
	}
	for i, tc := range []struct {
		node    string
		configs []v1alpha1.EBPFNodeConfig
		changed string
		all     bool
	}{
		{"a", nil, "", true},
		{"a", nil, "", false},
		{"a", []v1alpha1.EBPFNodeConfig{c("x", 1), c("y", 1)}, "x y", false},
		{"a", []v1alpha1.EBPFNodeConfig{c("x", 1), c("y", 2)}, "y", false},
		{"b", []v1alpha1.EBPFNodeConfig{c("x", 1)}, "x", true},
		{"a", []v1alpha1.EBPFNodeConfig{c("y", 2)}, "x", false},
		{"a", []v1alpha1.EBPFNodeConfig{c("y", 2)}, "", false},
	} {
		changed, all := r.set(tc.node, tc.configs)
		var names []string
		for _, key := range changed {
			names = append(names, key.Name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != tc.changed || all != tc.all {
			t.Errorf("report %d: changed %q, all %t; want %q, %t", i, got, all, tc.changed, tc.all)
		}
	}
	nodes := map[string]onNode{"a": {}, "b": {}, "c": {}}
	of, reporting := r.of(types.NamespacedName{Namespace: "n", Name: "x"}, nodes)
	if want := map[string]v1alpha1.EBPFNodeConfig{"b": c("x", 1)}; !reflect.DeepEqual(of, want) {
		t.Errorf("of x: %v, want %v", of, want)
	}
	if want := map[string]bool{"a": true, "b": true, "c": false}; !reflect.DeepEqual(reporting, want) {
		t.Errorf("reporting: %v, want %v", reporting, want)
	}
	if !r.drop("a") || !r.drop("b") || r.drop("c") {
		t.Error("it does not tell which nodes it knew")
	}
	if len(r.byConfig) > 0 || len(r.byNode) > 0 {
		t.Errorf("left over: %v, %v", r.byConfig, r.byNode)
	}
}
