// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"
	"reflect"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

func TestStatus(t *testing.T) {
	both := count()
	both.L4Firewall = &v1alpha1.L4Firewall{Enabled: true}
	a, b := newConfig("a", "", both), newConfig("b", "", count())
	facts := &NodeFacts{KernelVersion: "6.1", Architecture: "amd64", CgroupVersion: "v2", BTF: true, Features: []v1alpha1.EBPFNodeFeature{
		{Name: v1alpha1.FeatureSyscallCounter, Supported: true}, {Name: v1alpha1.FeatureL4Firewall, Reason: "it is old; renew it"},
	}}
	stands := func(name string, syscalls, firewall outcome, sources ...*Config) *standing {
		s := &standing{pod: &Pod{Namespace: "shop", Name: name}, sources: sources, syscalls: syscalls, firewall: firewall,
			counted: syscalls == atWork, filtered: firewall == atWork}
		if syscalls == failed {
			s.failures = append(s.failures, newFailure(SyscallCounter, errors.New("no luck")))
		}
		if firewall == failed {
			s.failures = append(s.failures, newFailure(L4Firewall, errors.New("no way")))
		}
		return s
	}
	config := func(name string, desired, attached, failed, unsupported int32, message string) v1alpha1.EBPFNodeConfig {
		return v1alpha1.EBPFNodeConfig{Namespace: "shop", Name: name, Generation: 3, Desired: desired, Attached: attached, Failed: failed, Unsupported: unsupported, Message: message}
	}
	const lacks = "L4Firewall is not supported: it is old; renew it"
	for name, tc := range map[string]struct {
		standings []*standing
		attached  int32
		want      []v1alpha1.EBPFNodeConfig
	}{
		"no pods":            {nil, 0, nil},
		"all at work":        {[]*standing{stands("p", atWork, atWork, a, b)}, 1, []v1alpha1.EBPFNodeConfig{config("a", 1, 1, 0, 0, ""), config("b", 1, 1, 0, 0, "")}},
		"one of two waits":   {[]*standing{stands("p", atWork, pending, a, b)}, 1, []v1alpha1.EBPFNodeConfig{config("a", 1, 0, 0, 0, ""), config("b", 1, 1, 0, 0, "")}},
		"both wait":          {[]*standing{stands("p", pending, pending, a)}, 0, []v1alpha1.EBPFNodeConfig{config("a", 1, 0, 0, 0, "")}},
		"the firewall lacks": {[]*standing{stands("p", atWork, unsupported, a, b), stands("q", atWork, unsupported, a)}, 2, []v1alpha1.EBPFNodeConfig{config("a", 2, 0, 0, 2, lacks), config("b", 1, 1, 0, 0, "")}},
		"one failed":         {[]*standing{stands("p", failed, atWork, b, a)}, 1, []v1alpha1.EBPFNodeConfig{config("a", 1, 0, 1, 0, `pod "p": no luck`), config("b", 1, 0, 1, 0, `pod "p": no luck`)}},
		"many failed": {[]*standing{stands("r", failed, notWanted, b), stands("q", failed, notWanted, b), stands("p", failed, notWanted, b), stands("s", failed, notWanted, b), stands("t", atWork, notWanted, b)}, 1,
			[]v1alpha1.EBPFNodeConfig{config("b", 5, 1, 4, 0, `pod "p": no luck; pod "q": no luck; pod "r": no luck; and 1 more`)}},
	} {
		t.Run(name, func(t *testing.T) {
			got := statusOf(facts, tc.standings)
			if got.AttachedPods != tc.attached || !reflect.DeepEqual(got.Configs, tc.want) {
				t.Errorf("%d attached, configs %+v; want %d, %+v", got.AttachedPods, got.Configs, tc.attached, tc.want)
			}
			if got.KernelVersion != "6.1" || got.Architecture != "amd64" || got.CgroupVersion != "v2" || !got.BTF || len(got.Features) != 2 {
				t.Errorf("facts %+v", got)
			}
			if ready := got.Conditions[0]; ready.Type != v1alpha1.ConditionReady || ready.Reason != v1alpha1.ReasonDegraded {
				t.Errorf("a node that lacks a feature is %+v", ready)
			}
		})
	}
	facts.Features[1] = v1alpha1.EBPFNodeFeature{Name: v1alpha1.FeatureL4Firewall, Supported: true}
	if ready := statusOf(facts, nil).Conditions[0]; ready.Reason != v1alpha1.ReasonServing {
		t.Errorf("a node that serves is %+v", ready)
	}
	if ready := statusOf(facts, []*standing{stands("p", failed, notWanted, b)}).Conditions[0]; ready.Reason != v1alpha1.ReasonDegraded {
		t.Errorf("with a pod that failed it is %+v", ready)
	}
}
