// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// machinery makes pods real: as kubelet and a container runtime would, it gives
// them cgroups, network namespaces and processes. The processes are this program
// again, and do what they are told; there are no images.
type machinery struct {
	keeper *keeper
	node   *sandbox.Node
	// namespace is that of the pods that are made real.
	namespace string
	// outside is a process of the node itself.
	outside *sandbox.Peer
	traces  cluster.Traces

	mu   sync.Mutex
	pods map[types.UID]*realPod
}

// realPod is a pod with its processes, one for each container.
type realPod struct {
	*sandbox.Pod
	name  string
	peers []*sandbox.Peer
	first *sandbox.Container
}

// main is the process of the pod's first container.
func (p *realPod) main() *sandbox.Peer { return p.peers[0] }

// at is a port of the pod.
func (p *realPod) at(port int32) string {
	return netip.AddrPortFrom(p.IPv4(), uint16(port)).String()
}

// makeMachinery makes the node's cgroups, network and BPF file system.
func makeMachinery(namespace string) (*machinery, error) {
	m := &machinery{keeper: &keeper{}, namespace: namespace, pods: map[types.UID]*realPod{}}
	err := m.keeper.try(func() {
		m.node = sandbox.New(m.keeper)
		m.outside = m.node.Peer()
	})
	if err == nil {
		err = errors.Join(m.traces.Path(m.node.Root()), m.traces.Path(m.node.BPFFS()), m.traces.Process(m.outside.PID()))
	}
	if err != nil {
		return nil, errors.Join(err, m.keeper.close())
	}
	return m, nil
}

// run starts a pod of the namespace, once, and returns its addresses.
func (m *machinery) run(pod *corev1.Pod) ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[pod.UID]; p != nil {
		return p.Addresses(), nil
	}
	p := &realPod{name: pod.Name}
	err := m.keeper.try(func() {
		p.Pod = m.node.Pod(sandbox.PodOptions{UID: pod.UID, QoS: pod.Status.QOSClass, Driver: sandbox.Systemd})
		for _, c := range pod.Spec.Containers {
			container := p.Container(c.Name)
			if p.first == nil {
				p.first = container
			}
			p.peers = append(p.peers, container.Peer())
		}
	})
	if err != nil {
		return nil, err
	}
	for i, c := range pod.Spec.Containers {
		if err := m.traces.Process(p.peers[i].PID()); err != nil {
			return nil, err
		}
		for _, port := range c.Ports {
			if _, err := p.peers[i].Listen("tcp", ":"+strconv.Itoa(int(port.ContainerPort))); err != nil {
				return nil, fmt.Errorf("opening port %d of pod %s: %w", port.ContainerPort, pod.Name, err)
			}
		}
	}
	m.pods[pod.UID] = p
	return p.Addresses(), nil
}

// keep ends the pods that are no longer there.
func (m *machinery) keep(pods []corev1.Pod) error {
	there := map[types.UID]bool{}
	for _, pod := range pods {
		there[pod.UID] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for uid, p := range m.pods {
		if !there[uid] {
			delete(m.pods, uid)
			errs = append(errs, m.keeper.try(p.Remove))
		}
	}
	return errors.Join(errs...)
}

// pod returns a pod that runs.
func (m *machinery) pod(uid types.UID) (*realPod, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[uid]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no pod of UID %s runs", uid)
}

// makeReal prepares the machine for pods that are real, before anything large is
// built or started.
func (s *session) makeReal(namespace string) error {
	m, err := makeMachinery(namespace)
	if err != nil {
		return fmt.Errorf("making cgroups, a network and a BPF file system for pods: %w", err)
	}
	s.real = m
	s.later("removing cgroups, network namespaces, processes and the BPF file system", func(ctx context.Context) error {
		return errors.Join(m.keeper.close(), s.tellWhatIsLeft(ctx, &m.traces))
	})
	return nil
}

// tellWhatIsLeft waits until nothing is, and says so: the kernel frees some things
// a moment after their last user.
func (s *session) tellWhatIsLeft(ctx context.Context, t *cluster.Traces) error {
	_, err := s.awaitAlone(ctx, "nothing is left", func(context.Context) (bool, error) {
		err := t.Left()
		return err == nil, err
	})
	if err != nil {
		return err
	}
	noted := t.Noted()
	s.say("  looked for all of it, and nothing is left: none of %d processes and %d network namespaces, no cgroup,",
		noted.Processes, noted.Namespaces)
	s.say("  no mount; in the kernel none of %d BPF programs, %d maps and %d links that were pinned",
		noted.Programs, noted.Maps, noted.Links)
	return nil
}
