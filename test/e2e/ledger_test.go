// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ledger is what was tried on purpose: what servers have to have got since it was
// opened, and firewalls to have counted since their pods began.
type ledger struct {
	got    map[*corev1.Pod]map[string]int // by network and port
	before map[*corev1.Pod]map[string]int // what they had got
	passed map[*corev1.Pod]int            // by whose firewall judged
	// blocked are all tries that a firewall had to block, and least of them those that
	// are counted for sure: a UDP socket that gets the port of one before belongs to the
	// same flow, which counts once.
	blocked, least map[*corev1.Pod]int
	flows          map[string]bool
}

func newLedger() *ledger {
	return &ledger{
		got: map[*corev1.Pod]map[string]int{}, before: map[*corev1.Pod]map[string]int{}, passed: map[*corev1.Pod]int{},
		blocked: map[*corev1.Pod]int{}, least: map[*corev1.Pod]int{}, flows: map[string]bool{},
	}
}

// open has what pods got so far, and is not in the ledger, not count.
func (l *ledger) open(p *point, pods ...*corev1.Pod) {
	p.Helper()
	for _, pod := range pods {
		l.before[pod] = p.received(pod)
		for what, n := range l.got[pod] {
			l.before[pod][what] -= n
		}
	}
}

// add notes ways that were tried once.
func (l *ledger) add(ways ...way) {
	for _, w := range ways {
		if l.got[w.to] == nil {
			l.got[w.to] = map[string]int{}
		}
		what, flow := w.meets()
		if w.passes {
			l.got[w.to][what]++
			l.passed[w.by]++
			continue
		}
		l.got[w.to][what] += 0 // which is looked at, too
		l.blocked[w.by]++
		if strings.HasPrefix(what, "tcp") || !l.flows[flow] {
			l.least[w.by]++
		}
		l.flows[flow] = true
	}
}

// meets is what the server takes a try for, such as tcp/8080, and what is equal of two
// UDP tries that may be of one flow.
func (w *way) meets() (what, flow string) {
	end := strings.LastIndex(w.address, ":")
	host, port := w.address[:end], w.address[end+1:]
	what = w.network[:len("tcp")] + "/" + port // tcp4 is tcp
	six := strings.Contains(host, ":") || strings.HasSuffix(w.network, "6")
	return what, fmt.Sprint(w.from.Name, " ", w.to.Name, " ", six, " ", what)
}

// settle fails unless servers got just what passed, and waits until the agents tell that
// just the others were blocked. Of what was allowed there is more: probes, and what the
// tests ask pods for.
func (l *ledger) settle(p *point) {
	p.Helper()
	for pod := range l.blocked {
		p.await("blocked connections of "+pod.Name+" are as many as were tried", func() error {
			got, err := p.counter(pod, firewallTotal, map[string]string{"stat_type": "blocked"})
			if err == nil && int(got) > l.blocked[pod] {
				p.Fatalf("%s: %v are counted, more than the %d that were tried", pod.Name, got, l.blocked[pod])
			}
			if err == nil && int(got) < l.least[pod] {
				err = fmt.Errorf("%v are counted; %d to %d were made", got, l.least[pod], l.blocked[pod])
			}
			return err
		})
	}
	for pod, n := range l.passed {
		p.await("allowed connections of "+pod.Name+" are at least as many as were tried", func() error {
			got, err := p.counter(pod, firewallTotal, map[string]string{"stat_type": "allowed"})
			if err == nil && int(got) < n {
				err = fmt.Errorf("%v of %d", got, n)
			}
			return err
		})
	}
	// Last: each blocked try has met its firewall by now.
	for pod, want := range l.got {
		is := p.received(pod)
		for what, n := range want {
			if is := is[what] - l.before[pod][what]; is != n {
				p.Errorf("%s got %d at %s, want %d", pod.Name, is, what, n)
			}
		}
	}
}
