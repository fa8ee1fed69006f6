// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

const guarded = "guarded"

// TestEBPF turns the flag on, and has real pods counted and filtered.
func TestEBPF(t *testing.T) {
	p := &point{T: t, world: shared}
	p.step("ebpf.enabled=true by helm upgrade: an agent on every node", func(p *point) { p.enable() })
	p.namespace(guarded)
	p.step("exact counts of system calls, from the first", (*point).countCalls)
	p.step(fmt.Sprintf("%d pods: no init container gets through", born), (*point).firstConnections)
	p.step("traffic between nodes", (*point).traffic)
	p.step("quiet logs at rest", (*point).quietLogs)
	p.noNamespace(guarded)
}

var agentLabels = client.MatchingLabels{"app.kubernetes.io/component": "agent"}

// enable upgrades the release, and waits until every node has an agent that serves it.
func (p *point) enable(values ...string) {
	p.Helper()
	p.deploy(append(values, "--set", "ebpf.enabled=true")...)
	p.awaitAgents()
}

// awaitAgents waits until every node has an agent of the newest template, and reports.
func (p *point) awaitAgents() {
	p.Helper()
	p.await("an agent is ready on every node", func() error {
		set := &appsv1.DaemonSet{}
		if err := p.get(system, agents, set); err != nil {
			return err
		}
		if s := set.Status; s.ObservedGeneration != set.Generation || int(s.NumberReady) != *nodes || int(s.UpdatedNumberScheduled) != *nodes {
			return fmt.Errorf("the DaemonSet's status is %+v", s)
		}
		return nil
	})
	for _, n := range p.Nodes() {
		p.await(n.Name+" reports what it supports", func() error {
			report := &v1alpha1.EBPFNode{}
			if err := p.get(system, n.Name, report); err != nil {
				return err
			}
			for _, name := range []v1alpha1.EBPFFeature{v1alpha1.FeatureSyscallCounter, v1alpha1.FeatureL4Firewall, v1alpha1.FeatureConnectDenied} {
				if err := supported(report, name); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func supported(report *v1alpha1.EBPFNode, name v1alpha1.EBPFFeature) error {
	for _, f := range report.Status.Features {
		if f.Name == name && f.Supported {
			return nil
		}
	}
	return fmt.Errorf("%s of %s: %+v", name, report.Name, report.Status.Features)
}

// pod makes a pod; an empty node lets the scheduler choose.
func (p *point) pod(name, app, node string, spec corev1.PodSpec) *corev1.Pod {
	p.Helper()
	if node != "" {
		spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: name, Labels: map[string]string{"app": app}}, Spec: spec}
	p.create(pod)
	return pod
}

// awaitReady waits for pods, and reads them anew.
func (p *point) awaitReady(pods ...*corev1.Pod) {
	p.Helper()
	for _, pod := range pods {
		p.await("pod "+pod.Name+" is ready", func() error {
			return errors.Join(p.get(pod.Namespace, pod.Name, pod), ready(pod))
		})
	}
}

// config makes a config for the pods of an app, with its counters exported.
func (p *point) config(app string, ebpf v1alpha1.EBPFConfig) {
	p.Helper()
	config := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: app}}
	config.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": app}}
	ebpf.MetricsExport = &v1alpha1.MetricsExport{Enabled: true, UpdateInterval: "100ms"}
	config.Spec.EBPFConfig = &ebpf
	p.create(config)
	p.awaitConfig(guarded, app)
}

const (
	// control is the port by which a workload is asked to do something.
	control = 7000
	// What is counted: nothing that a container's runtime or Go's calls by itself.
	callName   = "sched_get_priority_max"
	callNumber = unix.SYS_SCHED_GET_PRIORITY_MAX
)

// countCalls has an init container and two containers make known numbers of calls,
// with their first instructions, and then some more.
func (p *point) countCalls() {
	p.config("counted", v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: []v1alpha1.SyscallName{callName}}})
	want := map[string]float64{}
	var pods []*corev1.Pod
	for i, node := range p.Nodes() {
		// Ready are those that serve: they are asked for more.
		one := servingAt(control, fmt.Sprintf("-calls=%dx%d", callNumber, 2000+i))
		two := servingAt(control+1, fmt.Sprintf("-calls=%dx%d", callNumber, 3000+i))
		one.Name, two.Name = "one", "two"
		spec := podSpec(one, two)
		spec.InitContainers = []corev1.Container{container("first", "calls", strconv.Itoa(callNumber), strconv.Itoa(1000+i))}
		pod := p.pod("counted-"+node.Name, "counted", node.Name, spec)
		pods = append(pods, pod)
		want[pod.Name] = float64(6000 + 3*i)
	}
	p.awaitReady(pods...)
	p.awaitCalls(pods, want)
	for i, pod := range pods {
		var made struct{ Count int }
		p.ask(pod, control+i%2, "/calls", callQuery(777), &made)
		want[pod.Name] += 777
	}
	p.awaitCalls(pods, want)
	for _, pod := range pods {
		p.must(p.client.Delete(p.Context(), pod))
	}
}

// callQuery asks a workload for so many calls.
func callQuery(count int) url.Values {
	return url.Values{"number": {strconv.Itoa(callNumber)}, "count": {strconv.Itoa(count)}}
}

func (p *point) awaitCalls(pods []*corev1.Pod, want map[string]float64) {
	p.Helper()
	for _, pod := range pods {
		p.await("the calls of "+pod.Name+" are counted", func() error {
			got, err := p.counter(pod, "podconfigmap_controller_ebpf_syscall_count_total", map[string]string{"syscall": callName, "pid": ""})
			if err == nil && got > want[pod.Name] {
				p.Fatalf("%s: %v calls, more than the %v that were made", pod.Name, got, want[pod.Name])
			}
			if err == nil && got < want[pod.Name] {
				err = fmt.Errorf("%v calls of %v", got, want[pod.Name])
			}
			return err
		})
	}
}

// counter reads a series of a pod from the agent of its node.
func (p *point) counter(pod *corev1.Pod, name string, labels map[string]string) (float64, error) {
	for _, agent := range p.pods(system, agentLabels) {
		if agent.Spec.NodeName != pod.Spec.NodeName {
			continue
		}
		families, err := p.scrape(p.Context(), &agent)
		if err != nil {
			return 0, err
		}
		for _, m := range families[name].GetMetric() {
			if hasLabels(m, pod, labels) {
				return m.GetCounter().GetValue(), nil
			}
		}
		return 0, fmt.Errorf("agent %s has no %s of pod %s with %v", agent.Name, name, pod.Name, labels)
	}
	return 0, fmt.Errorf("%s has no agent", pod.Spec.NodeName)
}

func hasLabels(m *dto.Metric, pod *corev1.Pod, labels map[string]string) bool {
	has := map[string]string{}
	for _, l := range m.GetLabel() {
		has[l.GetName()] = l.GetValue()
	}
	for name, value := range labels {
		if has[name] != value {
			return false
		}
	}
	return has["namespace"] == pod.Namespace && has["pod_name"] == pod.Name
}

func (w *world) scrape(ctx context.Context, agent *corev1.Pod) (map[string]*dto.MetricFamily, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(agent.Status.PodIP, "8080")+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := w.web(agent).Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking %s for its metrics: %s", agent.Name, response.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(response.Body)
}

// web is a client on the node of a pod, which reaches it also while the node is cut off.
func (w *world) web(pod *corev1.Pod) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: w.Node(pod.Spec.NodeName).Dial, DisableKeepAlives: true}}
}

const (
	born        = 100
	openPort    = 8080
	blockedPort = 9090
	// perBorn is how often each of the pods tries each port.
	perBorn = 5
)

// firstConnections makes many pods at once, whose init containers connect to a blocked
// and to an open port with their first instructions.
func (p *point) firstConnections() {
	target := p.server("target", p.Nodes()[0].Name)
	p.awaitReady(target)
	p.config("born", v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{
		Enabled: true, BlockedPorts: []v1alpha1.Port{blockedPort}, Directions: []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionEgress},
	}})
	address := func(port int) string { return net.JoinHostPort(target.Status.PodIP, strconv.Itoa(port)) }
	spec := podSpec(container("c", "exit", "0"))
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.InitContainers = []corev1.Container{
		container("first", "dial", "-count="+strconv.Itoa(perBorn), "-timeout=60s", address(blockedPort), address(openPort)),
	}
	for i := range born {
		p.pod(fmt.Sprintf("born-%d", i), "born", "", *spec.DeepCopy())
	}
	var pods []corev1.Pod
	p.await("all of them are done", func() error {
		pods = p.pods(guarded, client.MatchingLabels{"app": "born"})
		done := 0
		for i := range pods {
			if pods[i].Status.Phase == corev1.PodSucceeded {
				done++
			}
		}
		if done != born {
			return fmt.Errorf("%d of %d are", done, born)
		}
		return nil
	})
	denied := 0
	for i := range pods {
		results := firstResults(p, &pods[i])
		if n := results[0].Results["reached"]; n > 0 {
			p.Errorf("%s on %s reached the blocked port %d times: %+v", pods[i].Name, pods[i].Spec.NodeName, n, results[0])
		}
		if results[1].Results["reached"] != perBorn {
			p.Errorf("%s on %s did not reach the open port each time: %+v", pods[i].Name, pods[i].Spec.NodeName, results[1])
		}
		denied += results[0].Results["denied"]
	}
	received := p.received(target)
	if received["tcp/9090"] != 0 || received["tcp/8080"] != born*perBorn {
		p.Errorf("the server took %v", received)
	}
	say("  %d of %d tries were denied at once, %d connections to the open port", denied, born*perBorn, received["tcp/8080"])
	p.must(p.client.DeleteAllOf(p.Context(), &corev1.Pod{}, client.InNamespace(guarded), client.MatchingLabels{"app": "born"}))
}

// server is a pod that nothing is asked for.
func (p *point) server(name, node string) *corev1.Pod {
	p.Helper()
	return p.pod(name, name, node, podSpec(serving("-tcp=8080,9090", "-udp=8080,9090")))
}

// serving is a container that serves, and has a readiness probe at its control port.
func serving(args ...string) corev1.Container {
	return servingAt(control, args...)
}

func servingAt(port int, args ...string) corev1.Container {
	c := container("c", append([]string{"serve", "-control=" + strconv.Itoa(port)}, args...)...)
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: httpGet("/healthz", port)}}
	return c
}
