// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
)

// served is a pod that has all that it wants.
func served() observation {
	o := observation{
		pod:       &Pod{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		wanted:    wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{1}}, rules: []l4firewall.Rules{{Ingress: true}}},
		at:        place{"/pod", 7},
		canFilter: true, canCount: true,
	}
	o.held = held{
		slot: 3, taken: true, at: o.at, firewall: true, policy: o.policy(), own: o.pod.Addresses,
		syscalls: true, settings: &syscallcount.Settings{Numbers: []uint16{1}},
	}
	return o
}

func TestPlan(t *testing.T) {
	end := plan{detach: true, unwatch: true, release: true}
	for name, tc := range map[string]struct {
		change func(*observation)
		want   plan
	}{
		"nothing to do":      {func(*observation) {}, plan{}},
		"a new pod":          {func(o *observation) { o.held = held{} }, plan{take: true, attach: true, watch: true}},
		"no cgroup yet":      {func(o *observation) { o.held, o.at = held{}, place{} }, plan{}},
		"its cgroup is gone": {func(o *observation) { o.at = place{} }, end},
		"its cgroup is another": {func(o *observation) { o.at.id++ },
			plan{detach: true, attach: true, unwatch: true, watch: true}},
		"it is gone":                   {func(o *observation) { o.pod, o.wanted = nil, wanted{} }, end},
		"it is gone, and still runs":   {func(o *observation) { o.pod, o.wanted, o.busy = nil, wanted{}, true }, plan{linger: true}},
		"it is gone, and runs forever": {func(o *observation) { o.pod, o.wanted, o.busy, o.overFor = nil, wanted{}, true, time.Minute }, end},
		"it is over":                   {func(o *observation) { o.pod, o.wanted = &Pod{Over: true}, wanted{} }, end},
		"no config is left":            {func(o *observation) { o.wanted = wanted{} }, end},
		"no config is left, it runs":   {func(o *observation) { o.wanted, o.busy = wanted{}, true }, end},
		"other rules":                  {func(o *observation) { o.wanted.rules = []l4firewall.Rules{{Egress: true}} }, plan{flip: true}},
		"other probes":                 {func(o *observation) { o.pod.Probes = []uint16{1} }, plan{flip: true}},
		"its addresses are known now":  {func(o *observation) { o.held.own = nil }, plan{attach: true}},
		"both":                         {func(o *observation) { o.held.own, o.pod.Probes = nil, []uint16{1} }, plan{attach: true}},
		"other system calls":           {func(o *observation) { o.wanted.syscalls = &syscallcount.Settings{} }, plan{watch: true}},
		"none in place of all":         {func(o *observation) { o.wanted.syscalls.Numbers, o.held.settings.Numbers = []uint16{}, nil }, plan{watch: true}},
		"only the firewall":            {func(o *observation) { o.wanted.syscalls = nil }, plan{unwatch: true}},
		"only the counter":             {func(o *observation) { o.wanted.rules = nil }, plan{detach: true}},
		"the counter, too": {func(o *observation) { o.held.syscalls, o.held.settings = false, nil },
			plan{watch: true}},
		"an earlier agent's": {func(o *observation) {
			o.held = held{slot: 3, taken: true, firewall: true, syscalls: true}
		}, plan{attach: true, watch: true}},
		"an earlier agent's, not wanted": {func(o *observation) {
			o.held, o.wanted = held{slot: 3, taken: true, firewall: true, syscalls: true}, wanted{}
		}, end},
		"an earlier agent's slot alone": {func(o *observation) { o.pod, o.wanted, o.held = nil, wanted{}, held{taken: true} }, plan{release: true}},
		"the firewall is not supported": {func(o *observation) { o.held, o.canFilter = held{}, false }, plan{take: true, watch: true}},
		"nothing is supported":          {func(o *observation) { o.held, o.canFilter, o.canCount = held{}, false, false }, plan{}},
		"host network": {func(o *observation) { o.pod.HostNetwork, o.held.own = true, nil },
			plan{}},
	} {
		t.Run(name, func(t *testing.T) {
			o := served()
			tc.change(&o)
			if got := makePlan(&o); got != tc.want {
				t.Errorf("plan %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	r := registry{}
	b, a, none := newConfig("b", "", count()), newConfig("a", "", count()), newConfig("b", "", nil)
	later := *a
	later.Generation++
	for i, step := range []struct {
		config *Config
		change bool
		names  string
	}{{b, true, "b"}, {b, false, "b"}, {a, true, "ab"}, {&later, true, "ab"}, {none, true, "a"}, {none, false, "a"}} {
		changed, names := r.put(step.config), ""
		for _, c := range r["shop"] {
			names += c.Name
		}
		if changed != step.change || names != step.names {
			t.Errorf("step %d: changed %t, configs %q, want %t, %q", i, changed, names, step.change, step.names)
		}
	}
	if got := r.get(a.Key()); got != &later {
		t.Errorf("config a is %+v", got)
	}
	if !r.remove(a.Key()) || r.remove(a.Key()) || len(r) != 0 {
		t.Errorf("left %v", r)
	}
}

func TestTheOlderPodHasTheCgroup(t *testing.T) {
	i := newIntake()
	now := time.Now()
	old, claims := &Pod{Name: "old", UID: "u", ObjectUID: "1", Created: now}, &Pod{Name: "claims", UID: "u", ObjectUID: "2", Created: now.Add(time.Second)}
	i.podSeen(claims)
	i.podSeen(old)
	i.podSeen(claims)
	if got := i.take(); len(got) != 1 || got[0].pod != old {
		t.Errorf("took %+v", got)
	}
	i.podGone(claims)
	if got := i.take(); len(got) != 0 {
		t.Errorf("took %+v", got)
	}
	i.podGone(old)
	if got := i.take(); len(got) != 1 || got[0].pod != nil {
		t.Errorf("took %+v", got)
	}
}
