// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// TestFaults breaks one thing after the other under constant traffic. What may pass
// passes each time, what may not never does, and no counter of a pod runs backwards.
func TestFaults(t *testing.T) {
	p := &point{T: t, world: shared}
	p.step("ebpf.enabled=true", func(p *point) { p.enable() })
	next := p.nextImage()
	p.namespace(guarded)
	var b *bustle
	p.step("constant traffic between all nodes", func(p *point) { b = newBustle(p, "tcp", "udp") })
	b.watch = watchCounters(p.world, b.pods()...)
	t.Cleanup(b.watch.stop)
	p.fault(b, "upgrade of managers and agents, to other layouts of all maps", func(p *point) { p.upgradeTo(next) })
	p.fault(b, "and back", func(p *point) { p.upgradeTo("") })
	p.fault(b, "kill -9 of all agents", func(p *point) { p.killAgents(b) })
	p.fault(b, "kill -9 of the leader", (*point).killLeader)
	for _, program := range []string{cluster.Containerd, cluster.Kubelet} {
		p.fault(b, "kill -9 and restart of "+program+" on all nodes", func(p *point) { p.restartProgram(program) })
	}
	p.step("counters are what was sent", b.exact)
	p.fault(b, "a node cut off from the API server", func(p *point) { p.cutOff(b) })
	p.step("counters are what was sent, also to the node that was cut off", b.exact)
	p.fault(b, "restart of a node", func(p *point) { p.restartNode(b) })
	p.step("counters are what was sent, of the node's own pods since it is back", b.exact)
	p.step("quiet logs at rest", (*point).noErrorsAtRest)
	b.watch.stop()
	p.noNamespace(guarded)
	p.step("uninstall", (*point).uninstall) // the next test gets pods that nobody killed
}

// fault is a step under the traffic, which is told with what came of it meanwhile.
func (p *point) fault(b *bustle, name string, do func(*point)) {
	p.Helper()
	p.step(name, func(p *point) {
		before, began := b.sum(b.goOn(p)), time.Now()
		scrapes, missed, _ := b.watch.figures()
		b.call(p, b.out, 100)
		do(p)
		b.call(p, b.out, 10)
		took := time.Since(began)
		now := b.goOn(p)
		p.await("all counters are told again", func() error { return b.watch.whole(began.Add(took)) })
		b.awaitCalls(p, b.out)
		b.nothingTaken(p, append(append([]*corev1.Pod{}, b.in...), b.plain...)...)
		for _, line := range wrong(now) {
			p.Error(line)
		}
		is := b.sum(now)
		scraped, missing, backwards := b.watch.figures()
		for _, line := range backwards {
			p.Errorf("a counter ran backwards: %s", line)
		}
		say("  after %s: %d requests, %d failed; %d probes, %d leaked; %d scrapes, %d unanswered, %d counters ran backwards", took.Round(100*time.Millisecond),
			is.requests-before.requests, is.failed, is.probes-before.probes, is.leaked, scraped-scrapes, missing-missed, len(backwards))
	})
}

// nextTag is of an image that the test makes.
const nextTag = "next"

// nextImage gives all nodes an image of this tree whose programs have other layouts of
// their maps, as another version may, and returns its repository.
func (p *point) nextImage() string {
	const repository = "localhost/podconfigmap-controller"
	p.step("an image of another version", func(p *point) {
		root, err := harness.Root()
		p.must(err)
		program := filepath.Join(p.TempDir(), "podconfigmap-controller")
		build := exec.CommandContext(p.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-tags", "nextlayout",
			"-ldflags", "-s -w -X github.com/podconfigmap/podconfigmap-controller/internal/version.Version="+nextTag, "-o", program, ".")
		build.Dir, build.Env = root, append(build.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			p.Fatalf("building another version: %v\n%s", err, said)
		}
		tar := filepath.Join(p.TempDir(), "podconfigmap-controller-next.tar")
		p.must(cluster.BuildImage(p.Context(), repository+":"+nextTag, tar, program, "-cmd", "manager"))
		p.must(p.Load(p.Context(), tar))
	})
	return repository
}

// upgradeTo upgrades the release to the image of a repository, or to the chart's own,
// and waits until all agents are of that.
func (p *point) upgradeTo(repository string) {
	p.Helper()
	values := []string{"--set", "ebpf.enabled=true"}
	if repository != "" {
		values = append(values, "--set", "image.repository="+repository, "--set", "image.tag="+nextTag)
	}
	p.deploy(values...)
	deployment := &appsv1.Deployment{}
	p.must(p.get(system, manager, deployment))
	image := deployment.Spec.Template.Spec.Containers[0].Image
	if (repository != "") != strings.HasSuffix(image, ":"+nextTag) {
		p.Fatalf("the managers' image is %s", image)
	}
	p.await("all agents are of "+image, func() error {
		set := &appsv1.DaemonSet{}
		if err := p.get(system, agents, set); err != nil {
			return err
		}
		if is := set.Spec.Template.Spec.Containers[0].Image; is != image {
			return fmt.Errorf("the DaemonSet has %s", is)
		}
		if s := set.Status; s.ObservedGeneration != set.Generation || int(s.UpdatedNumberScheduled) != *nodes || int(s.NumberAvailable) != *nodes {
			return fmt.Errorf("the DaemonSet's status is %+v", s)
		}
		return nil
	})
}

// agentOf is the agent's pod of a node.
func (p *point) agentOf(node string) *corev1.Pod {
	p.Helper()
	for _, pod := range p.pods(system, agentLabels) {
		if pod.Spec.NodeName == node && pod.DeletionTimestamp == nil {
			return &pod
		}
	}
	p.Fatalf("%s has no agent", node)
	return nil
}

// restarted waits until a pod is ready, its container having been started anew.
func (p *point) restarted(pod *corev1.Pod) {
	p.Helper()
	before := pod.Status.ContainerStatuses[0]
	p.await("pod "+pod.Name+" is ready again", func() error {
		if err := p.get(pod.Namespace, pod.Name, pod); err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 0 {
			return errors.New("it has no status of its container")
		}
		if is := pod.Status.ContainerStatuses[0]; is.RestartCount <= before.RestartCount || is.ContainerID == before.ContainerID {
			return fmt.Errorf("container %s, %d restarts", is.ContainerID, is.RestartCount)
		}
		return ready(pod)
	})
}

func (p *point) killAgents(b *bustle) {
	var killed []*corev1.Pod
	for _, node := range p.Nodes() {
		agent := p.agentOf(node.Name)
		p.must(node.KillPod(string(agent.UID)))
		killed = append(killed, agent)
	}
	b.call(p, b.out, 1000) // which nobody but the kernel can count
	for _, agent := range killed {
		p.restarted(agent)
	}
}

// leader is who holds the managers' Lease.
func (p *point) leader() string {
	p.Helper()
	lease := &coordinationv1.Lease{}
	p.must(p.get(system, "podconfigmap-controller-lock", lease))
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	name, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return name
}

// killLeader has another manager take over, and work.
func (p *point) killLeader() {
	pod := &corev1.Pod{}
	p.await("a manager leads", func() error { return p.get(system, p.leader(), pod) })
	began := time.Now()
	p.must(p.Node(pod.Spec.NodeName).KillPod(string(pod.UID)))
	late := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: "late", Labels: map[string]string{"app": "in"}}, Spec: bustling()}
	p.create(late)
	p.await("a manager makes the ConfigMap of a new pod", func() error {
		return p.get(guarded, "pod-late-from-in-cfg", &corev1.ConfigMap{})
	})
	say("  the ConfigMap of a new pod was there %s after the kill; %s led, %s leads", time.Since(began).Round(100*time.Millisecond), pod.Name, p.leader())
	p.restarted(pod)
	p.must(p.client.Delete(p.Context(), late))
	p.await("the pod is gone", func() error { return p.gone(guarded, late.Name, &corev1.Pod{}) })
}

// restartProgram kills a program of each node, one node after the other.
func (p *point) restartProgram(name string) {
	for _, node := range p.Nodes() {
		p.must(node.KillProgram(p.Context(), name))
		time.Sleep(time.Second) // not to be mistaken for a moment's hiccup
		p.must(node.StartProgram(p.Context(), name))
	}
}

// ebpfReady waits until the condition of a config is what it should be, and returns its
// message.
func (p *point) ebpfReady(name string, is func(*metav1.Condition) bool) string {
	p.Helper()
	var message string
	p.await("EBPFReady of "+name+" says so", func() error {
		config := &v1alpha1.PodConfigMapConfig{}
		if err := p.get(guarded, name, config); err != nil {
			return err
		}
		c := meta.FindStatusCondition(config.Status.Conditions, v1alpha1.ConditionEBPFReady)
		if c == nil || c.ObservedGeneration != config.Generation || !is(c) {
			return fmt.Errorf("it is %+v", c)
		}
		message = c.Message
		return nil
	})
	return message
}

// cutOff keeps a node from the API server. Its programs go on without it, also those of
// an agent that is killed meanwhile; the status names it; rules that were changed
// meanwhile arrive when it is back.
func (p *point) cutOff(b *bustle) {
	node := p.Nodes()[1]
	agent := p.agentOf(node.Name)
	began := time.Now()
	p.must(node.Partition())
	defer func() { p.must(node.Heal()) }()
	said := p.ebpfReady("in", func(c *metav1.Condition) bool {
		return c.Status == metav1.ConditionFalse && strings.Contains(c.Message, "not ready: "+node.Name+" since ")
	})
	say("  the status says after %s: %s", time.Since(began).Round(time.Second), said)
	p.ebpfReady("out", func(c *metav1.Condition) bool { return strings.Contains(c.Message, node.Name+" since ") })
	b.call(p, b.out[1:2], 100)
	b.awaitCalls(p, b.out) // as its own agent tells
	b.goOn(p)

	pids, err := node.Processes(string(agent.UID))
	p.must(err)
	p.must(node.KillPod(string(agent.UID)))
	p.await("another agent runs on "+node.Name, func() error {
		now, err := node.Processes(string(agent.UID))
		if err == nil && (len(now) == 0 || now[0] == pids[0]) {
			err = fmt.Errorf("processes %v, before %v", now, pids)
		}
		return err
	})
	p.patch(&v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: "out"}},
		fmt.Sprintf(`{"spec":{"ebpfConfig":{"l4Firewall":{"allowedPorts":[%d,%d]}}}}`, openPort, control))
	p.ebpfReady("out", func(c *metav1.Condition) bool {
		return c.Status == metav1.ConditionFalse && strings.Contains(c.Message, node.Name)
	})
	b.call(p, b.out[1:2], 100)
	b.goOn(p)

	p.must(node.Heal())
	healed := time.Now()
	for _, name := range []string{"in", "out"} {
		p.ebpfReady(name, func(c *metav1.Condition) bool { return c.Status == metav1.ConditionTrue })
		p.awaitConfig(guarded, name)
	}
	say("  the configs are ready %s after it is back", time.Since(healed).Round(100*time.Millisecond))
	// What the change lets pass now.
	ways := waysTo(b.out[1], b.plain[2])
	p.walk(ways)
	for _, w := range ways {
		b.note(w.from, w.to, w.network, w.passes, 1)
	}
	p.await(node.Name+" is ready", func() error { return p.readyNode(node.Name) })
}

// waysTo are those from a pod, whose egress is filtered, to the control port of another.
func waysTo(from, to *corev1.Pod) []way {
	r := route{what: "a rule that was changed meanwhile", from: from, to: to, by: from, addresses: podIPs(to), networks: []string{"tcp"}}
	return r.ways(control, blockedPort)
}

func (p *point) readyNode(name string) error {
	node := &corev1.Node{}
	if err := p.get("", name, node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("%s is not ready: %+v", name, node.Status.Conditions)
}

// restartNode takes the power from a node. What is cut is the traffic of its own pods,
// from then on until its agent serves them again (docs/ebpf.md, Limits: Birth), and
// their counters begin anew; all other flows go on.
func (p *point) restartNode(b *bustle) {
	const index = 2
	node := p.Nodes()[index]
	touched := func(f *flow) bool { return f.touches(node.Name) }
	b.end(p, touched)
	b.anew(p, b.in[index], b.out[index], b.plain[index])
	began := time.Now()
	p.must(node.Kill())
	b.watch.forget(node.Name)
	b.goOn(p)
	p.must(node.Start(p.Context()))
	say("  %s was down for %s", node.Name, time.Since(began).Round(100*time.Millisecond))
	for _, pod := range []*corev1.Pod{b.in[index], b.out[index], b.plain[index]} {
		p.restarted(pod)
		p.awaitServing(pod)
	}
	for _, pod := range []*corev1.Pod{b.in[index], b.out[index]} {
		p.await(pod.Name+" is served again", func() error { return p.servedBy(pod) })
	}
	say("  its pods are served again %s after it went", time.Since(began).Round(100*time.Millisecond))
	b.reconnect(touched)
	b.begin(p, touched)
	b.call(p, b.out[index:], 100)
	for _, name := range []string{"in", "out"} {
		p.awaitConfig(guarded, name)
	}
	p.await("the managers are back", func() error { return p.rolledOut(system, manager) })
}

// servedBy is nil when the agent of its node serves a pod with all it asks for.
func (p *point) servedBy(pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(p.Context(), 10*time.Second)
	defer cancel()
	families, err := p.scrape(ctx, p.agentOf(pod.Spec.NodeName))
	if err != nil {
		return err
	}
	served := 0
	for _, m := range families["podconfigmap_controller_ebpf_attached_programs"].GetMetric() {
		if hasLabels(m, pod, nil) && m.GetGauge().GetValue() == 1 {
			served++
		}
	}
	if want := map[string]int{"in": 1, "out": 2}[pod.Labels["app"]]; served != want {
		return fmt.Errorf("%d of %d programs serve it", served, want)
	}
	return nil
}

// reconnect gives flows the addresses that their pods have now.
func (b *bustle) reconnect(which func(*flow) bool) {
	stays := b.flows[:0]
	for _, f := range b.flows {
		if !which(f) {
			stays = append(stays, f)
		}
	}
	kept := append([]*flow{}, stays...)
	b.connect()
	for _, f := range b.flows {
		if which(f) {
			kept = append(kept, f)
		}
	}
	b.flows = kept
}
