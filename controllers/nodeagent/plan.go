// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
)

const (
	// lingerTime is how long programs stay for a pod that is gone or over while
	// processes of it still run, as after a deletion by force.
	lingerTime = 30 * time.Second
	// lingerLook is how often the agent looks whether they still do.
	lingerLook = time.Second
)

// place is a pod's cgroup. The id tells one directory from another that takes
// its path later.
type place struct {
	path string
	id   uint64
}

// held is what the kernel holds for one pod, as far as the agent knows.
type held struct {
	slot  uint32
	taken bool
	// at is where the programs are; zero where an earlier agent put them there.
	at place

	firewall bool
	policy   string // the key of its rules; empty where an earlier agent set them
	own      []netip.Addr

	syscalls bool
	settings *syscallcount.Settings // nil where an earlier agent set them
}

// observation is all that planning for one pod needs.
type observation struct {
	pod    *Pod // nil: gone
	wanted wanted
	at     place // its path is empty while the pod has no cgroup
	// busy tells that processes run in the cgroup; overFor is how long the pod has
	// been gone or over.
	busy    bool
	overFor time.Duration
	held    held
	// canFilter and canCount tell what this node supports.
	canFilter, canCount bool
}

// plan is what to do for one pod, in this order.
type plan struct {
	detach, unwatch bool // first where something follows, last where nothing does
	take            bool
	attach, flip    bool // flip: nothing but the rules differ
	watch           bool
	release         bool
	linger          bool
}

// filter and count tell which programs the pod is to have now.
func (o *observation) filter() bool { return len(o.wanted.rules) > 0 && o.canFilter && o.at.path != "" }
func (o *observation) count() bool  { return o.wanted.syscalls != nil && o.canCount && o.at.path != "" }

// makePlan compares what is wanted with what is there. It is pure.
func makePlan(o *observation) plan {
	if o.lingers() {
		return plan{linger: o.held.taken}
	}
	p := plan{release: o.held.taken && !o.filter() && !o.count()}
	o.planFirewall(&p)
	o.planCounter(&p)
	p.take = (p.attach || p.watch) && !o.held.taken
	return p
}

// lingers tells whether a pod that is gone or over still runs, for now.
func (o *observation) lingers() bool {
	return (o.pod == nil || o.pod.Over) && o.busy && o.overFor < lingerTime
}

// moved tells whether the pod's cgroup is not the one that its programs are on.
func (o *observation) moved() bool { return o.held.at.path != "" && o.held.at != o.at }

func (o *observation) planFirewall(p *plan) {
	h, filter := &o.held, o.filter()
	p.detach = h.firewall && (!filter || o.moved())
	if !filter {
		return
	}
	p.attach = !h.firewall || o.moved() || h.policy == "" || !slices.Equal(h.own, o.own())
	p.flip = !p.attach && h.policy != o.policy()
}

func (o *observation) planCounter(p *plan) {
	h, count := &o.held, o.count()
	p.unwatch = h.syscalls && (!count || o.moved())
	p.watch = count && (!h.syscalls || o.moved() || !reflect.DeepEqual(h.settings, o.wanted.syscalls))
}

// runs tells whether the API says that the pod runs.
func (o *observation) runs() bool { return o.pod != nil && o.pod.Running }

// own are the addresses that are the pod's alone.
func (o *observation) own() []netip.Addr {
	if o.pod == nil || o.pod.HostNetwork {
		return nil
	}
	return o.pod.Addresses
}

// policy is the key of the rules that are wanted: equal rules have equal keys.
func (o *observation) policy() string {
	if len(o.wanted.rules) == 0 || o.pod == nil {
		return ""
	}
	return fmt.Sprint(o.wanted.rules, o.pod.Probes)
}

// policies compiles each set of rules once.
type policies struct {
	compiled, older map[string]*l4firewall.Policy
}

// policiesKept bounds what is remembered, twice: a compiled policy is 64 KiB. More
// than that many at a time are compiled again and again, which takes some 100 µs each.
const policiesKept = 64

func (p *policies) get(o *observation) *l4firewall.Policy {
	key := o.policy()
	policy := p.compiled[key]
	if policy == nil {
		policy = p.older[key]
	}
	if policy == nil {
		policy = l4firewall.Compile(o.wanted.rules, o.pod.Probes)
	}
	if p.compiled == nil || len(p.compiled) >= policiesKept {
		p.older, p.compiled = p.compiled, map[string]*l4firewall.Policy{}
	}
	p.compiled[key] = policy
	return policy
}
