// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// street is the pods that traffic goes between. Filtered is the ingress of in, the egress
// of out, and both of host, which is on its node's network. They have two containers and
// an init container each.
type street struct {
	in, out, host           *corev1.Pod
	plain, far              *corev1.Pod // of which nothing is asked
	other                   *corev1.Pod // the same, on the network of another node than host
	inService, plainService *corev1.Service
	ledger                  *ledger
}

const (
	dnsPort = 53
	// alive is the port of a liveness probe, of the second container.
	alive = 7100
)

// traffic goes between pods on different nodes: to pods whose ingress is filtered, and
// from pods whose egress is, by address and by Service, from and on the host's network.
func (p *point) traffic() {
	s := p.buildStreet()
	p.step("ingress and egress, IPv4 and IPv6, Service, host network", func(p *point) { s.walk(p, s.ways(openPort, blockedPort)) })
	p.step("replies pass where all ingress is blocked", func(p *point) {
		// The pod's own traffic, to ports that it would not be reached at itself.
		s.walk(p, allPass(route{what: "from a filtered pod", from: s.in, to: s.plain, by: s.in, addresses: podIPs(s.plain)}.ways(openPort, blockedPort)))
	})
	p.step("a change of the ports holds at once", func(p *point) {
		for name, ports := range s.allowed(blockedPort) {
			config := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: name}}
			p.patch(config, fmt.Sprintf(`{"spec":{"ebpfConfig":{"l4Firewall":{"allowedPorts":%s}}}}`, strings.ReplaceAll(fmt.Sprint(ports), " ", ",")))
			p.awaitConfig(guarded, name)
		}
		s.walk(p, s.ways(blockedPort, openPort))
	})
	p.step("probes got through all the time", s.probed)
}

// allowed are the ports of each config, those of both containers beside each other.
func (*street) allowed(open v1alpha1.Port) map[string][]v1alpha1.Port {
	return map[string][]v1alpha1.Port{
		"in":   {open, open + 1},
		"out":  {open, open + 1, dnsPort},
		"host": {open, open + hostShift, open + 1 + hostShift},
	}
}

func (p *point) buildStreet() *street {
	one, two, three := p.Nodes()[0].Name, p.Nodes()[1].Name, p.Nodes()[2].Name
	unfiltered := podSpec(servingAt(control+hostShift, servedPorts(hostShift)...))
	unfiltered.HostNetwork = true
	s := &street{plain: p.server("plain", two), far: p.server("far", three), other: p.pod("other", "other", one, unfiltered), ledger: newLedger()}
	// The configs come before the pods: probes have to work under them from the start.
	for name, directions := range map[string][]v1alpha1.FirewallDirection{
		"in":   {v1alpha1.FirewallDirectionIngress},
		"out":  {v1alpha1.FirewallDirectionEgress},
		"host": {v1alpha1.FirewallDirectionIngress, v1alpha1.FirewallDirectionEgress},
	} {
		p.config(name, v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{
			Enabled: true, DefaultAction: v1alpha1.FirewallActionBlock, AllowedPorts: s.allowed(openPort)[name], Directions: directions,
		}})
	}
	s.inService, s.plainService = p.service("in"), p.service("plain")
	p.awaitReady(s.plain, s.far, s.other)
	host := s.filtered(hostShift)
	host.HostNetwork = true
	s.in, s.out, s.host = p.pod("in", "in", one, s.filtered(0)), p.pod("out", "out", two, s.filtered(0)), p.pod("host", "host", three, host)
	all := []*corev1.Pod{s.in, s.out, s.host, s.plain, s.far, s.other}
	p.awaitReady(all...)
	for _, pod := range all {
		if want := 2; len(pod.Status.PodIPs) != want {
			p.Fatalf("pod %s has the addresses %v, want %d", pod.Name, pod.Status.PodIPs, want)
		}
	}
	for _, name := range []string{"in", "out", "host"} {
		p.awaitConfig(guarded, name)
	}
	s.first(p)
	for _, pod := range []*corev1.Pod{s.plain, s.far, s.other} {
		p.awaitService(pod, s.inService)
	}
	for _, pod := range []*corev1.Pod{s.out, s.host} {
		p.awaitService(pod, s.plainService)
	}
	s.ledger.open(p, all...)
	return s
}

// servedPorts are those of a container that serves by TCP and UDP, and more by TCP.
func servedPorts(shift int, more ...int) []string {
	udp := fmt.Sprintf("%d,%d", openPort+shift, blockedPort+shift)
	tcp := udp
	for _, port := range more {
		tcp += fmt.Sprintf(",%d", port)
	}
	return []string{"-tcp=" + tcp, "-udp=" + udp}
}

// filtered is a pod of two containers, both with probes at ports that no config allows,
// and an init container that tries a port of plain that only some may reach.
func (s *street) filtered(shift int) corev1.PodSpec {
	address := func(port int) string { return net.JoinHostPort(s.plain.Status.PodIP, strconv.Itoa(port)) }
	first := container("first", "dial", "-timeout=60s", address(blockedPort), address(openPort))
	one, two := servingAt(control+shift, servedPorts(shift)...), servingAt(control+1+shift, servedPorts(1+shift, alive+shift)...)
	one.Name, two.Name = "one", "two"
	two.LivenessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 30, ProbeHandler: corev1.ProbeHandler{TCPSocket: tcpSocket(alive + shift)}}
	spec := podSpec(one, two)
	spec.InitContainers = []corev1.Container{first}
	return spec
}

// first looks what came of the init containers' tries.
func (s *street) first(p *point) {
	p.Helper()
	for pod, unfiltered := range map[*corev1.Pod]bool{s.in: true, s.out: false, s.host: false} {
		for i, got := range firstResults(p, pod) {
			passes := unfiltered || i == 1 // the second is the open port
			w := way{what: "init container", from: pod, to: s.plain, by: pod, network: "tcp", address: got.Address, passes: passes}
			if err := w.wrong(&got); err != nil {
				p.Error(err)
			}
			s.ledger.add(w)
		}
	}
}

// service makes one of both families for an app's pod, with all of its ports.
func (p *point) service(app string) *corev1.Service {
	p.Helper()
	policy := corev1.IPFamilyPolicyRequireDualStack
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: app}}
	service.Spec = corev1.ServiceSpec{Selector: map[string]string{"app": app}, IPFamilyPolicy: &policy}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		for _, port := range []int32{openPort, blockedPort} {
			service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("%s-%d", strings.ToLower(string(protocol)), port), Protocol: protocol, Port: port})
		}
	}
	p.create(service)
	return service
}

// awaitService waits until kube-proxy of a pod's node knows a Service.
func (p *point) awaitService(from *corev1.Pod, service *corev1.Service) {
	p.Helper()
	for _, ip := range service.Spec.ClusterIPs {
		for _, network := range []string{"tcp", "udp"} {
			p.await("the Service "+service.Name+" is known on "+from.Spec.NodeName, func() error {
				var got tries
				query := url.Values{"network": {network}, "address": {net.JoinHostPort(ip, strconv.Itoa(openPort))}, "timeout": {"1s"}}
				if p.ask(from, controlOf(from), "/dial", query, &got); got.Results["reached"] != 1 {
					return fmt.Errorf("%s: %s", network, got.Last)
				}
				return nil
			})
		}
	}
}

// ways are all that there are, to open and blocked ports.
func (s *street) ways(open, closed int) []way {
	return append(append(s.inbound(open, closed), s.outbound(open, closed)...), s.ofHost(open, closed)...)
}

// inbound are those to the pod whose ingress is filtered, from two nodes, and from the
// network of its own.
func (s *street) inbound(open, closed int) []way {
	var all []way
	for _, from := range []*corev1.Pod{s.plain, s.far, s.other} {
		direct := route{what: "ingress", from: from, to: s.in, by: s.in, addresses: podIPs(s.in)}
		all = append(all, direct.ways(open, closed)...)
		all = append(all, direct.ways(open+1, closed+1)...) // the second container's
		direct.what, direct.addresses = "ingress by the Service", s.inService.Spec.ClusterIPs
		all = append(all, direct.ways(open, closed)...)
	}
	return all
}

// outbound are those from both containers of the pod whose egress is filtered, to two
// nodes, and to a Service by its addresses and its name.
func (s *street) outbound(open, closed int) []way {
	var all []way
	for i := range s.out.Spec.Containers {
		for _, to := range []*corev1.Pod{s.plain, s.far} {
			all = append(all, route{what: "egress", from: s.out, container: i, to: to, by: s.out, addresses: podIPs(to), denied: true}.ways(open, closed)...)
		}
		service := route{what: "egress to a Service", from: s.out, container: i, to: s.plain, by: s.out, addresses: s.plainService.Spec.ClusterIPs, denied: true}
		all = append(all, service.ways(open, closed)...)
		service.what, service.addresses = "egress to the name of a Service", []string{"plain." + guarded + ".svc.cluster.local."}
		service.networks = []string{"tcp4", "tcp6", "udp4", "udp6"} // one try each
		all = append(all, service.ways(open, closed)...)
	}
	return all
}

// ofHost are those to and from the pod on its node's network: pods, a Service, and the
// network of another node.
func (s *street) ofHost(open, closed int) []way {
	var all []way
	for _, from := range []*corev1.Pod{s.plain, s.other} {
		in := route{what: "ingress of the host network", from: from, to: s.host, by: s.host, addresses: podIPs(s.host)}
		all = append(all, in.ways(open+hostShift, closed+hostShift)...)
		all = append(all, in.ways(open+1+hostShift, closed+1+hostShift)...)
	}
	for i := range s.host.Spec.Containers {
		out := route{what: "egress of the host network", from: s.host, container: i, to: s.plain, by: s.host, addresses: podIPs(s.plain), denied: true}
		all = append(all, out.ways(open, closed)...)
		out.what, out.addresses = "egress of the host network to a Service", s.plainService.Spec.ClusterIPs
		all = append(all, out.ways(open, closed)...)
	}
	// Not denied at once: the pod listens at the same port (docs/ebpf.md, Limits).
	out := route{what: "egress between host networks", from: s.host, to: s.other, by: s.host, addresses: podIPs(s.other)}
	return append(all, out.ways(open+hostShift, closed+hostShift)...)
}

// walk tries ways, and compares what servers got and firewalls counted with that.
func (s *street) walk(p *point, ways []way) {
	p.Helper()
	p.walk(ways)
	s.ledger.add(ways...)
	say("  %d ways", len(ways))
	s.ledger.settle(p)
}

// probed fails where a probe of a filtered pod failed, or never came.
func (s *street) probed(p *point) {
	for pod, port := range map[*corev1.Pod]int{s.in: alive, s.out: alive, s.host: alive + hostShift} {
		p.must(p.get(pod.Namespace, pod.Name, pod))
		p.must(ready(pod))
		for _, c := range pod.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				p.Errorf("container %s of %s was restarted: %+v", c.Name, pod.Name, c.LastTerminationState)
			}
		}
		if n := p.received(pod)[fmt.Sprintf("tcp/%d", port)]; n == 0 {
			p.Errorf("the liveness probe of %s never reached it", pod.Name)
		}
	}
}
