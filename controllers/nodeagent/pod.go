// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Pod is what the agent keeps of a pod. It is immutable.
type Pod struct {
	Namespace, Name string
	// UID names the pod's cgroup; that of a static pod is not the one of the
	// object that mirrors it. ObjectUID is the object's.
	UID, ObjectUID  types.UID
	ResourceVersion string
	Created         time.Time

	Labels      labels.Set
	Running     bool // the phase is Running
	Over        bool // the phase is Succeeded or Failed: nothing of it will run again
	HostNetwork bool
	Addresses   []netip.Addr
	// Probes are the TCP ports that the kubelet connects to, ascending.
	Probes []uint16
}

// NewPod copies what the agent reads of a pod; nothing of the original stays
// referenced but its labels.
func NewPod(pod *corev1.Pod) *Pod {
	p := &Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: cgroupUID(pod), ObjectUID: pod.UID,
		ResourceVersion: pod.ResourceVersion, Created: pod.CreationTimestamp.Time,
		Labels:      pod.Labels,
		Running:     pod.Status.Phase == corev1.PodRunning,
		Over:        pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		HostNetwork: pod.Spec.HostNetwork,
		Probes:      probePorts(&pod.Spec),
	}
	for _, ip := range pod.Status.PodIPs {
		if address, err := netip.ParseAddr(ip.IP); err == nil {
			p.Addresses = append(p.Addresses, address)
		}
	}
	return p
}

// Key is the pod's namespace and name.
func (p *Pod) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// same tells whether nothing that the agent acts on differs, as after a
// heartbeat of the pod's status.
func (p *Pod) same(other *Pod) bool {
	a, b := *p, *other
	a.ResourceVersion, b.ResourceVersion = "", ""
	return reflect.DeepEqual(a, b)
}

// GetObjectMeta lets informers find the object's key; it allocates.
func (p *Pod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.ObjectUID, ResourceVersion: p.ResourceVersion}
}

// staticUID is the form of the UIDs that the kubelet gives static pods; no
// object of the API server has one of that form.
var staticUID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// cgroupUID is the UID that the pod's cgroup is named by: for a static pod what
// the kubelet's mirror pod says. Whoever may create pods may claim to be a
// mirror, but none of a pod that is not static.
func cgroupUID(pod *corev1.Pod) types.UID {
	hash := pod.Annotations[corev1.MirrorPodAnnotationKey]
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind != "Node" || owner.Name != pod.Spec.NodeName || !staticUID.MatchString(hash) {
		return pod.UID
	}
	return types.UID(hash)
}

// probePorts returns the TCP ports that the kubelet connects to: those of the
// probes, and of the hooks, of all containers that run for the pod's life.
func probePorts(spec *corev1.PodSpec) []uint16 {
	var ports []uint16
	collect := func(c *corev1.Container) {
		for _, probe := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if probe != nil {
				ports = append(ports, handlerPorts(c, probe.HTTPGet, probe.TCPSocket)...)
				ports = append(ports, grpcPort(probe.GRPC)...)
			}
		}
		if c.Lifecycle == nil {
			return
		}
		for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if hook != nil {
				ports = append(ports, handlerPorts(c, hook.HTTPGet, hook.TCPSocket)...)
			}
		}
	}
	for i := range spec.Containers {
		collect(&spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if c := &spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			collect(c)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

func handlerPorts(c *corev1.Container, http *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction) []uint16 {
	var ports []uint16
	if http != nil {
		ports = append(ports, portOf(c, http.Port)...)
	}
	if tcp != nil {
		ports = append(ports, portOf(c, tcp.Port)...)
	}
	return ports
}

// portOf resolves a port as the kubelet does: by the names of the same
// container. A name that is unknown gives none.
func portOf(c *corev1.Container, port intstr.IntOrString) []uint16 {
	if port.Type == intstr.Int {
		return valid(port.IntVal)
	}
	for i := range c.Ports {
		if c.Ports[i].Name == port.StrVal {
			return valid(c.Ports[i].ContainerPort)
		}
	}
	return nil
}

func grpcPort(grpc *corev1.GRPCAction) []uint16 {
	if grpc == nil {
		return nil
	}
	return valid(grpc.Port)
}

func valid(port int32) []uint16 {
	if port < 1 || port > 65535 {
		return nil
	}
	return []uint16{uint16(port)}
}
