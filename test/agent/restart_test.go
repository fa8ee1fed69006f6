// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const kills = 50

// everything asks for both programs.
func everything() v1alpha1.EBPFConfig {
	return v1alpha1.EBPFConfig{
		SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: []v1alpha1.SyscallName{"getppid"}},
		L4Firewall:        blocking(81), MetricsExport: exported(),
	}
}

// traffic is what a pod does all the time, and a prober that must not get
// through.
type traffic struct {
	w      *world
	pod    *pod
	server *sandbox.Peer
	client *sandbox.Peer
	denied string
	calls  uint64
}

// startTraffic has a client ask a pod's server all the time, over one connection,
// by one UDP flow and over fresh connections, and probe the port that is blocked.
func (w *world) startTraffic(p *pod) *traffic {
	w.t.Helper()
	f := &traffic{w: w, pod: p, server: p.Peer(), client: w.node.Peer(), denied: p.at(81)}
	for _, port := range []int{80, 81} {
		_, err := f.server.Listen("tcp", p.at(port))
		must(w.t, err)
	}
	_, err := f.server.Listen("udp", p.at(80))
	must(w.t, err)
	must(w.t, f.client.StartLoop("sends", sandbox.Loop{Network: "udp", Remote: p.at(80), Size: 64, Timeout: patience, Every: time.Millisecond}))
	// Often enough to meet every gap, and not all that the CPU can do.
	must(w.t, f.client.StartLoop("asks", sandbox.Loop{Network: "tcp", Remote: p.at(80), Size: 64, Timeout: patience, Every: time.Millisecond}))
	// Slow enough that a minute's connections leave ports for the next.
	must(w.t, f.client.StartLoop("connects", sandbox.Loop{Network: "tcp", Remote: p.at(80), Size: 64, Fresh: true, Timeout: patience, Every: 4 * time.Millisecond}))
	must(w.t, f.client.StartLoop("probes", sandbox.Loop{Network: "tcp", Remote: f.denied, Size: 1, Fresh: true, Timeout: 100 * time.Millisecond}))
	return f
}

// call makes system calls that are counted.
func (f *traffic) call(n int) {
	f.w.t.Helper()
	must(f.w.t, f.server.Calls(-1, n))
	f.calls += uint64(n)
}

// end ends the traffic, and compares what was sent with what the agent tells.
func (f *traffic) end() string {
	t := f.w.t
	t.Helper()
	stop := func(name string) sandbox.LoopCounts {
		counts, err := f.client.StopLoop(name)
		must(t, err)
		return counts
	}
	asks, sends, connects, probes := stop("asks"), stop("sends"), stop("connects"), stop("probes")
	for _, allowed := range []sandbox.LoopCounts{asks, sends, connects} {
		if allowed.Failed > 0 || allowed.Answered == 0 {
			t.Errorf("allowed traffic: one connection %v; UDP %v; fresh connections %v", asks, sends, connects)
		}
	}
	received, err := f.server.Received("tcp", f.denied)
	must(t, err)
	if probes.Answered > 0 || received > 0 || probes.Begun == 0 {
		t.Errorf("%d connections leaked; the prober: %v", received, probes)
	}
	f.w.eventually("the counters are what was sent", func() error {
		got := f.w.firewall(f.pod)
		if calls := f.w.calls(f.pod, "getppid"); calls != f.calls {
			return fmt.Errorf("%d system calls counted, %d made", calls, f.calls)
		}
		// One connection for all requests, one flow, and each of the fresh ones.
		if want := connects.Attempts + 2; got["allowed"] != want {
			return fmt.Errorf("%d connections allowed, %d made", got["allowed"], want)
		}
		if got["blocked"] != probes.Begun {
			return fmt.Errorf("%d connections blocked, %d tried", got["blocked"], probes.Begun)
		}
		if want := sends.Attempts + sends.Answered; got["udp_packets"] != want {
			return fmt.Errorf("%d UDP packets counted, %d sent", got["udp_packets"], want)
		}
		return nil
	})
	return fmt.Sprintf("%d requests, longest gap %v; %d by UDP, longest gap %v; %d fresh connections; %d failed; %d probes, %d leaked; %d system calls",
		asks.Answered, asks.Longest.Round(time.Millisecond), sends.Answered, sends.Longest.Round(time.Millisecond), connects.Answered,
		asks.Failed+sends.Failed+connects.Failed, probes.Begun, received, f.calls)
}

// TestKilled kills the agent again and again under traffic.
func TestKilled(t *testing.T) {
	skipShort(t)
	t.Parallel()
	w := newWorld(t, shared, 20)
	w.with(shippedCapabilities...)
	w.config("c", everything())
	p := w.pod("p", sandbox.PodOptions{})
	w.start()
	w.attached(p, "l4_firewall", "syscall_counter")
	f := w.startTraffic(p)
	last := uint64(0)
	for i := range kills {
		f.call(100)
		w.kill()
		f.call(10)
		w.begin(nil)
		f.call(1)
		if i%2 == 0 {
			continue // it is killed while it starts
		}
		must(t, w.agent.WaitReady(t.Context()))
		w.attached(p, "l4_firewall", "syscall_counter")
		if now := w.calls(p, "getppid"); now < last {
			t.Errorf("the count fell from %d to %d", last, now)
		} else {
			last = now
		}
	}
	w.attached(p, "l4_firewall", "syscall_counter")
	figure(t, "kill -9 of the agent, %d times under traffic: %s", kills, f.end())
}

// TestDeadPodsAreCollected lets a pod go, and a config change, while no agent
// runs.
func TestDeadPodsAreCollected(t *testing.T) {
	skipShort(t)
	w := newWorld(t, shared, 20)
	c := w.config("c", everything())
	stays, goes, deleted := w.pod("stays", sandbox.PodOptions{}), w.pod("goes", sandbox.PodOptions{}), w.pod("deleted", sandbox.PodOptions{})
	w.start()
	for _, p := range []*pod{stays, goes, deleted} {
		w.attached(p, "l4_firewall", "syscall_counter")
	}
	w.kill()
	goes.Remove()
	w.delete(goes)
	w.delete(deleted) // its cgroup stays, without a process
	w.edit(c, func(e *v1alpha1.EBPFConfig) { e.L4Firewall.BlockedPorts = []v1alpha1.Port{82} })
	w.start()
	w.eventually("one slot is used", func() error {
		if used, _ := w.value("ebpf_slots_used", nil); used != 1 {
			return fmt.Errorf("%v", used)
		}
		return nil
	})
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 2, Desired: 1, Attached: 1})
	server, client := stays.Peer(), w.node.Peer()
	for port, passes := range map[int]bool{81: true, 82: false} {
		_, err := server.Listen("tcp", stays.at(port))
		must(t, err)
		expectDial(t, client, "tcp", stays.at(port), passes)
	}
}

// mortalCluster starts a cluster of the test's own, whose API server may be killed.
func mortalCluster(t *testing.T) *harness.Cluster {
	t.Helper()
	skipShort(t)
	t.Parallel()
	c, err := startCluster(t.Context())
	must(t, err)
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestAPIServerAway restarts the agent while the API server is away.
func TestAPIServerAway(t *testing.T) {
	c := mortalCluster(t)
	w := newWorld(t, c, 20)
	w.neverMind = true // client-go logs every list that fails
	w.config("c", everything())
	p := w.pod("p", sandbox.PodOptions{})
	w.start()
	w.attached(p, "l4_firewall", "syscall_counter")
	f := w.startTraffic(p)
	f.call(100)
	must(t, c.KillAPIServer())
	f.call(100)
	w.kill()
	f.call(100)
	w.begin(nil)
	healthy := func() error {
		_, err := w.agent.Probe(t.Context(), "/healthz")
		return err
	}
	w.eventually("it is healthy", healthy)
	time.Sleep(8 * time.Second) // longer than it waits for the node's object
	select {
	case <-w.agent.Exited():
		t.Fatalf("the agent ended without an API server: %v", w.agent.ExitError())
	default:
	}
	w.eventually("it is still healthy", healthy)
	if _, err := w.agent.Probe(t.Context(), "/readyz"); err == nil {
		t.Error("it is ready, and knows no pod")
	}
	if used, _ := w.value("ebpf_slots_used", nil); used != 1 {
		t.Errorf("%v slots are used", used)
	}
	if slots, _ := w.value("ebpf_slots", nil); slots != 23 {
		t.Errorf("%v slots, want those of the agent before", slots)
	}
	f.call(100)
	must(t, c.StartAPIServer(t.Context()))
	must(t, w.agent.WaitReady(t.Context()))
	w.attached(p, "l4_firewall", "syscall_counter")
	w.config("more", v1alpha1.EBPFConfig{L4Firewall: blocking(83)})
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "more", Generation: 1, Desired: 1, Attached: 1})
	f.end()
	w.stopsAPIServerAway(p)
}

// TestWithoutAPIServer has what else agents do while the API server is away, one after
// another in one cluster.
func TestWithoutAPIServer(t *testing.T) {
	c := mortalCluster(t)
	t.Run("the first start", func(t *testing.T) { firstStart(t, c) })
	t.Run("cleanup", func(t *testing.T) { cleanup(t, c) })
}

// firstStart starts the first agent of a node while the API server is away: how many
// slots it needs it learns later.
func firstStart(t *testing.T, c *harness.Cluster) {
	w := newWorld(t, c, 20)
	w.neverMind = true
	w.config("c", everything())
	p := w.pod("p", sandbox.PodOptions{NoNetwork: true})
	must(t, c.KillAPIServer())
	w.begin(nil)
	slots := func(want float64) {
		w.eventually(fmt.Sprintf("%v slots", want), func() error {
			if is, _ := w.value("ebpf_slots", nil); is != want {
				return fmt.Errorf("%v", is)
			}
			return nil
		})
	}
	slots(1024)
	must(t, c.StartAPIServer(t.Context()))
	slots(23)
	must(t, w.agent.WaitReady(t.Context()))
	w.attached(p, "l4_firewall", "syscall_counter")
}

// stopsAPIServerAway checks that a clean stop drops no firewall when nobody can
// say whether there will be another agent.
func (w *world) stopsAPIServerAway(p *pod) {
	w.t.Helper()
	must(w.t, w.cluster.KillAPIServer())
	w.stop()
	if r := w.pinned(); len(r.links) == 0 {
		w.t.Error("the agent dropped everything")
	}
	expectDial(w.t, w.node.Peer(), "tcp", p.at(81), false)
	must(w.t, w.cluster.StartAPIServer(w.t.Context()))
}

// daemonSet makes the agents' DaemonSet, of which only the existence matters.
func (w *world) daemonSet(name string) *appsv1.DaemonSet {
	w.t.Helper()
	labels := map[string]string{"app": name}
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: operators, Name: name}}
	set.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	set.Spec.Template.Labels = labels
	set.Spec.Template.Spec.Containers = []corev1.Container{{Name: "agent", Image: "registry.invalid/agent:1"}}
	must(w.t, w.cluster.Client.Create(w.t.Context(), set))
	return set
}

// TestStop stops the agent cleanly: whether it leaves its programs in the kernel
// depends on its DaemonSet.
func TestStop(t *testing.T) {
	skipShort(t)
	for name, tc := range map[string]struct {
		set    string            // name of the DaemonSet; empty: there is none
		before func(w *world)    // the stop
		env    map[string]string // of the agent
		leaves bool
	}{
		"its DaemonSet stays": {set: account, leaves: true},
		"it is gone":          {},
		"it is the legacy one, by its pod": {set: account + "-legacy", leaves: true, env: map[string]string{"POD_NAME": "agent-x"}, before: func(w *world) {
			yes := true
			owner := &appsv1.DaemonSet{}
			must(t, w.cluster.Client.Get(t.Context(), key(account+"-legacy"), owner))
			must(t, w.cluster.Client.Create(t.Context(), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: operators, Name: "agent-x", OwnerReferences: []metav1.OwnerReference{
					{APIVersion: "apps/v1", Kind: "DaemonSet", Name: owner.Name, UID: owner.UID, Controller: &yes}}},
				Spec: owner.Spec.Template.Spec,
			}))
		}},
		"it is being deleted": {set: account, before: func(w *world) {
			set := &appsv1.DaemonSet{}
			must(t, w.cluster.Client.Get(t.Context(), key(account), set))
			set.Finalizers = []string{"example.com/hold"}
			must(t, w.cluster.Client.Update(t.Context(), set))
			must(t, w.cluster.Client.Delete(t.Context(), set))
		}},
		"it cleans up": {set: account, before: func(w *world) {
			set := &appsv1.DaemonSet{}
			must(t, w.cluster.Client.Get(t.Context(), key(account), set))
			set.Annotations = map[string]string{v1alpha1.AnnotationCleanupSince: "2026-01-01T00:00:00Z"}
			must(t, w.cluster.Client.Update(t.Context(), set))
		}},
		"it serves the node no more": {set: account, before: func(w *world) {
			set := &appsv1.DaemonSet{}
			must(t, w.cluster.Client.Get(t.Context(), key(account), set))
			set.Spec.Template.Spec.NodeSelector = map[string]string{"pool": "other"}
			must(t, w.cluster.Client.Update(t.Context(), set))
		}},
		"it may not be read any more": {set: account, before: func(w *world) {
			must(t, w.cluster.Client.Delete(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: operators, Name: "agent-role"}}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, shared, 20)
			w.neverMind = true // without rights the report cannot be written
			t.Cleanup(func() { restore(t) })
			if tc.set != "" {
				w.daemonSet(tc.set)
			}
			w.config("c", everything())
			p := w.pod("p", sandbox.PodOptions{})
			w.begin(tc.env)
			must(t, w.agent.WaitReady(t.Context()))
			w.attached(p, "l4_firewall", "syscall_counter")
			w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Attached: 1})
			if tc.before != nil {
				tc.before(w)
			}
			was := w.pinned()
			w.stop()
			if tc.leaves {
				// Maps may have come since.
				if is := w.pinned(); len(is.links) != len(was.links) || len(is.maps) < len(was.maps) {
					t.Errorf("before %d links and %d maps, now %d and %d", len(was.links), len(was.maps), len(is.links), len(is.maps))
				}
				return
			}
			w.expectNothing(was)
		})
	}
}

// cleanup switches an agent to cleanup, as the flag does, with and without an API
// server.
func cleanup(t *testing.T, c *harness.Cluster) {
	w := newWorld(t, c, 20)
	w.daemonSet(account)
	w.config("c", everything())
	p := w.pod("p", sandbox.PodOptions{})
	w.start()
	w.attached(p, "l4_firewall", "syscall_counter")
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Attached: 1})
	was := w.pinned()
	w.stop()
	must(t, c.KillAPIServer())
	w.begin(nil, "--cleanup")
	w.eventually("nothing is pinned", func() error {
		if is := w.pinned(); len(is.links)+len(is.maps)+len(is.programs) > 0 {
			return fmt.Errorf("%+v", is)
		}
		return nil
	})
	w.expectNothing(was)
	must(t, c.StartAPIServer(t.Context()))
	w.eventually("it is reported", func() error {
		detached := w.condition(v1alpha1.ConditionDetached)
		if detached == nil || detached.Status != metav1.ConditionTrue || detached.Reason != v1alpha1.ReasonCleanedUp {
			return fmt.Errorf("%+v", detached)
		}
		n, err := w.report()
		if err == nil && (len(n.Status.Configs) > 0 || n.Status.AttachedPods > 0) {
			err = fmt.Errorf("it also says %+v", n.Status)
		}
		return err
	})
	select {
	case <-w.agent.Exited():
		t.Errorf("it ended by itself: %v", w.agent.ExitError())
	case <-time.After(time.Second):
	}
	w.stop()
	// The flag is on again.
	w.start()
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Attached: 1})
	if detached := w.condition(v1alpha1.ConditionDetached); detached != nil {
		t.Errorf("it serves again, and reports %+v", detached)
	}
}
