// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Driver is how kubelet names cgroups.
type Driver string

// The cgroup drivers.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// PodOptions say what a pod is like. The zero value is a pod of QoS class
// Guaranteed with a UID and a network of its own, of the driver cgroupfs.
type PodOptions struct {
	UID    types.UID
	QoS    corev1.PodQOSClass
	Driver Driver
	// HostNetwork: the pod lives in the node's network namespace and has the node's
	// addresses.
	HostNetwork bool
	// NoNetwork: the pod gets no namespace, link or address, which makes it cheap;
	// its processes live in the node's namespace.
	NoNetwork bool
}

// Pod is a pod's cgroup and network namespace.
type Pod struct {
	node    *Node
	uid     types.UID
	driver  Driver
	cgroup  string
	network *podNetwork
	netns   netns.NsHandle
	address []netip.Addr

	mu         sync.Mutex
	containers map[string]*Container
	gone       bool
}

// Pod makes a pod with its cgroup, as it is when its first container is about to
// be made.
func (n *Node) Pod(o PodOptions) *Pod {
	n.t.Helper()
	p := n.NewPod(o)
	p.MakeCgroup()
	return p
}

// NewPod makes a pod that has its network and no cgroup yet; MakeCgroup makes it.
func (n *Node) NewPod(o PodOptions) *Pod {
	n.t.Helper()
	if o.UID == "" {
		o.UID = types.UID(uuid.NewString())
	}
	p := &Pod{
		node: n, uid: o.UID, driver: o.Driver, netns: n.network.ns,
		cgroup:     filepath.Join(n.root, PodPath(o.Driver, o.QoS, o.UID)),
		containers: map[string]*Container{},
	}
	switch {
	case o.HostNetwork:
		p.address = n.Addresses()
	case !o.NoNetwork:
		network, err := n.network.join()
		if err != nil {
			n.t.Fatalf("making pod %s's network: %v", o.UID, err)
		}
		p.network, p.netns, p.address = network, network.ns, network.addresses
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods = append(n.pods, p)
	return p
}

// PodPath is where kubelet makes a pod's cgroup, below the node's root.
func PodPath(driver Driver, qos corev1.PodQOSClass, uid types.UID) string {
	class := ""
	if qos == corev1.PodQOSBurstable || qos == corev1.PodQOSBestEffort {
		class = strings.ToLower(string(qos))
	}
	if driver != Systemd {
		return filepath.Join("kubepods", class, "pod"+string(uid))
	}
	parts := []string{"kubepods.slice"}
	prefix := "kubepods"
	if class != "" {
		prefix += "-" + class
		parts = append(parts, prefix+".slice")
	}
	name := prefix + "-pod" + strings.ReplaceAll(string(uid), "-", "_") + ".slice"
	return filepath.Join(append(parts, name)...)
}

// MakeCgroup makes the cgroup of a pod that NewPod made, with one mkdir.
func (p *Pod) MakeCgroup() {
	p.node.t.Helper()
	if err := os.Mkdir(p.cgroup, 0o755); err != nil {
		p.node.t.Fatalf("making pod %s's cgroup: %v", p.uid, err)
	}
}

// UID is the pod's.
func (p *Pod) UID() types.UID { return p.uid }

// Cgroup is the path of the pod's cgroup, whether it exists or not.
func (p *Pod) Cgroup() string { return p.cgroup }

// Addresses are the pod's: IPv4, IPv6; none for a pod without network.
func (p *Pod) Addresses() []netip.Addr { return slices.Clone(p.address) }

// IPv4 is the pod's address, the node's for a pod on the host's network.
func (p *Pod) IPv4() netip.Addr { return p.address[0] }

// IPv6 is the pod's address, the node's for a pod on the host's network.
func (p *Pod) IPv6() netip.Addr { return p.address[1] }

// Container makes a container's cgroup in the pod's, or finds the one of that
// name.
func (p *Pod) Container(name string) *Container {
	p.node.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.containers[name]; ok {
		return c
	}
	dir := plain(name)
	if p.driver == Systemd {
		dir = "cri-containerd-" + dir + ".scope"
	}
	c := &Container{node: p.node, pod: p, cgroup: filepath.Join(p.cgroup, dir), netns: p.netns}
	if err := os.Mkdir(c.cgroup, 0o755); err != nil {
		p.node.t.Fatalf("making container %s of pod %s: %v", name, p.uid, err)
	}
	p.containers[name] = c
	return c
}

// Peer starts a process in the pod's container "main".
func (p *Pod) Peer() *Peer {
	p.node.t.Helper()
	return p.Container("main").Peer()
}

// RemoveCgroup ends the pod's processes and removes its cgroup, as kubelet does
// with a pod that has finished.
func (p *Pod) RemoveCgroup() {
	p.node.t.Helper()
	if err := p.removeCgroup(); err != nil {
		p.node.t.Fatalf("removing pod %s's cgroup: %v", p.uid, err)
	}
}

// Remove ends the pod's processes and removes its cgroup and its network.
func (p *Pod) Remove() {
	p.node.t.Helper()
	if err := p.remove(); err != nil {
		p.node.t.Fatalf("removing pod %s: %v", p.uid, err)
	}
}

func (p *Pod) removeCgroup() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.containers {
		c.stop()
	}
	clear(p.containers)
	return removeCgroup(p.cgroup)
}

func (p *Pod) remove() error {
	err := p.removeCgroup()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return err
	}
	p.gone = true
	if p.network != nil {
		err = errors.Join(err, p.network.close())
	}
	return err
}

// Container is a cgroup that processes are born in, and their network namespace.
type Container struct {
	node   *Node
	pod    *Pod // nil outside any pod
	cgroup string
	netns  netns.NsHandle

	mu      sync.Mutex
	members []member
}

// member is a process of a container.
type member interface{ end() }

// Cgroup is the path of the container's cgroup.
func (c *Container) Cgroup() string { return c.cgroup }

// Remove ends the container's processes and removes its cgroup.
func (c *Container) Remove() {
	c.node.t.Helper()
	c.stop()
	if c.pod != nil {
		c.pod.forget(c)
	}
	if err := removeCgroup(c.cgroup); err != nil {
		c.node.t.Fatalf("removing container %s: %v", c.cgroup, err)
	}
}

// forget lets a container of that name be made again.
func (p *Pod) forget(c *Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, known := range p.containers {
		if known == c {
			delete(p.containers, name)
		}
	}
}

func (c *Container) add(m member) {
	c.mu.Lock()
	c.members = append(c.members, m)
	c.mu.Unlock()
}

// stop ends the container's processes and waits for them.
func (c *Container) stop() {
	c.mu.Lock()
	members := c.members
	c.members = nil
	c.mu.Unlock()
	for _, m := range members {
		m.end()
	}
}
