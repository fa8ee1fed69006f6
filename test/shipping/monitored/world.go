// SPDX-License-Identifier: Apache-2.0

// Package monitored runs managers, node agents and pods on real kernel and control
// plane, and a real Prometheus (Debian's package) that scrapes them as the shipped
// ServiceMonitors say and has the shipped alerts. Among the nodes and configs are
// some with faults, so that there is something to see.
package monitored

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// Operators is the namespace of managers and agents.
const Operators = "podconfigmap-controller-system"

// What the nodes are like.
const (
	// Healthy supports everything; the pods with traffic run there.
	Healthy = "node-1"
	// Poor has an agent without NET_ADMIN, so that it lacks the firewall.
	Poor = "node-2"
	// Full has fewer slots than pods that want one.
	Full = "node-3"
)

// The ports of the pods with traffic.
const (
	openPort    = 8080
	blockedPort = 8081
	auditedPort = 9090
	datagrams   = 5353
	blockedMail = 25
)

// World is a cluster at work. Everything in it ends with the test.
type World struct {
	*harness.Cluster
	Prometheus *Prometheus

	t        testing.TB
	managers []*harness.Manager
	nodes    map[string]*node
	pods     map[string]*Pod
}

type node struct {
	*sandbox.Node
	agent *harness.Manager
	peer  *sandbox.Peer
}

// Pod is a pod in the API and on its node.
type Pod struct {
	*sandbox.Pod
	object *corev1.Pod
	peer   *sandbox.Peer
}

// Start starts a cluster of two managers, three nodes with their agents, and pods
// at work, and a Prometheus that scrapes at each step.
func Start(t testing.TB, step time.Duration) *World {
	t.Helper()
	w := &World{t: t, nodes: map[string]*node{}, pods: map[string]*Pod{}}
	cluster, err := harness.StartCluster(t.Context(), controlplane.Options{Progress: os.Stderr})
	w.must(err)
	t.Cleanup(func() { w.check(cluster.Stop()) })
	w.Cluster = cluster
	for _, namespace := range []string{Operators, "shop", "edge", "batch", "bank"} {
		w.must(w.NewNamespace(t.Context(), namespace))
	}
	w.addConfigs()
	for range 2 {
		w.addManager()
	}
	w.addNode(Healthy, 110, nil)
	w.addNode(Poor, 110, []string{"setpriv", "--inh-caps=-all", "--bounding-set=-all,+bpf,+perfmon"})
	w.addNode(Full, 2, nil)
	w.addPods()
	w.Prometheus = StartPrometheus(t, step, w.jobs()...)
	w.startTraffic()
	w.startChanges()
	return w
}

func (w *World) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *World) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Error(err)
	}
}

// addManager starts a manager with the shipped settings and with eBPF.
func (w *World) addManager() {
	m, err := w.StartManager(map[string]string{
		"POD_NAMESPACE": Operators, "EBPF_ENABLED": "true", "RELATED_IMAGE_AGENT": "registry.invalid/agent:v1",
		// A busy machine is no reason to lose the Lease here.
		"LEADER_ELECTION_LEASE_DURATION": "60s", "LEADER_ELECTION_RENEW_DEADLINE": "45s", "LEADER_ELECTION_RETRY_PERIOD": "2s",
	})
	w.must(err)
	w.managers = append(w.managers, m)
	w.endWithTest(fmt.Sprintf("manager %d", len(w.managers)), m)
	w.must(m.WaitReady(w.t.Context()))
}

func (w *World) endWithTest(name string, m *harness.Manager) {
	w.t.Cleanup(func() {
		w.check(m.Kill())
		if w.t.Failed() {
			w.t.Logf("the log of %s ends with\n%s", name, m.LogTail(15))
		}
	})
}

// addNode makes a node that may run so many pods, and starts its agent.
func (w *World) addNode(name string, pods int64, launcher []string) {
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.must(w.Client.Create(w.t.Context(), object))
	object.Status.Capacity = corev1.ResourceList{corev1.ResourcePods: *resource.NewQuantity(pods, resource.DecimalSI)}
	w.must(w.Client.Status().Update(w.t.Context(), object))
	n := &node{Node: sandbox.New(w.t)}
	agent, err := w.StartAgentUnder(launcher, map[string]string{
		"NODE_NAME": name, "POD_NAMESPACE": Operators, "CGROUP_ROOT": n.Root(), "BPFFS_ROOT": n.BPFFS() + "/podconfigmap",
		// What fails is tried again soon.
		"CONTROLLER_RESYNC_PERIOD": "5s",
	})
	w.must(err)
	n.agent, n.peer = agent, n.Peer()
	w.nodes[name] = n
	w.endWithTest("the agent of "+name, agent)
	w.must(agent.WaitReady(w.t.Context()))
}

// jobs are what the two ServiceMonitors find.
func (w *World) jobs() []Job {
	managers := Job{Monitor: "monitor.yaml", Service: "podconfigmap-controller-metrics", Namespace: Operators}
	for i, m := range w.managers {
		managers.Pods = append(managers.Pods, Scraped{Address: m.MetricsAddress(), Pod: fmt.Sprintf("manager-%d", i+1)})
	}
	agents := Job{Monitor: "agent_monitor.yaml", Service: "podconfigmap-controller-agent-metrics", Namespace: Operators}
	for name, n := range w.nodes {
		agents.Pods = append(agents.Pods, Scraped{Address: n.agent.MetricsAddress(), Pod: "agent-of-" + name, Node: name})
	}
	return []Job{managers, agents}
}

func (w *World) addConfigs() {
	counted := &v1alpha1.SyscallMonitoring{Enabled: true}
	exported := &v1alpha1.MetricsExport{Enabled: true, UpdateInterval: "1s"}
	both := []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionIngress, v1alpha1.FirewallDirectionEgress}
	for _, c := range []struct {
		namespace, name, app string
		ebpf                 v1alpha1.EBPFConfig
	}{
		{"shop", "web", "web", v1alpha1.EBPFConfig{SyscallMonitoring: counted, MetricsExport: exported,
			L4Firewall: &v1alpha1.L4Firewall{Enabled: true, BlockedPorts: []v1alpha1.Port{blockedPort, blockedMail}, Directions: both}}},
		{"shop", "api-audit", "api", v1alpha1.EBPFConfig{SyscallMonitoring: counted, MetricsExport: exported,
			L4Firewall: &v1alpha1.L4Firewall{Enabled: true, BlockedPorts: []v1alpha1.Port{auditedPort}, Mode: v1alpha1.FirewallModeAudit}}},
		// On a node without the firewall.
		{"edge", "cache", "cache", v1alpha1.EBPFConfig{SyscallMonitoring: counted, MetricsExport: exported,
			L4Firewall: &v1alpha1.L4Firewall{Enabled: true, BlockedPorts: []v1alpha1.Port{blockedPort}}}},
		// For a pod that runs, as its status says, and has no cgroup.
		{"shop", "orders", "orders", v1alpha1.EBPFConfig{SyscallMonitoring: counted, MetricsExport: exported,
			L4Firewall: &v1alpha1.L4Firewall{Enabled: true, BlockedPorts: []v1alpha1.Port{blockedPort}}}},
		// For more pods than their node has slots.
		{"batch", "jobs", "job", v1alpha1.EBPFConfig{SyscallMonitoring: counted, MetricsExport: exported}},
	} {
		config := newConfig(c.namespace, c.name, c.app)
		config.Spec.EBPFConfig = &c.ebpf
		w.must(w.Client.Create(w.t.Context(), config))
	}
	broken := newConfig("bank", "ledger", "ledger")
	broken.Spec.ConfigMapDataTemplate = v1alpha1.DataTemplates{"owner": "{{ .labels.team"}
	w.must(w.Client.Create(w.t.Context(), broken))
	w.must(w.Client.Create(w.t.Context(), newConfig("bank", "tellers", "teller")))
	// It is in the way of one of the crowd.
	foreign := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "pod-teller-5-from-tellers-cfg"}}
	w.must(w.Client.Create(w.t.Context(), foreign))
}

func newConfig(namespace, name, app string) *v1alpha1.PodConfigMapConfig {
	c := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	c.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": app}}
	c.Spec.LabelsToInclude = []v1alpha1.MetadataKey{"app", "revision"}
	return c
}

func (w *World) addPods() {
	network := sandbox.PodOptions{}
	w.addPod(Healthy, "shop", "web-1", "web", network)
	w.addPod(Healthy, "shop", "web-2", "web", network)
	w.addPod(Healthy, "shop", "api-1", "api", network)
	w.addPod(Poor, "edge", "cache-1", "cache", network)
	for i := range 5 {
		w.addPod(Full, "batch", fmt.Sprintf("job-%d", i+1), "job", sandbox.PodOptions{NoNetwork: true})
	}
	w.addPod("", "bank", "ledger-1", "ledger", network)
	w.setRunning(w.bind(Healthy, "shop", "orders-1", "orders", network))
}

// addPod makes a pod with a process; one without a node is in the API alone.
func (w *World) addPod(on, namespace, name, app string, o sandbox.PodOptions) {
	p := w.bind(on, namespace, name, app, o)
	if on == "" {
		return
	}
	p.MakeCgroup()
	p.peer = p.Peer()
	w.setRunning(p)
	w.pods[name] = p
}

func (w *World) bind(on, namespace, name, app string, o sandbox.PodOptions) *Pod {
	no := false
	p := &Pod{object: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			NodeName: on, AutomountServiceAccountToken: &no,
			Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/app:1"}},
		},
	}}
	w.must(w.Client.Create(w.t.Context(), p.object))
	if on != "" {
		o.UID = p.object.UID
		p.Pod = w.nodes[on].NewPod(o)
	}
	return p
}

// setRunning writes the pod's status, as kubelet does.
func (w *World) setRunning(p *Pod) {
	p.object.Status.Phase = corev1.PodRunning
	for _, a := range p.Addresses() {
		p.object.Status.PodIPs = append(p.object.Status.PodIPs, corev1.PodIP{IP: a.String()})
		p.object.Status.PodIP = p.object.Status.PodIPs[0].IP
	}
	w.must(w.Client.Status().Update(w.t.Context(), p.object))
}

// startTraffic has processes talk to each other without end: to open ports, and
// to such that are blocked, in both directions, or would be.
func (w *World) startTraffic() {
	outside := w.nodes[Healthy].peer
	for _, name := range []string{"web-1", "web-2", "api-1"} {
		p := w.pods[name]
		for _, port := range []int{openPort, blockedPort, auditedPort} {
			w.listen(p.peer, "tcp", p.at(port))
		}
		w.listen(p.peer, "udp", p.at(datagrams))
		w.loop(outside, name+" open", sandbox.Loop{Network: "tcp", Remote: p.at(openPort), Fresh: true, Every: 20 * time.Millisecond})
		w.loop(outside, name+" udp", sandbox.Loop{Network: "udp", Remote: p.at(datagrams), Every: 10 * time.Millisecond})
	}
	gateway := fmt.Sprintf("%s:%d", w.nodes[Healthy].Addresses()[0], blockedMail)
	w.loop(outside, "scan", sandbox.Loop{Network: "tcp", Remote: w.pods["web-1"].at(blockedPort), Fresh: true, Every: 50 * time.Millisecond, Timeout: 200 * time.Millisecond})
	w.loop(w.pods["web-2"].peer, "mail", sandbox.Loop{Network: "tcp", Remote: gateway, Fresh: true, Every: 100 * time.Millisecond})
	w.loop(outside, "audited", sandbox.Loop{Network: "tcp", Remote: w.pods["api-1"].at(auditedPort), Fresh: true, Every: 100 * time.Millisecond})
	cache := w.pods["cache-1"]
	w.listen(cache.peer, "tcp", cache.at(openPort))
	w.loop(w.nodes[Poor].peer, "cache", sandbox.Loop{Network: "tcp", Remote: cache.at(openPort), Fresh: true, Every: 50 * time.Millisecond})
}

func (p *Pod) at(port int) string { return fmt.Sprintf("%s:%d", p.IPv4(), port) }

func (w *World) listen(peer *sandbox.Peer, network, address string) {
	_, err := peer.Listen(network, address)
	w.must(err)
}

func (w *World) loop(peer *sandbox.Peer, name string, l sandbox.Loop) {
	w.must(peer.StartLoop(name, l))
}

// startChanges has pods and configs change, and jobs make system calls, until the
// test ends.
func (w *World) startChanges() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for turn := 0; ctx.Err() == nil; turn++ {
			if err := w.change(ctx, turn); err != nil && ctx.Err() == nil {
				w.t.Errorf("changing pods and configs: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
}

// change is one turn: another label of a pod, another broken template, a crowd that
// comes or goes, and system calls of the jobs.
func (w *World) change(ctx context.Context, turn int) error {
	errs := []error{
		w.patch(ctx, w.pods["web-1"].object, fmt.Sprintf(`{"metadata":{"labels":{"revision":"%d"}}}`, turn)),
	}
	if turn%4 == 0 {
		errs = append(errs, w.crowd(ctx, turn/4))
		broken := newConfig("bank", "ledger", "ledger")
		errs = append(errs, w.patch(ctx, broken, fmt.Sprintf(`{"spec":{"configMapDataTemplate":{"owner":"{{ .labels.team%d"}}}`, turn)))
	}
	for i := range 5 {
		errs = append(errs, w.pods[fmt.Sprintf("job-%d", i+1)].peer.Calls(-1, 500*(i+1)))
	}
	return errors.Join(errs...)
}

func (w *World) patch(ctx context.Context, object client.Object, patch string) error {
	return w.Client.Patch(ctx, object.DeepCopyObject().(client.Object), client.RawPatch("application/merge-patch+json", []byte(patch)))
}

// crowd makes a dozen pods of the API alone, and deletes them again.
func (w *World) crowd(ctx context.Context, turn int) error {
	const members, period = 12, 40
	at := turn % period
	name := fmt.Sprintf("teller-%d", at%(period/2))
	if at%(period/2) >= members {
		return nil
	}
	if at >= period/2 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: name}}
		return w.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))
	}
	no := false
	return w.Client.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: name, Labels: map[string]string{"app": "teller"}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			Containers:                   []corev1.Container{{Name: "main", Image: "registry.invalid/app:1"}},
		},
	})
}
