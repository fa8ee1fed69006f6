// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	dto "github.com/prometheus/client_model/go"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// patience is how long anything may take: many times what it takes on a quiet
// machine.
const patience = time.Minute

const prefix = "podconfigmap_controller_"

// world is one node with its agent, and a namespace of its own in the cluster.
type world struct {
	t         testing.TB
	cluster   *harness.Cluster
	node      *sandbox.Node
	name      string // of the node, and of the namespace
	environ   map[string]string
	agent     *harness.Manager
	launcher  []string // of the agent, such as setpriv
	tags      string   // of the agent's build
	neverMind bool     // what the agent logs is no fault
}

var worlds atomic.Int32

// newWorld makes a node that may run so many pods.
func newWorld(t testing.TB, c *harness.Cluster, pods int) *world {
	t.Helper()
	w := &world{t: t, cluster: c, name: fmt.Sprintf("node-%d", worlds.Add(1)), node: sandbox.New(t)}
	must(t, c.NewNamespace(t.Context(), w.name))
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.name}}
	must(t, c.Client.Create(t.Context(), node))
	node.Status.Capacity = corev1.ResourceList{corev1.ResourcePods: resource.MustParse(strconv.Itoa(pods))}
	must(t, c.Client.Status().Update(t.Context(), node))
	file := filepath.Join(scratch, w.name+".kubeconfig")
	must(t, kubeconfig(t.Context(), c, file))
	w.environ = map[string]string{
		"KUBECONFIG": file, "NODE_NAME": w.name, "POD_NAMESPACE": operators,
		"CGROUP_ROOT": w.node.Root(), "BPFFS_ROOT": w.pins(),
	}
	t.Cleanup(w.end)
	return w
}

// pins is the directory of the agent's pins.
func (w *world) pins() string { return filepath.Join(w.node.BPFFS(), "podconfigmap", operators) }

func (w *world) end() {
	if w.agent == nil {
		return
	}
	if err := w.agent.Kill(); err != nil {
		w.t.Error(err)
	}
	w.lookThroughLog()
	if w.t.Failed() {
		w.t.Logf("the agent's log ends with\n%s", w.agent.LogTail(25))
	}
}

func (w *world) lookThroughLog() {
	for line := range strings.Lines(w.agent.Log()) {
		bad := strings.HasPrefix(line, "E") || strings.HasPrefix(line, "F") || strings.HasPrefix(line, "panic") || strings.Contains(line, "DATA RACE")
		if bad && !w.neverMind {
			w.t.Errorf("the agent logged: %s", line)
		}
	}
}

// begin starts the agent; it does not wait.
func (w *world) begin(extra map[string]string, args ...string) {
	w.t.Helper()
	environ := maps.Clone(w.environ)
	maps.Copy(environ, extra)
	agent, err := w.cluster.StartAgentBuild(w.tags, w.launcher, environ, args...)
	must(w.t, err)
	w.agent = agent
}

// start starts the agent and waits until it is ready.
func (w *world) start() {
	w.t.Helper()
	w.begin(nil)
	must(w.t, w.agent.WaitReady(w.t.Context()))
}

// kill ends the agent as the kernel does.
func (w *world) kill() {
	w.t.Helper()
	must(w.t, w.agent.Kill())
	w.lookThroughLog()
}

// stop ends the agent as kubelet does.
func (w *world) stop() {
	w.t.Helper()
	if err := w.agent.Stop(); err != nil {
		w.t.Fatalf("the agent did not stop cleanly: %v\n%s", err, w.agent.LogTail(20))
	}
	w.lookThroughLog()
}

// eventually waits until something holds.
func (w *world) eventually(what string, holds func() error) {
	w.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = holds(); err == nil {
			return
		}
	}
	w.t.Fatalf("%s: not within %v: %v", what, patience, err)
}

// pod is a pod in the API and in the sandbox.
type pod struct {
	*sandbox.Pod
	object *corev1.Pod
}

// bind makes a pod in the API, bound to the node, with its network, but no cgroup
// yet.
func (w *world) bind(name string, o sandbox.PodOptions, edit ...func(*corev1.Pod)) *pod {
	w.t.Helper()
	no := false
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: name, Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			NodeName: w.name, AutomountServiceAccountToken: &no, HostNetwork: o.HostNetwork,
			Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/app:1"}},
		},
	}
	for _, e := range edit {
		e(object)
	}
	must(w.t, w.cluster.Client.Create(w.t.Context(), object))
	if o.UID == "" {
		o.UID = object.UID
	}
	return &pod{Pod: w.node.NewPod(o), object: object}
}

// pod makes a pod that runs.
func (w *world) pod(name string, o sandbox.PodOptions, edit ...func(*corev1.Pod)) *pod {
	w.t.Helper()
	p := w.bind(name, o, edit...)
	p.MakeCgroup()
	w.setPhase(p, corev1.PodRunning)
	return p
}

// setPhase writes the pod's phase and addresses, as kubelet does.
func (w *world) setPhase(p *pod, phase corev1.PodPhase) {
	w.t.Helper()
	p.object.Status.Phase = phase
	p.object.Status.PodIPs = nil
	for _, a := range p.Addresses() {
		p.object.Status.PodIPs = append(p.object.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(p.object.Status.PodIPs) > 0 {
		p.object.Status.PodIP = p.object.Status.PodIPs[0].IP
	}
	must(w.t, w.cluster.Client.Status().Update(w.t.Context(), p.object))
}

// delete deletes a pod in the API at once; its cgroup stays.
func (w *world) delete(p *pod) {
	w.t.Helper()
	must(w.t, w.cluster.Client.Delete(w.t.Context(), p.object, client.GracePeriodSeconds(0)))
}

func web() *v1alpha1.PodSelector {
	return &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": "web"}}
}

// exported asks for metrics that are never old.
func exported() *v1alpha1.MetricsExport {
	return &v1alpha1.MetricsExport{Enabled: true, UpdateInterval: "1ms"}
}

// blocking blocks ports by name.
func blocking(ports ...v1alpha1.Port) *v1alpha1.L4Firewall {
	return &v1alpha1.L4Firewall{Enabled: true, BlockedPorts: ports}
}

// config makes a config for the pods of the app web.
func (w *world) config(name string, e v1alpha1.EBPFConfig) *v1alpha1.PodConfigMapConfig {
	w.t.Helper()
	c := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: name}}
	c.Spec.PodSelector, c.Spec.EBPFConfig = web(), &e
	must(w.t, w.cluster.Client.Create(w.t.Context(), c))
	return c
}

// edit changes a config.
func (w *world) edit(c *v1alpha1.PodConfigMapConfig, change func(*v1alpha1.EBPFConfig)) {
	w.t.Helper()
	change(c.Spec.EBPFConfig)
	must(w.t, w.cluster.Client.Update(w.t.Context(), c))
}

// report reads the node's EBPFNode.
func (w *world) report() (*v1alpha1.EBPFNode, error) {
	n := &v1alpha1.EBPFNode{}
	return n, w.cluster.Client.Get(w.t.Context(), client.ObjectKey{Namespace: operators, Name: w.name}, n)
}

// awaitReport waits until the report on a config is as wanted; its message does
// not count.
func (w *world) awaitReport(want v1alpha1.EBPFNodeConfig) string {
	w.t.Helper()
	message := ""
	w.eventually(fmt.Sprintf("the report on config %q", want.Name), func() error {
		n, err := w.report()
		if err != nil {
			return err
		}
		for _, got := range n.Status.Configs {
			message = got.Message
			got.Message, want.Namespace = "", w.name
			if got == want {
				return nil
			}
		}
		return fmt.Errorf("configs %+v, want %+v", n.Status.Configs, want)
	})
	return message
}

// attached waits until the program of a type serves the pod.
func (w *world) attached(p *pod, types ...string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("pod %s has %v", p.object.Name, types), func() error {
		for _, one := range types {
			if value, found := w.value("ebpf_attached_programs", map[string]string{"pod_name": p.object.Name, "program_type": one}); !found || value != 1 {
				return fmt.Errorf("%s: %v, found %t", one, value, found)
			}
		}
		return nil
	})
}

// scrape reads the agent's metrics.
func (w *world) scrape() map[string]*dto.MetricFamily {
	families, err := w.agent.Scrape(w.t.Context())
	if err != nil {
		return nil
	}
	return families
}

// value is that of the one series of this namespace with these labels.
func (w *world) value(metric string, labels map[string]string) (value float64, found bool) {
	for _, m := range w.series(metric, labels) {
		value, found = m.GetCounter().GetValue()+m.GetGauge().GetValue(), true
	}
	return value, found
}

// series are those of this namespace with these labels.
func (w *world) series(metric string, labels map[string]string) []*dto.Metric {
	var all []*dto.Metric
	family := w.scrape()[prefix+metric]
	for _, m := range family.GetMetric() {
		has := map[string]string{}
		for _, l := range m.Label {
			has[l.GetName()] = l.GetValue()
		}
		fits := true
		for name, value := range labels {
			fits = fits && has[name] == value
		}
		if namespace, local := has["namespace"]; fits && (!local || namespace == w.name) {
			all = append(all, m)
		}
	}
	return all
}

// firewall reads the pod's firewall statistics.
func (w *world) firewall(p *pod) map[string]uint64 {
	all := map[string]uint64{}
	for _, m := range w.series("ebpf_l4_firewall_total", map[string]string{"pod_name": p.object.Name}) {
		for _, l := range m.Label {
			if l.GetName() == "stat_type" {
				all[l.GetValue()] = uint64(m.GetCounter().GetValue())
			}
		}
	}
	return all
}

// calls reads how often the pod made a system call; an empty pid is all.
func (w *world) calls(p *pod, name string) uint64 {
	value, _ := w.value("ebpf_syscall_count_total", map[string]string{"pod_name": p.object.Name, "syscall": name, "pid": ""})
	return uint64(value)
}

// awaitEvent waits for a Warning of that reason about an object of that name.
func (w *world) awaitEvent(namespace, name, reason, text string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("an Event %s about %s", reason, name), func() error {
		list := &eventsv1.EventList{}
		if err := w.cluster.Client.List(w.t.Context(), list, client.InNamespace(namespace)); err != nil {
			return err
		}
		var notes []string
		for _, e := range list.Items {
			if e.Regarding.Name == name && e.Reason == reason && e.Type == corev1.EventTypeWarning {
				if strings.Contains(e.Note, text) {
					return nil
				}
				notes = append(notes, e.Note)
			}
		}
		return fmt.Errorf("the notes of its Events: %q", notes)
	})
}

// remains are the kernel's objects that are pinned, by what they are and their
// ids.
type remains struct {
	maps     []ebpf.MapID
	programs []ebpf.ProgramID
	links    []link.ID
}

// pinned lists what the agent has in the kernel.
func (w *world) pinned() *remains {
	w.t.Helper()
	r := &remains{}
	must(w.t, filepath.WalkDir(filepath.Dir(w.pins()), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
			defer m.Close()
			info, err := m.Info()
			if err != nil {
				return err
			}
			id, _ := info.ID()
			r.maps = append(r.maps, id)
			return nil
		}
		if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
			defer p.Close()
			info, err := p.Info()
			if err != nil {
				return err
			}
			id, _ := info.ID()
			r.programs = append(r.programs, id)
			return nil
		}
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // It went meanwhile.
		}
		if err != nil {
			return fmt.Errorf("%s is nothing that we know: %w", path, err)
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return err
		}
		r.links, r.programs = append(r.links, info.ID), append(r.programs, info.Program)
		return nil
	}))
	return r
}

// left names what of it is still in the kernel. It asks for ids alone: a kernel
// (6.18 does) can lose count of who uses a program array that is opened just when
// its last user lets go of it, and keep it for good.
func (r *remains) left() error {
	var errs []error
	for _, id := range r.maps {
		if next, err := ebpf.MapGetNextID(id - 1); err == nil && next == id {
			errs = append(errs, fmt.Errorf("map %d is left", id))
		}
	}
	for _, id := range r.programs {
		if next, err := ebpf.ProgramGetNextID(id - 1); err == nil && next == id {
			errs = append(errs, fmt.Errorf("program %d is left", id))
		}
	}
	for _, id := range r.links {
		if l, err := link.NewFromID(id); err == nil {
			errs = append(errs, fmt.Errorf("link %d is left", id), l.Close())
		}
	}
	return errors.Join(errs...)
}

// expectNothing fails unless nothing of what was pinned is left, and no pin.
func (w *world) expectNothing(r *remains) {
	w.t.Helper()
	if len(r.maps) == 0 || len(r.links) == 0 {
		w.t.Errorf("before, there were just %d maps and %d links", len(r.maps), len(r.links))
	}
	if _, err := os.Stat(w.pins()); !errors.Is(err, fs.ErrNotExist) {
		w.t.Errorf("the directory of the pins is left: %v", err)
	}
	w.eventually("nothing is left in the kernel", r.left)
}

// condition is one of the report's.
func (w *world) condition(name string) *metav1.Condition {
	n, err := w.report()
	if err != nil {
		return nil
	}
	return meta.FindStatusCondition(n.Status.Conditions, name)
}

// address of a port of a pod, by IPv4.
func (p *pod) at(port int) string { return fmt.Sprintf("%s:%d", p.IPv4(), port) }

func background(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

// key names an object of the operator's namespace.
func key(name string) client.ObjectKey { return client.ObjectKey{Namespace: operators, Name: name} }

// restore undoes what tests do to the operator's namespace.
func restore(t *testing.T) {
	t.Helper()
	ctx := background(t)
	var sets appsv1.DaemonSetList
	must(t, shared.Client.List(ctx, &sets, client.InNamespace(operators)))
	for i := range sets.Items {
		set := &sets.Items[i]
		set.Finalizers = nil
		must(t, client.IgnoreNotFound(shared.Client.Update(ctx, set)))
		must(t, client.IgnoreNotFound(shared.Client.Delete(ctx, set)))
	}
	must(t, client.IgnoreAlreadyExists(shared.Client.Create(ctx, localBinding())))
}
