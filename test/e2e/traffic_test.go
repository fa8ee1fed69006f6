// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// tries is what a workload tells of its tries to reach an address.
type tries struct {
	Address string
	Results map[string]int
	Last    string
	Missed  map[string]string
}

func firstResults(p *point, pod *corev1.Pod) []tries {
	p.Helper()
	state := pod.Status.InitContainerStatuses[0].State.Terminated
	if state == nil {
		p.Fatalf("the init container of %s is %+v", pod.Name, pod.Status.InitContainerStatuses[0])
	}
	var results []tries
	if err := json.Unmarshal([]byte(state.Message), &results); err != nil || len(results) != 2 {
		p.Fatalf("the init container of %s says %q: %v", pod.Name, state.Message, err)
	}
	return results
}

func httpGet(path string, port int) *corev1.HTTPGetAction {
	return &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt(port)}
}

// ask has a workload do something, by its control port.
func (p *point) ask(pod *corev1.Pod, port int, path string, query url.Values, into any) {
	p.Helper()
	p.must(p.tryAsk(p.Context(), pod, port, path, query, into))
}

// tryAsk is ask for goroutines, and for what may fail. It is one connection.
func (w *world) tryAsk(ctx context.Context, pod *corev1.Pod, port int, path string, query url.Values, into any) error {
	target := "http://" + net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port)) + path + "?" + query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	w.asked.add(pod)
	response, err := w.web(pod).Do(request)
	if err != nil {
		return fmt.Errorf("asking %s for %s: %w", pod.Name, path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("asking %s for %s: %w", pod.Name, path, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking %s for %s: %s: %s", pod.Name, path, response.Status, text)
	}
	return json.Unmarshal(text, into)
}

// asked counts the connections that the tests themselves made to pods.
type asked struct {
	mu    sync.Mutex
	byPod map[types.UID]int
}

func (a *asked) add(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byPod == nil {
		a.byPod = map[types.UID]int{}
	}
	a.byPod[pod.UID]++
}

func (a *asked) of(pod *corev1.Pod) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.byPod[pod.UID]
}

func (p *point) received(pod *corev1.Pod) map[string]int {
	p.Helper()
	all := map[string]int{}
	p.ask(pod, control, "/received", nil, &all)
	return all
}

// way is a try to reach an address from a pod, and what has to come of it.
type way struct {
	what    string
	from    *corev1.Pod
	network string
	address string
	passes  bool
}

// limits of one try: for what passes long, for what does not short.
const (
	passLimit  = "30s"
	blockLimit = "1500ms"
)

// walk tries many ways at once, and fails where something came of one that should not.
func (p *point) walk(ways []way) {
	p.Helper()
	var all sync.WaitGroup
	for _, w := range ways {
		all.Go(func() {
			limit := blockLimit
			if w.passes {
				limit = passLimit
			}
			var got tries
			p.ask(w.from, controlOf(w.from), "/dial", url.Values{"network": {w.network}, "address": {w.address}, "timeout": {limit}}, &got)
			if passed := got.Results["reached"] == 1; passed != w.passes {
				p.Errorf("%s: %s %s from %s: passes is %t, want %t (%v: %s)", w.what, w.network, w.address, w.from.Name, passed, w.passes, got.Results, got.Last)
			}
		})
	}
	all.Wait()
	if p.Failed() {
		p.FailNow()
	}
}

// A pod on the host's network has other ports: nodes have them only once.
const hostShift = 10000

func controlOf(pod *corev1.Pod) int {
	if pod.Spec.HostNetwork {
		return control + hostShift
	}
	return control
}

// ways are those from a pod to an open and a blocked port of some addresses, by TCP
// and UDP.
func ways(what string, from *corev1.Pod, addresses []string, open, closed int) []way {
	var all []way
	for _, ip := range addresses {
		for _, network := range []string{"tcp", "udp"} {
			for port, passes := range map[int]bool{open: true, closed: false} {
				all = append(all, way{what: what, from: from, network: network, address: net.JoinHostPort(ip, strconv.Itoa(port)), passes: passes})
			}
		}
	}
	return all
}

func podIPs(pod *corev1.Pod) []string {
	var all []string
	for _, ip := range pod.Status.PodIPs {
		all = append(all, ip.IP)
	}
	return all
}

// street is the pods that traffic goes between.
type street struct {
	in, out, host, plain, far *corev1.Pod
	service                   *corev1.Service
}

// traffic goes between pods on different nodes: to pods whose ingress is filtered, one
// of them on the host's network and one behind a Service, and from one whose egress is.
func (p *point) traffic() {
	s := p.buildStreet()
	for _, pod := range []*corev1.Pod{s.in, s.host, s.out, s.plain, s.far} {
		if want := 2; len(pod.Status.PodIPs) != want {
			p.Fatalf("pod %s has the addresses %v, want %d", pod.Name, pod.Status.PodIPs, want)
		}
	}
	p.step("ingress and egress, IPv4 and IPv6, Service, host network", func(p *point) { p.walk(s.ways(openPort, blockedPort)) })
	p.step("replies pass where all ingress is blocked", func(p *point) {
		// The pod's own traffic, to ports that it would not be reached at itself.
		var all []way
		for _, w := range ways("from a filtered pod", s.in, podIPs(s.plain), openPort, blockedPort) {
			w.passes = true
			all = append(all, w)
		}
		p.walk(all)
	})
	p.step("counters of what was allowed and blocked", func(p *point) { p.counted(s) })
	p.step("a change of the ports holds at once", func(p *point) {
		for _, name := range []string{"in", "out"} {
			config := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: name}}
			p.patch(config, fmt.Sprintf(`{"spec":{"ebpfConfig":{"l4Firewall":{"allowedPorts":[%d]}}}}`, blockedPort))
			p.awaitConfig(guarded, name)
		}
		p.walk(s.pairs(blockedPort, openPort))
	})
}

func (p *point) buildStreet() *street {
	one, two, three := p.Nodes()[0].Name, p.Nodes()[1].Name, p.Nodes()[2].Name
	ports := func(direction v1alpha1.FirewallDirection, allowed ...v1alpha1.Port) v1alpha1.EBPFConfig {
		return v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{
			Enabled: true, DefaultAction: v1alpha1.FirewallActionBlock, AllowedPorts: allowed, Directions: []v1alpha1.FirewallDirection{direction},
		}}
	}
	// The configs come first: the pods' probes have to work under them from the start.
	p.config("in", ports(v1alpha1.FirewallDirectionIngress, openPort))
	p.config("host", ports(v1alpha1.FirewallDirectionIngress, openPort+hostShift))
	p.config("out", ports(v1alpha1.FirewallDirectionEgress, openPort))
	host := podSpec(servingAt(control+hostShift, "-tcp=18080,19090", "-udp=18080,19090"))
	host.HostNetwork = true
	s := &street{
		in: p.server("in", one), out: p.server("out", two),
		host:  p.pod("host", "host", three, host),
		plain: p.server("plain", two), far: p.server("far", three),
	}
	policy := corev1.IPFamilyPolicyRequireDualStack
	s.service = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: "in"}}
	s.service.Spec = corev1.ServiceSpec{Selector: map[string]string{"app": "in"}, IPFamilyPolicy: &policy}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		for _, port := range []int32{openPort, blockedPort} {
			s.service.Spec.Ports = append(s.service.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("%s-%d", lower(protocol), port), Protocol: protocol, Port: port})
		}
	}
	p.create(s.service)
	p.awaitReady(s.in, s.out, s.host, s.plain, s.far)
	for _, name := range []string{"in", "out", "host"} {
		p.awaitConfig(guarded, name)
	}
	p.awaitService(s)
	return s
}

func lower(protocol corev1.Protocol) string {
	return map[corev1.Protocol]string{corev1.ProtocolTCP: "tcp", corev1.ProtocolUDP: "udp"}[protocol]
}

// awaitService waits until kube-proxy of both nodes knows the Service.
func (p *point) awaitService(s *street) {
	p.Helper()
	for _, from := range []*corev1.Pod{s.plain, s.far} {
		for _, ip := range s.service.Spec.ClusterIPs {
			for _, network := range []string{"tcp", "udp"} {
				p.await("the Service is known on "+from.Spec.NodeName, func() error {
					var got tries
					query := url.Values{"network": {network}, "address": {net.JoinHostPort(ip, strconv.Itoa(openPort))}, "timeout": {"1s"}}
					if p.ask(from, control, "/dial", query, &got); got.Results["reached"] != 1 {
						return fmt.Errorf("%s: %s", network, got.Last)
					}
					return nil
				})
			}
		}
	}
}

// pairs are the ways to the pod with filtered ingress, from two nodes and by its
// Service, and from the one with filtered egress, to two nodes.
func (s *street) pairs(open, closed int) []way {
	var all []way
	for _, from := range []*corev1.Pod{s.plain, s.far} {
		all = append(all, ways("ingress", from, podIPs(s.in), open, closed)...)
		all = append(all, ways("ingress by the Service", from, s.service.Spec.ClusterIPs, open, closed)...)
	}
	for _, to := range []*corev1.Pod{s.plain, s.far} {
		all = append(all, ways("egress", s.out, podIPs(to), open, closed)...)
	}
	return all
}

func (s *street) ways(open, closed int) []way {
	return append(s.pairs(open, closed), ways("ingress of the host network", s.plain, podIPs(s.host), open+hostShift, closed+hostShift)...)
}

// counted reads what the agents say of the pods that were filtered: each had at least
// as many connections of both kinds as were tried.
func (p *point) counted(s *street) {
	for _, pod := range []*corev1.Pod{s.in, s.out, s.host} {
		for _, kind := range []string{"allowed", "blocked"} {
			p.await(kind+" connections of "+pod.Name+" are counted", func() error {
				got, err := p.counter(pod, "podconfigmap_controller_ebpf_l4_firewall_total", map[string]string{"stat_type": kind})
				if err == nil && got < 4 {
					err = fmt.Errorf("%v", got)
				}
				return err
			})
		}
	}
}
