// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/hack/run/machine"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const (
	// knownCalls is how often the client makes a system call that nothing else in
	// it makes.
	knownCalls = 1000
	// silence is how long the demo waits for an answer that does not come.
	silence = 2 * time.Second
)

// prepareEBPF looks whether this machine can show the eBPF sample, and makes the
// place for its pods. With the feature flag off there is no sample to show.
func (s *session) prepareEBPF() (*scene, error) {
	if !s.settings.EBPFEnabled {
		return nil, nil
	}
	s.step("This machine (EBPF_ENABLED=true loads real BPF programs)")
	facts, err := machine.Look()
	if err != nil {
		return nil, err
	}
	sc, err := s.readScene()
	if err != nil {
		return nil, err
	}
	if err := s.makeReal(sc.namespace()); err != nil {
		return nil, err
	}
	s.say("kernel %s, cgroup v2 at %s; it counts system calls and filters packets", facts.Kernel, facts.CgroupRoot)
	s.say("made, for this alone: cgroup %s,", s.real.node.Root())
	s.say("BPF file system %s, a network namespace with a bridge", s.real.node.BPFFS())
	return sc, nil
}

// scene are the pods of the eBPF sample, and what happens between them.
type scene struct {
	*sample
	stage
	server, client   *corev1.Pod
	allowed, blocked int32 // ports of the server
}

// readScene reads the eBPF sample.
func (s *session) readScene() (*scene, error) {
	sample, err := readSample(filepath.Join(s.samples, "ebpf"))
	if err != nil {
		return nil, err
	}
	sc := &scene{sample: sample, server: sample.selected[0], client: sample.selected[1]}
	return sc, sc.ports(sc.server)
}

// showEBPF starts the agent, and shows what its programs do.
func (s *session) showEBPF(ctx context.Context, sc *scene) error {
	if err := s.startAgent(ctx); err != nil {
		return err
	}
	return s.show(ctx, sc, &processStage{machinery: s.real})
}

// show applies the eBPF sample, and shows what the agent's programs do on a stage.
func (s *session) show(ctx context.Context, sc *scene, on stage) error {
	sc.stage = on
	if err := s.apply(ctx, sc.sample); err != nil {
		return err
	}
	if err := s.setScene(ctx, sc); err != nil {
		return err
	}
	for _, show := range []func(context.Context, *scene) error{s.showAttached, s.showConnections, s.showSyscalls, s.showFirewall, s.showReport} {
		if err := show(ctx, sc); err != nil {
			return err
		}
	}
	s.scene = sc
	return nil
}

// ports finds a port of the server that the config blocks, and one that it does
// not.
func (sc *scene) ports(server *corev1.Pod) error {
	var firewall v1alpha1.L4Firewall
	if e := sc.config.Spec.EBPFConfig; e != nil && e.L4Firewall != nil {
		firewall = *e.L4Firewall
	}
	for _, c := range server.Spec.Containers {
		for _, port := range c.Ports {
			if slices.Contains(firewall.BlockedPorts, v1alpha1.Port(port.ContainerPort)) {
				sc.blocked = port.ContainerPort
			} else {
				sc.allowed = port.ContainerPort
			}
		}
	}
	if sc.allowed == 0 || sc.blocked == 0 {
		return fmt.Errorf("reading the eBPF sample: pod %s needs a port that the config blocks, and one that it does not", server.Name)
	}
	return nil
}

// setScene waits until the sample's pods run.
func (s *session) setScene(ctx context.Context, sc *scene) error {
	for _, pod := range sc.pods() {
		_, err := s.await(ctx, fmt.Sprintf("pod %s runs", pod.Name), func(ctx context.Context) (bool, error) {
			err := s.client.Get(ctx, client.ObjectKeyFromObject(pod), pod)
			return err == nil && pod.Status.Phase == corev1.PodRunning, err
		})
		if err != nil {
			return err
		}
	}
	if err := sc.enter(sc.server, sc.client); err != nil {
		return err
	}
	_, err := s.await(ctx, fmt.Sprintf("pod %s listens on port %d", sc.server.Name, sc.allowed), func(ctx context.Context) (bool, error) {
		return sc.listens(ctx, sc.allowed)
	})
	return err
}

func (sc *scene) pods() []*corev1.Pod { return []*corev1.Pod{sc.server, sc.client} }

// showAttached waits until both programs serve both pods.
func (s *session) showAttached(ctx context.Context, sc *scene) error {
	s.step("Programs for each pod that the config %s selects", sc.config.Name)
	for _, line := range sc.about() {
		s.say("%s", line)
	}
	for _, p := range sc.pods() {
		wanted := []string{"l4_firewall", "syscall_counter"}
		took, err := s.await(ctx, fmt.Sprintf("programs serve pod %s", p.Name), func(ctx context.Context) (bool, error) {
			all, err := s.scrape(ctx)
			if err != nil {
				return false, err
			}
			got := all.by("ebpf_attached_programs", sc.namespace(), p.Name, "program_type")
			return got[wanted[0]] == 1 && got[wanted[1]] == 1, nil
		})
		if err != nil {
			return err
		}
		s.say("")
		for i, line := range sc.describe(p) {
			if i == 0 {
				line = s.styled(bold, p.Name) + "  " + line
			} else {
				line = "        " + line
			}
			s.say("%s", line)
		}
		s.say("        served by %s, after %s", strings.Join(wanted, " and "), seconds(took))
	}
	return nil
}

// attempt is a connection that somebody tries.
type attempt struct {
	from, to string
	took     time.Duration
	err      error
}

// try has somebody connect to a port of the server.
func (sc *scene) try(ctx context.Context, name string, dial func(context.Context, int32, time.Duration) error, port int32, limit time.Duration) attempt {
	a := attempt{from: name, to: fmt.Sprintf("%s:%d", sc.server.Name, port)}
	began := time.Now()
	a.err = dial(ctx, port, limit)
	a.took = time.Since(began)
	return a
}

func (s *session) tell(a attempt, why string) {
	style, result := green, "connected"
	var failure *sandbox.Failure
	switch {
	case errors.As(a.err, &failure):
		style, result = red, failure.Message
	case a.err != nil:
		style, result = red, a.err.Error()
	}
	s.say("%s → %s", s.styled(bold, a.from), s.styled(bold, a.to))
	s.print(style, fmt.Sprintf("  %s, after %s", result, precise(a.took)))
	s.say("  %s", why)
}

// showConnections shows one connection that passes, one that the client's firewall
// denies, and one that the server's drops.
func (s *session) showConnections(ctx context.Context, sc *scene) error {
	s.step("A connection that is allowed, and two that are not (blockedPorts: %d)", sc.blocked)
	passes := sc.try(ctx, sc.client.Name, sc.dial, sc.allowed, s.patience)
	s.tell(passes, "no rule is against it")
	if passes.err != nil {
		return fmt.Errorf("the connection to %s should have been allowed: %w", passes.to, passes.err)
	}
	denied := sc.try(ctx, sc.client.Name, sc.dial, sc.blocked, s.patience)
	s.tell(denied, fmt.Sprintf("the firewall of %s (egress) denies it at once; no packet is sent", sc.client.Name))
	if !errors.Is(denied.err, os.ErrPermission) {
		return fmt.Errorf("the connection to %s should have been denied with EPERM: %w", denied.to, orNil(denied.err))
	}
	dropped := sc.try(ctx, sc.outside(), sc.dialOutside, sc.blocked, silence)
	s.tell(dropped, fmt.Sprintf("the firewall of %s (ingress) drops its packets, so that %s waits in vain", sc.server.Name, sc.outside()))
	if !errors.Is(dropped.err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the connection to %s should have been dropped: %w", dropped.to, orNil(dropped.err))
	}
	return ctx.Err()
}

var errConnected = errors.New("it connected")

func orNil(err error) error {
	if err == nil {
		return errConnected
	}
	return err
}

// showSyscalls has the client make a known number of calls, and shows what was
// counted.
func (s *session) showSyscalls(ctx context.Context, sc *scene) error {
	s.step("System calls of each pod: %s", s.agentMetrics.command)
	if err := sc.call(ctx); err != nil {
		return fmt.Errorf("making system calls: %w", err)
	}
	var all samples
	called, exact, note := sc.called()
	_, err := s.await(ctx, fmt.Sprintf("%d calls of %s are counted", knownCalls, called), func(ctx context.Context) (_ bool, err error) {
		if all, err = s.scrape(ctx); err != nil {
			return false, err
		}
		got := all.by(metricSyscalls, sc.namespace(), sc.client.Name, "syscall")[called]
		switch {
		case exact && got > knownCalls:
			return true, fmt.Errorf("%d calls of %s were counted, %d made", got, called, knownCalls)
		case got < knownCalls:
			return false, fmt.Errorf("%d are counted", got)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	rows := [][]string{{"POD", "SYSCALL", "CALLS"}}
	for _, p := range sc.pods() {
		counts := all.by(metricSyscalls, sc.namespace(), p.Name, "syscall")
		if len(counts) == 0 {
			return fmt.Errorf("no system call of pod %s was counted", p.Name)
		}
		for _, name := range mostFirst(counts) {
			rows = append(rows, []string{p.Name, name, fmt.Sprint(counts[name])})
		}
	}
	s.table(rows)
	s.say("%s", note)
	return nil
}

// showFirewall shows what the firewall counted for the three connections.
func (s *session) showFirewall(ctx context.Context, sc *scene) error {
	s.step("What the firewall counted of the connections above")
	stats := []string{"allowed", "blocked", "would_block", "tcp_packets", "udp_packets"}
	rows := [][]string{{"POD", "ALLOWED", "BLOCKED", "WOULD_BLOCK", "TCP_PACKETS", "UDP_PACKETS"}}
	for _, p := range sc.pods() {
		var got map[string]uint64
		_, err := s.await(ctx, fmt.Sprintf("one allowed and one blocked connection of pod %s are counted", p.Name), func(ctx context.Context) (bool, error) {
			all, err := s.scrape(ctx)
			if err != nil {
				return false, err
			}
			got = all.by(metricFirewall, sc.namespace(), p.Name, "stat_type")
			if got["allowed"] != 1 || got["blocked"] != 1 {
				return false, fmt.Errorf("there are %v", got)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		row := []string{p.Name}
		for _, stat := range stats {
			row = append(row, fmt.Sprint(got[stat]))
		}
		rows = append(rows, row)
	}
	s.table(rows)
	return nil
}

// showReport shows what the agent reports of its node, and what the manager makes
// of it.
func (s *session) showReport(ctx context.Context, sc *scene) error {
	s.step("The agent's report: kubectl get ebpfnodes -n %s -o wide", s.settings.PodNamespace)
	var node *v1alpha1.EBPFNode
	_, err := s.await(ctx, "the EBPFNode reports two pods", func(ctx context.Context) (_ bool, err error) {
		node, err = s.ebpfNode(ctx)
		return err == nil && int(node.Status.AttachedPods) == len(sc.selected) && meta.IsStatusConditionTrue(node.Status.Conditions, v1alpha1.ConditionReady), err
	})
	if err != nil {
		return err
	}
	st := &node.Status
	s.table([][]string{
		{"NAME", "READY", "PODS", "KERNEL", "ARCH", "CGROUPS"},
		{node.Name, "True", fmt.Sprint(st.AttachedPods), st.KernelVersion, st.Architecture, st.CgroupVersion},
	})
	for _, f := range st.Features {
		s.say("feature %-14s  supported %t %s", f.Name, f.Supported, f.Reason)
	}
	return s.showEBPFReady(ctx, sc)
}

// showEBPFReady waits for the condition of the config.
func (s *session) showEBPFReady(ctx context.Context, sc *scene) error {
	s.step("The config's own account: kubectl describe pcmc -n %s %s", sc.namespace(), sc.config.Name)
	config := &v1alpha1.PodConfigMapConfig{}
	_, err := s.await(ctx, "the config is EBPFReady", func(ctx context.Context) (bool, error) {
		err := s.client.Get(ctx, client.ObjectKeyFromObject(sc.config), config)
		if err != nil {
			return false, err
		}
		ready := meta.FindStatusCondition(config.Status.Conditions, v1alpha1.ConditionEBPFReady)
		if ready == nil || ready.Status != "True" || ready.ObservedGeneration != config.Generation {
			return false, fmt.Errorf("its condition is %+v", ready)
		}
		// Counts and condition come from one report.
		return config.Status.EBPF != nil && int(config.Status.EBPF.AttachedPods) == len(sc.selected), nil
	})
	if err != nil {
		return err
	}
	ready := meta.FindStatusCondition(config.Status.Conditions, v1alpha1.ConditionEBPFReady)
	s.say("EBPFReady  %s  %s: %s", ready.Status, ready.Reason, ready.Message)
	s.say("pods       %d attached, %d failed, %d unsupported", config.Status.EBPF.AttachedPods, config.Status.EBPF.FailedPods, config.Status.EBPF.UnsupportedPods)
	return nil
}

// exploreEBPF prints what the user may try with the programs.
func (s *session) exploreEBPF() {
	sc := s.scene
	s.say("")
	s.say("With the programs:")
	s.say("kubectl get ebpfnodes,pcmc -A")
	s.say("kubectl describe ebpfnode -n %s %s", s.settings.PodNamespace, s.nodeName)
	s.say("kubectl edit pcmc -n %s %s   # another port, mode: audit, …", sc.namespace(), sc.config.Name)
	sc.explore(s, sc)
}

// precise writes a time of any length with three digits.
func precise(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.3g ms", float64(d)/float64(time.Millisecond))
	}
	return seconds(d)
}
