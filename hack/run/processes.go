// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// processStage has pods that are processes of this machine, which machinery made.
type processStage struct {
	*machinery
	server, other *realPod
	image         string
}

var _ stage = (*processStage)(nil)

func (p *processStage) enter(server, other *corev1.Pod) error {
	p.image = server.Spec.Containers[0].Image
	var err error
	if p.server, err = p.pod(server.UID); err != nil {
		return err
	}
	p.other, err = p.pod(other.UID)
	return err
}

// listens: machinery opens the ports before it says that a pod runs.
func (*processStage) listens(context.Context, int32) (bool, error) { return true, nil }

func (p *processStage) about() []string {
	return []string{
		"These two pods are real: each has a cgroup and a network namespace of its own, and a process",
		fmt.Sprintf("in them, which is this program in another role (%s is not pulled).", p.image),
	}
}

func (p *processStage) describe(pod *corev1.Pod) []string {
	r := p.server
	if pod.Name == p.other.name {
		r = p.other
	}
	return []string{
		fmt.Sprintf("process %d, addresses %s and %s", r.main().PID(), r.IPv4(), r.IPv6()),
		"cgroup …" + strings.TrimPrefix(r.Cgroup(), p.node.Root()),
	}
}

func (p *processStage) dial(_ context.Context, port int32, limit time.Duration) error {
	return p.other.main().Dial("tcp", p.server.at(port), limit)
}

func (p *processStage) outside() string { return "the node" }

func (p *processStage) dialOutside(_ context.Context, port int32, limit time.Duration) error {
	return p.machinery.outside.Dial("tcp", p.server.at(port), limit)
}

func (p *processStage) call(context.Context) error { return p.other.main().Calls(-1, knownCalls) }

func (p *processStage) called() (string, bool, string) {
	return "getppid", true, fmt.Sprintf("(%s was told to call getppid %d times; nothing else in it does.)", p.other.name, knownCalls)
}

func (p *processStage) explore(s *session, sc *scene) {
	s.say("%s | grep _ebpf_", s.agentMetrics.command)
	s.say("# a shell inside of %s: in its network, and counted and filtered as it is", p.other.name)
	s.say("sh -c 'echo $$ >%s/cgroup.procs; exec nsenter -t %d -n bash'", p.other.first.Cgroup(), p.other.main().PID())
	s.say("  : </dev/tcp/%s/%d && echo connected", p.server.IPv4(), sc.allowed)
	s.say("  : </dev/tcp/%s/%d && echo connected", p.server.IPv4(), sc.blocked)
}
