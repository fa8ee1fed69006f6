// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
)

// Programs of a node, for its methods; their logs are named after them.
const (
	Containerd = controlplane.Containerd
	Kubelet    = controlplane.Kubelet
	Proxy      = controlplane.Proxy
)

// containerdSocket is where containerd serves, once all of it is there.
const containerdSocket = "/run/containerd/containerd.sock"

//go:embed config
var configs embed.FS

// Node is one node. It can be stopped and started again as a whole (Restart), and so
// can its programs.
type Node struct {
	// Name is the Node object's: node-1, node-2, …
	Name    string
	cluster *Cluster
	index   int
	// kernel is that of a virtual node.
	kernel *vm.Kernel

	mu      sync.Mutex // guards machine
	machine *machine
}

// Addresses are the node's own: IPv4, IPv6.
func (n *Node) Addresses() []netip.Addr { return nodeAddresses(n.index) }

// configure writes what the node's programs read.
func (n *Node) configure() error {
	folder, err := n.cluster.configOf(n.Name)
	if err != nil {
		return err
	}
	addresses := append([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, n.Addresses()...)
	serving, err := n.cluster.authority.Issue(n.Name, "", addresses, n.Name)
	if err != nil {
		return err
	}
	errs := []error{
		os.CopyFS(folder, mustSub()),
		os.WriteFile(filepath.Join(folder, "ca.crt"), n.cluster.authority.PEM, 0o644),
		serving.Write(folder, "kubelet"),
		n.cluster.writeClient(folder, Kubelet, "system:node:"+n.Name, "system:nodes"),
		n.cluster.writeClient(folder, Proxy, "system:kube-proxy", ""),
		n.writeNetwork(filepath.Join(folder, "cni")),
		n.writeProxy(filepath.Join(folder, "kube-proxy.yaml")),
	}
	return errors.Join(errs...)
}

// writeNetwork writes the configuration of the pods' network: each pod has a link of
// its own, so that the node routes, and kube-proxy sees, also what its pods send to
// each other.
func (n *Node) writeNetwork(folder string) error {
	var ranges [][]map[string]string
	for _, subnet := range podSubnets(n.index) {
		ranges = append(ranges, []map[string]string{{"subnet": subnet.String()}})
	}
	text, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []any{map[string]any{
			"type": controlplane.PTP,
			"ipam": map[string]any{
				"type": controlplane.HostLocal, "dataDir": "/run/cni", "ranges": ranges,
				"routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
			},
		}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(folder, 0o755), os.WriteFile(filepath.Join(folder, "10-pods.conflist"), text, 0o644))
}

func (n *Node) writeProxy(path string) error {
	text, err := yaml.Marshal(map[string]any{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"clientConnection": map[string]any{"kubeconfig": etc + Proxy + ".kubeconfig"},
		"mode":             "nftables",
		"clusterCIDR":      podRange,
		"hostnameOverride": n.Name,
		"bindAddress":      n.Addresses()[0].String(),
		// The limits of connection tracking are the whole kernel's.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// Start makes the node's machine and starts its programs, after Kill or for the first
// time, and waits until the node is ready.
func (n *Node) Start(ctx context.Context) error {
	if n.current() != nil {
		return fmt.Errorf("starting %s: it runs already", n.Name)
	}
	if n.kernel != nil {
		return n.startVirtual(ctx)
	}
	m, err := n.cluster.newMachine(ctx, n.Name, true)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.machine = m
	n.mu.Unlock()
	if err := n.cluster.fabric.plug(n.index, m); err != nil {
		return fmt.Errorf("joining %s to the network: %w", n.Name, err)
	}
	if err := n.StartProgram(ctx, Containerd); err != nil {
		return err
	}
	if err := n.importAll(ctx); err != nil {
		return err
	}
	if err := n.StartProgram(ctx, Kubelet); err != nil {
		return err
	}
	return n.StartProgram(ctx, Proxy) // it wants the Node object
}

// startVirtual starts the node's machine in QEMU, and its programs.
func (n *Node) startVirtual(ctx context.Context) error {
	m, err := n.cluster.newVirtualMachine(ctx, n)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.machine = m
	n.mu.Unlock()
	if err := n.StartProgram(ctx, Containerd); err != nil {
		return err
	}
	return n.StartProgram(ctx, Kubelet)
}

func (n *Node) current() *machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machine
}

// running is the machine, or an error that says that there is none.
func (n *Node) running() (*machine, error) {
	if m := n.current(); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("%s does not run", n.Name)
}

// StartProgram starts one of the node's programs after StopProgram or KillProgram, and
// waits until it serves; for the kubelet, until the node is ready.
func (n *Node) StartProgram(ctx context.Context, name string) error {
	m, err := n.running()
	if err != nil {
		return err
	}
	switch name {
	case Containerd:
		return m.start(ctx, name, []string{name, "--config=" + etc + "containerd.toml"}, func(ctx context.Context) error {
			return m.connects(ctx, containerdSocket)
		})
	case Kubelet:
		if err := n.hideBestEffort(ctx, m); err != nil {
			return err
		}
		started := metav1.Now()
		return m.start(ctx, name, n.kubeletCommand(), func(ctx context.Context) error {
			return errors.Join(n.healthy(ctx), n.ready(ctx, started))
		})
	case Proxy:
		return m.start(ctx, name, []string{name, "--config=" + etc + "kube-proxy.yaml"}, func(ctx context.Context) error {
			transport := &http.Transport{DialContext: n.cluster.fabric.dial, DisableKeepAlives: true}
			return n.cluster.get(ctx, transport, fmt.Sprintf("http://%s:10256/healthz", n.Addresses()[0]))
		})
	}
	return fmt.Errorf("starting %q on %s: not a program of a node", name, n.Name)
}

// hideBestEffort lets a kubelet start again on cgroups without controllers. It makes the
// cgroup of best-effort pods where it finds none, and then only logs that it could not
// set the cgroup's weight; where it finds one, it gives up. It looks for the list of the
// cgroup's controllers, which is made unreadable.
func (n *Node) hideBestEffort(ctx context.Context, m *machine) error {
	const list = "kubepods/besteffort/cgroup.controllers"
	if m.virtual {
		return nil // it has all controllers
	}
	controllers, err := os.ReadFile(filepath.Join(m.cgroup, "cgroup.controllers"))
	if err != nil || slices.Contains(strings.Fields(string(controllers)), "cpu") {
		return err
	}
	if _, err := os.Stat(filepath.Join(m.cgroup, list)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err = m.run(ctx, "sh", "-c", "test -S "+cgroupRoot+"/"+list+" || mount --bind "+unreadable+" "+cgroupRoot+"/"+list)
	return err
}

func (n *Node) kubeletCommand() []string {
	var addresses []string
	for _, a := range n.Addresses() {
		addresses = append(addresses, a.String())
	}
	return []string{
		Kubelet, "--config=" + etc + "kubelet.yaml", "--kubeconfig=" + etc + Kubelet + ".kubeconfig",
		"--hostname-override=" + n.Name, "--node-ip=" + strings.Join(addresses, ","), "--cert-dir=/run/kubelet",
	}
}

// healthy fails until the API server reaches the kubelet.
func (n *Node) healthy(ctx context.Context) error {
	_, err := n.cluster.clients.CoreV1().RESTClient().Get().Resource("nodes").Name(n.Name).SubResource("proxy", "healthz").DoRaw(ctx)
	return err
}

// ready fails until the node says that it is ready, in a status that is newer than
// since.
func (n *Node) ready(ctx context.Context, since metav1.Time) error {
	node, err := n.cluster.clients.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		// The API has whole seconds.
		if condition.Status == corev1.ConditionTrue && condition.LastHeartbeatTime.Unix() >= since.Unix() {
			return nil
		}
		return fmt.Errorf("node %s: Ready is %s: %s", n.Name, condition.Status, condition.Message)
	}
	return fmt.Errorf("node %s has no condition Ready yet", n.Name)
}

// StopProgram ends one of the node's programs as an upgrade of it would; its pods go
// on.
func (n *Node) StopProgram(ctx context.Context, name string) error {
	m, err := n.running()
	if err != nil {
		return err
	}
	return m.stop(ctx, name)
}

// KillProgram ends one of the node's programs with SIGKILL.
func (n *Node) KillProgram(ctx context.Context, name string) error {
	m, err := n.running()
	if err != nil {
		return err
	}
	return m.killProgram(ctx, name)
}

// Kill ends the node at once, with all its pods, as a power failure would. It may be
// called again.
func (n *Node) Kill() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.machine == nil {
		return nil
	}
	if err := n.machine.kill(); err != nil {
		return err
	}
	cgroup := n.machine.cgroup
	n.machine = nil
	return removeCgroup(cgroup)
}

// Restart kills the node and starts it again; it keeps what is below its /var.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Kill(); err != nil {
		return err
	}
	return n.Start(ctx)
}

// Partition keeps the node and the control plane apart until Heal. What they send
// each other is lost; pods reach the pods of other nodes all the same.
func (n *Node) Partition() error { return n.cluster.fabric.partition(n.index, true) }

// Heal undoes Partition. It may be called again.
func (n *Node) Heal() error { return n.cluster.fabric.partition(n.index, false) }

// Run runs a command on the node, as root in all its namespaces, and returns what it
// wrote. A code other than 0 is an error. Besides the host's own programs there are
// ctr and runc.
func (n *Node) Run(ctx context.Context, argv ...string) (string, error) {
	m, err := n.running()
	if err != nil {
		return "", err
	}
	return m.run(ctx, argv...)
}

// PID is the host's process id of the node's first process: `nsenter -a -t PID` opens
// a shell on the node. 0 while it does not run.
func (n *Node) PID() int {
	if m := n.current(); m != nil {
		return m.pid
	}
	return 0
}

// Path is where the host sees a path of the node's file system, or of one that is
// mounted there, such as /sys/fs/bpf.
func (n *Node) Path(path string) string { return pathSeenBy(n.PID(), path) }

// pathSeenBy is where the host sees a path of a process's file system.
func pathSeenBy(pid int, path string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), "root", path)
}

// Cgroup is the cgroup of a pod as the host sees it, wherever its QoS class has put
// it.
func (n *Node) Cgroup(uid string) (string, error) {
	root := filepath.Join(n.cluster.place.cgroup, n.Name, "kubepods")
	for _, class := range []string{"", "burstable", "besteffort"} {
		dir := filepath.Join(root, class, "pod"+uid)
		if _, err := os.Stat(dir); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("looking for the cgroup of pod %s below %s: %w", uid, root, os.ErrNotExist)
}

// Processes are the host's ids of the processes of a pod's containers, without the one
// that holds the pod's namespaces.
func (n *Node) Processes(uid string) ([]int, error) {
	dir, err := n.Cgroup(uid)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var all []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // the container ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("looking for the processes of pod %s: %w", uid, err)
		}
		for _, line := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(line)
			if err != nil {
				return nil, fmt.Errorf("looking for the processes of pod %s: %w", uid, err)
			}
			if !holdsNamespaces(pid) {
				all = append(all, pid)
			}
		}
	}
	return all, nil
}

// holdsNamespaces tells a process of the pause image.
func holdsNamespaces(pid int) bool {
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	// One that has ended meanwhile is none of a container's, either.
	return err != nil || string(command) == pauseCommand
}

// KillPod ends the processes of a pod's containers with SIGKILL, as a crash would; the
// kubelet starts the containers again.
func (n *Node) KillPod(uid string) error {
	pids, err := n.Processes(uid)
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return fmt.Errorf("killing the containers of pod %s: no process of theirs runs on %s", uid, n.Name)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing process %d of pod %s: %w", pid, uid, err)
		}
	}
	return nil
}

// Dial connects from the node, such as to its pods while it is kept apart from the
// control plane. address is an IP address and a port. For a virtual node it is the
// control plane that connects.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	m, err := n.running()
	if err != nil {
		return nil, err
	}
	if m.virtual {
		return n.cluster.Dial(ctx, network, address)
	}
	ns, err := netns.GetFromPid(m.pid)
	if err != nil {
		return nil, fmt.Errorf("opening the network namespace of %s: %w", n.Name, err)
	}
	conn, err := dialIn(ctx, ns, network, address)
	return conn, errors.Join(err, ns.Close())
}
