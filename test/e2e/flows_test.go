// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// flow is one pod's tries, all the time, to reach another. A flow that passes must
// reach it each time; one that does not, never.
type flow struct {
	id       string
	from, to *corev1.Pod
	network  string
	address  string
	passes   bool
}

func (f *flow) String() string {
	return fmt.Sprintf("%s %s from %s to %s", f.network, f.address, f.from.Name, f.to.Name)
}

// touches tells whether one of its pods is on the node.
func (f *flow) touches(node string) bool {
	return f.from.Spec.NodeName == node || f.to.Spec.NodeName == node
}

const (
	// flowPause is between two tries of a flow.
	flowPause = "150ms"
	// flowLimit of one that passes says only that nothing hangs for ever.
	flowLimit = "60s"
	// probeLimit is how long one that does not pass listens for an answer.
	probeLimit = "500ms"
)

// bustle is pods on all nodes and their flows to pods of the next node: from pods that
// nothing is filtered of to pods whose ingress is, and from pods whose egress is.
type bustle struct {
	in, out, plain []*corev1.Pod // by node
	networks       []string      // of the flows
	flows          []*flow
	begun          int                // flows so far: each has an id of its own
	past           tally              // of flows that have ended
	sent           map[string]*sent   // of those, by pod
	calls          map[string]float64 // system calls that were made, by pod
	watch          *watch
}

// newBustle makes the pods, and begins all flows, by TCP, UDP or both.
func newBustle(p *point, networks ...string) *bustle {
	p.Helper()
	b := &bustle{networks: networks, calls: map[string]float64{}, sent: map[string]*sent{}}
	p.config("in", v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{
		Enabled: true, DefaultAction: v1alpha1.FirewallActionBlock, AllowedPorts: []v1alpha1.Port{openPort, control},
	}})
	p.config("out", v1alpha1.EBPFConfig{
		SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: []v1alpha1.SyscallName{callName}},
		L4Firewall: &v1alpha1.L4Firewall{
			Enabled: true, DefaultAction: v1alpha1.FirewallActionBlock, AllowedPorts: []v1alpha1.Port{openPort},
			Directions: []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionEgress},
		},
	})
	for _, node := range p.Nodes() {
		for app, of := range map[string]*[]*corev1.Pod{"in": &b.in, "out": &b.out, "plain": &b.plain} {
			*of = append(*of, p.pod(app+"-"+node.Name, app, node.Name, bustling()))
		}
	}
	for _, pod := range b.pods() {
		b.calls[pod.Name] = 0
		p.awaitServing(pod)
	}
	p.awaitConfig(guarded, "in")
	p.awaitConfig(guarded, "out")
	b.connect()
	b.begin(p, everything)
	b.call(p, b.out, 1) // a count of 0 is not told
	return b
}

// bustling is a pod without probes, whose connections would be counted with its own.
// It stays on a node that nothing is heard of.
func bustling() corev1.PodSpec {
	spec := podSpec(container("c", "serve", "-control="+strconv.Itoa(control), "-tcp=8080,9090", "-udp=8080,9090"))
	spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	return spec
}

// awaitServing waits until a pod has said that it serves, and reads it anew.
func (p *point) awaitServing(pod *corev1.Pod) {
	p.Helper()
	p.awaitReady(pod)
	p.await("pod "+pod.Name+" serves", func() error {
		text, err := p.Clients().CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(p.Context())
		if err == nil && len(text) == 0 {
			err = errors.New("it has said nothing yet")
		}
		return err
	})
}

func (b *bustle) pods() []*corev1.Pod {
	var all []*corev1.Pod
	for i := range b.in {
		all = append(all, b.in[i], b.out[i], b.plain[i])
	}
	return all
}

// connect names the flows: by each network, IPv4 and IPv6, to an open and a blocked port.
func (b *bustle) connect() {
	b.flows = nil
	for i := range b.in {
		next := (i + 1) % len(b.in)
		for _, pair := range [][2]*corev1.Pod{{b.plain[i], b.in[next]}, {b.out[i], b.plain[next]}} {
			for _, ip := range podIPs(pair[1]) {
				for _, network := range b.networks {
					for port, passes := range map[int]bool{openPort: true, blockedPort: false} {
						b.flows = append(b.flows, &flow{from: pair[0], to: pair[1], network: network, address: net.JoinHostPort(ip, strconv.Itoa(port)), passes: passes})
					}
				}
			}
		}
	}
}

// begin begins the tries of some flows.
func (b *bustle) begin(p *point, which func(*flow) bool) {
	p.Helper()
	for _, f := range b.flows {
		if !which(f) {
			continue
		}
		b.begun++
		f.id = strconv.Itoa(b.begun)
		limit := probeLimit
		if f.passes {
			limit = flowLimit
		}
		var said string
		p.ask(f.from, control, "/loop", url.Values{"id": {f.id}, "network": {f.network}, "address": {f.address}, "timeout": {limit}, "every": {flowPause}}, &said)
	}
}

// end ends the tries of some flows, fails where one got a wrong verdict, and returns what
// came of these in all.
func (b *bustle) end(p *point, which func(*flow) bool) map[*flow]tries {
	p.Helper()
	var mu sync.Mutex
	var wait sync.WaitGroup
	all, errs := map[*flow]tries{}, []error(nil)
	for _, f := range b.flows {
		if f.id == "" || !which(f) {
			continue
		}
		wait.Go(func() {
			var got tries
			err := p.tryAsk(p.Context(), f.from, control, "/loop/stop", url.Values{"id": {f.id}}, &got)
			mu.Lock()
			defer mu.Unlock()
			all[f], f.id = got, ""
			errs = append(errs, err)
		})
	}
	wait.Wait()
	p.must(errors.Join(errs...))
	for _, line := range wrong(all) {
		p.Error(line)
	}
	b.past = b.sum(all)
	for f, got := range all {
		b.note(f.from, f.to, f.network, f.passes, count(got))
	}
	return all
}

// sent is what a pod has tried, or others to reach it, in all: at least and at most so
// many connections, by whether they pass.
type sent struct{ least, most map[bool]int }

// note adds tries between two pods to what was sent. A UDP socket that gets the port of
// one before, out of some 28,000, belongs to the same flow, which counts once: at least
// half of them do not.
func (b *bustle) note(from, to *corev1.Pod, network string, passes bool, n int) {
	for _, pod := range []*corev1.Pod{from, to} {
		of := b.sentOf(pod)
		of.most[passes] += n
		if network == "udp" {
			of.least[passes] += (n + 1) / 2
		} else {
			of.least[passes] += n
		}
	}
}

func (b *bustle) sentOf(pod *corev1.Pod) *sent {
	if b.sent[pod.Name] == nil {
		b.sent[pod.Name] = &sent{least: map[bool]int{}, most: map[bool]int{}}
	}
	return b.sent[pod.Name]
}

// anew has the counts of pods begin again, whose programs went with their cgroups.
func (b *bustle) anew(p *point, pods ...*corev1.Pod) {
	for _, pod := range pods {
		b.sent[pod.Name], b.calls[pod.Name] = nil, 0
		p.asked.forget(pod)
	}
}

// results are what came of each flow so far, of those under way.
func (b *bustle) results(p *point) map[*flow]tries {
	p.Helper()
	byPod := map[*corev1.Pod]map[string]tries{}
	all := map[*flow]tries{}
	for _, f := range b.flows {
		if f.id == "" {
			continue
		}
		if byPod[f.from] == nil {
			got := map[string]tries{}
			p.ask(f.from, control, "/loops", nil, &got)
			byPod[f.from] = got
		}
		got, there := byPod[f.from][f.id]
		if !there {
			p.Fatalf("%s is no longer under way: was the pod restarted?", f)
		}
		all[f] = got
	}
	return all
}

// tally sums up tries.
type tally struct{ requests, failed, probes, leaked int }

// sum adds tries to those of flows that have ended.
func (b *bustle) sum(all map[*flow]tries) tally {
	t := b.past
	for f, got := range all {
		n := count(got)
		if f.passes {
			t.requests += n
			t.failed += n - got.Results["reached"]
		} else {
			t.probes += n
			t.leaked += got.Results["reached"]
		}
	}
	return t
}

func count(t tries) int {
	n := 0
	for _, of := range t.Results {
		n += of
	}
	return n
}

// wrong tells of flows that got another verdict than they should.
func wrong(all map[*flow]tries) []string {
	var found []string
	for f, got := range all {
		if f.passes && count(got) != got.Results["reached"] {
			found = append(found, fmt.Sprintf("%s should always pass: %v, %v", f, got.Results, got.Missed))
		}
		if !f.passes && got.Results["reached"] > 0 {
			found = append(found, fmt.Sprintf("%s should never pass: %v", f, got.Results))
		}
	}
	return found
}

// goOn waits until each flow under way has had some more tries, from begin to end.
func (b *bustle) goOn(p *point) map[*flow]tries {
	p.Helper()
	const more = 2 // the first may have begun before
	before := b.results(p)
	var now map[*flow]tries
	p.await("all flows go on", func() error {
		now = b.results(p)
		for f, was := range before {
			if n := count(now[f]); n < count(was)+more {
				return fmt.Errorf("%s: %d tries, %d before", f, n, count(was))
			}
		}
		return nil
	})
	return now
}

// nothingTaken fails where a server got something at its blocked port.
func (b *bustle) nothingTaken(p *point, pods ...*corev1.Pod) {
	p.Helper()
	for _, pod := range pods {
		for what, n := range p.received(pod) {
			if what == "tcp/9090" || what == "udp/9090" {
				p.Errorf("%s took %d at %s", pod.Name, n, what)
			}
		}
	}
}

// call has pods make system calls that are counted.
func (b *bustle) call(p *point, pods []*corev1.Pod, times int) {
	p.Helper()
	for _, pod := range pods {
		var made struct{ Count int }
		p.ask(pod, control, "/calls", url.Values{"number": {strconv.Itoa(callNumber)}, "count": {strconv.Itoa(times)}}, &made)
		b.calls[pod.Name] += float64(made.Count)
	}
}

const firewallTotal = "podconfigmap_controller_ebpf_l4_firewall_total"

func everything(*flow) bool { return true }

// exact ends all flows, compares what was tried with what was counted, and begins them
// anew.
func (b *bustle) exact(p *point) {
	p.Helper()
	b.end(p, everything)
	for _, pod := range append(append([]*corev1.Pod{}, b.in...), b.out...) {
		// What the test itself connects to is counted, too, also where only egress is
		// filtered.
		asked := map[bool]int{true: p.asked.of(pod)}
		of := b.sentOf(pod)
		for kind, passes := range map[string]bool{"allowed": true, "blocked": false} {
			p.await(kind+" connections of "+pod.Name+" are as many as were tried", func() error {
				got, err := p.counter(pod, firewallTotal, map[string]string{"stat_type": kind})
				least, most := of.least[passes]+asked[passes], of.most[passes]+asked[passes]
				if err == nil && (int(got) < least || int(got) > most) {
					err = fmt.Errorf("%v are counted; %d to %d were made", got, least, most)
				}
				return err
			})
		}
	}
	b.awaitCalls(p, b.out)
	b.nothingTaken(p, append(append([]*corev1.Pod{}, b.in...), b.plain...)...)
	b.begin(p, everything)
}

func (b *bustle) awaitCalls(p *point, pods []*corev1.Pod) {
	p.Helper()
	p.awaitCalls(pods, b.calls)
}

// watch scrapes the agents of all nodes all the time, and remembers what their counters
// of pods said last: none may ever say less.
type watch struct {
	w      *world
	pods   map[string]bool // whose counters are watched, by name
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu        sync.Mutex
	targets   map[string]*corev1.Pod // the newest agent, by node
	series    map[series]sample
	kernels   map[string]int // how often a node's was started anew
	scrapes   int
	missed    int
	backwards []string
}

// series is a counter of a pod.
type series struct{ node, pod, name, kind string }

type sample struct {
	value float64
	seen  time.Time
}

const (
	scrapePause = 250 * time.Millisecond
	callsTotal  = "podconfigmap_controller_ebpf_syscall_count_total"
)

// watchCounters watches the counters of some pods until stop.
func watchCounters(w *world, pods ...*corev1.Pod) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	watching := &watch{w: w, cancel: cancel, pods: map[string]bool{}, targets: map[string]*corev1.Pod{}, series: map[series]sample{}, kernels: map[string]int{}}
	for _, pod := range pods {
		watching.pods[pod.Name] = true
	}
	watching.wait.Go(func() { watching.every(ctx, 2*scrapePause, watching.findAgents) })
	for _, node := range w.Nodes() {
		watching.wait.Go(func() {
			watching.every(ctx, scrapePause, func(ctx context.Context) { watching.scrapeNode(ctx, node.Name) })
		})
	}
	return watching
}

func (s *watch) every(ctx context.Context, pause time.Duration, do func(context.Context)) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for ctx.Err() == nil {
		do(ctx)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (s *watch) stop() {
	s.cancel()
	s.wait.Wait()
}

// findAgents looks which pods to scrape. Where it cannot, the last ones stay.
func (s *watch) findAgents(ctx context.Context) {
	list := &corev1.PodList{}
	if s.w.client.List(ctx, list, agentLabels) != nil {
		return
	}
	newest := map[string]*corev1.Pod{}
	for i := range list.Items {
		pod := &list.Items[i]
		if old := newest[pod.Spec.NodeName]; pod.Status.PodIP != "" && (old == nil || old.CreationTimestamp.Before(&pod.CreationTimestamp)) {
			newest[pod.Spec.NodeName] = pod
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets = newest
}

func (s *watch) scrapeNode(ctx context.Context, node string) {
	s.mu.Lock()
	agent, kernel := s.targets[node], s.kernels[node]
	s.mu.Unlock()
	if agent == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	families, err := s.w.scrape(ctx, agent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.missed++ // it is being replaced, or was killed
		return
	}
	if s.kernels[node] != kernel {
		return // an answer from before
	}
	s.scrapes++
	now := time.Now()
	for _, name := range []string{firewallTotal, callsTotal} {
		for _, m := range families[name].GetMetric() {
			key := series{node: node, name: name}
			for _, l := range m.GetLabel() {
				switch l.GetName() {
				case "pod_name":
					key.pod = l.GetValue()
				case "stat_type", "syscall":
					key.kind = l.GetValue()
				}
			}
			if !s.pods[key.pod] {
				continue
			}
			s.note(key, sample{m.GetCounter().GetValue(), now})
		}
	}
}

func (s *watch) note(key series, is sample) {
	if was, known := s.series[key]; known && is.value < was.value {
		s.backwards = append(s.backwards, fmt.Sprintf("%s of %s on %s, %s: %v after %v", key.name, key.pod, key.node, key.kind, is.value, was.value))
	}
	s.series[key] = is
}

// forget lets the counters of a node begin anew: its kernel was started again.
func (s *watch) forget(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kernels[node]++
	for key := range s.series {
		if key.node == node {
			delete(s.series, key)
		}
	}
}

// whole is nil when all series that there were have been seen since a time.
func (s *watch) whole(since time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, is := range s.series {
		if is.seen.Before(since) {
			return fmt.Errorf("%s of %s on %s, %s, was last seen at %s", key.name, key.pod, key.node, key.kind, is.seen.Format(time.TimeOnly))
		}
	}
	return nil
}

// figures are the scrapes so far, those that failed, and the counters that fell.
func (s *watch) figures() (scrapes, missed int, backwards []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scrapes, s.missed, s.backwards
}
