// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
)

// VirtualTaint is the key of the taint, NoSchedule, of a virtual node.
const VirtualTaint = "test.podconfig.example.com/virtual"

const (
	guest = "guest"
	// guestMemory in MiB: all files are in it.
	guestMemory = 1536
	// guestPatience is patience with a machine that is emulated.
	guestPatience = 20 * time.Minute
	// guestProgram is where a virtual machine has the program of test/cluster/guest, and
	// guestFile what it reads first.
	guestProgram = "/opt/cluster/" + guest
	guestFile    = "/etc/guest.json"
)

// guestSpec is what a virtual machine is to be.
type guestSpec struct {
	Name      string
	Addresses []netip.Addr
	Gateways  []netip.Addr
	// Time is that of the start, for a machine without a clock.
	Time time.Time
}

// StartVirtualNode starts a node with a kernel of its own, in QEMU without hardware
// support, and waits until it is ready. series is one of Debian's kernels: "5.10",
// "6.1", or vm.Newest; it is fetched from the mirror that this machine's apt knows, and
// kept. The node has the whole of cgroup v2, with limits of resources, and the images
// that the cluster has now; node-1, which has to run, unpacks them for it. Only pods that tolerate VirtualTaint come there, so that
// nothing else depends on it by chance. It has no kube-proxy: of Services its pods reach
// only the API server's.
//
// Of a Node's methods, Path, Cgroup and Partition are not for it, and PID is that of
// QEMU. It is not among Nodes. Machine and node are slow: give what you wait for many
// minutes. They need qemu-system-x86_64, xz and a static busybox, and 2 GiB of memory.
func (c *Cluster) StartVirtualNode(ctx context.Context, series string) (*Node, error) {
	_, noBusybox := Busybox()
	if err := errors.Join(lacksPackages([]wanted{{"qemu-system-x86", isProgram(vm.QEMU)}, {"xz-utils", isProgram("xz")}}), noBusybox); err != nil {
		return nil, fmt.Errorf("starting a virtual node: %w", err)
	}
	kernels, err := vm.Kernels(ctx, c.options.Progress, series)
	if err != nil {
		return nil, fmt.Errorf("getting a kernel for a virtual node: %w", err)
	}
	if err := buildProgram(ctx, c.programs.own, guest); err != nil {
		return nil, err
	}
	began := time.Now()
	n := c.addVirtual(kernels[0])
	if err := errors.Join(n.configure(), n.configureVirtual()); err != nil {
		return nil, fmt.Errorf("configuring %s: %w", n.Name, err)
	}
	if err := n.Start(ctx); err != nil {
		return nil, errors.Join(err, n.Kill())
	}
	c.say("%s with Linux %s is ready after %s", n.Name, n.kernel.Version, since(began))
	return n, nil
}

// RemoveVirtualNode ends a virtual node and takes its object out of the cluster.
func (c *Cluster) RemoveVirtualNode(ctx context.Context, n *Node) error {
	if err := n.Kill(); err != nil {
		return err
	}
	err := c.clients.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *Cluster) addVirtual(kernel vm.Kernel) *Node {
	c.virtualMu.Lock()
	defer c.virtualMu.Unlock()
	index := c.options.Nodes + len(c.virtual) + 1
	n := &Node{cluster: c, Name: fmt.Sprintf("virtual-%d", index), index: index, kernel: &kernel}
	c.virtual = append(c.virtual, n)
	return n
}

// configureVirtual changes what is different on a machine whose cgroups have
// controllers, and which is slow.
func (n *Node) configureVirtual() error {
	folder, err := n.cluster.configOf(n.Name)
	if err != nil {
		return err
	}
	return errors.Join(
		change(filepath.Join(folder, "containerd.toml"), "/opt/cluster/"+unlimited, "/opt/runtime/"+controlplane.Runc),
		change(filepath.Join(folder, "kubelet.yaml"), "\nfailSwapOn: false\n", fmt.Sprintf("\nfailSwapOn: false\nruntimeRequestTimeout: %s\nregisterWithTaints: [{key: %s, effect: NoSchedule}]\n", guestPatience, VirtualTaint)),
	)
}

// change replaces a part of a file, which must be there.
func change(path, from, to string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte(from)) {
		return fmt.Errorf("looking for %q in %s: it is not there", from, path)
	}
	return os.WriteFile(path, bytes.ReplaceAll(text, []byte(from), []byte(to)), 0o644)
}

// newVirtualMachine boots QEMU, whose second serial line carries orders and reports.
// The others are files of the host's: for the console, and for two programs' logs.
func (c *Cluster) newVirtualMachine(ctx context.Context, n *Node) (*machine, error) {
	dir, logs, cgroup := filepath.Join(c.place.dir, "machines", n.Name), filepath.Join(c.logs, n.Name), filepath.Join(c.place.cgroup, n.Name)
	for _, folder := range []string{dir, logs, cgroup} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
	}
	initrd := filepath.Join(dir, "initramfs")
	err := c.nodes[0].prepareImages(ctx, "images-"+n.Name, func(images string) error { return n.writeInitramfs(initrd, images) })
	if err != nil {
		return nil, fmt.Errorf("making the files of %s: %w", n.Name, err)
	}
	tap, err := c.fabric.tap(n.index)
	if err != nil {
		return nil, fmt.Errorf("joining %s to the network: %w", n.Name, err)
	}
	defer tap.Close()
	m := &machine{name: n.Name, logs: logs, cgroup: cgroup, virtual: true, gone: make(chan struct{}), waiting: map[int]chan report{}}
	if err := m.boot(*n.kernel, initrd, tap, n.index); err != nil {
		return nil, fmt.Errorf("starting %s: %w", n.Name, err)
	}
	waiting, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	if _, err := m.await(waiting, m.waiting[0]); err != nil {
		return nil, errors.Join(fmt.Errorf("booting %s: %w; QEMU says:\n%s\nand the console:\n%s", n.Name, err, m.tail("machine"), m.tail("console")), m.kill())
	}
	return m, os.Remove(initrd)
}

func (m *machine) boot(kernel vm.Kernel, initrd string, tap *os.File, index int) error {
	log, err := os.OpenFile(m.log("machine"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cgroup, err := os.Open(m.cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	arguments := append(vm.Arguments(kernel, initrd, 1, vm.FewFeatures, guestMemory, "loglevel=4 mitigations=off tsc=reliable random.trust_cpu=on cgroup_no_v1=all rdinit="+guestProgram),
		"-serial", "file:"+m.log("console"),
		"-chardev", "stdio,id=orders,signal=off", "-serial", "chardev:orders",
		"-serial", "file:"+m.log(Containerd),
		"-serial", "file:"+m.log(Kubelet),
		"-netdev", "tap,id=net,fd=3", "-device", fmt.Sprintf("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:%02x", index),
	)
	m.cmd = exec.Command(vm.QEMU, arguments...)
	m.cmd.Stderr = log
	m.cmd.ExtraFiles = []*os.File{tap}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	return m.begin()
}

// writeInitramfs makes an archive of all that the machine has: this package's guest,
// modules, the node's programs and configuration, a busybox, and images as containerd
// keeps them.
func (n *Node) writeInitramfs(path, images string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	a := vm.NewInitramfs(file)
	err = errors.Join(n.fillInitramfs(a), a.Tree("var/lib/containerd", images))
	if err == nil {
		err = a.Close()
	}
	return errors.Join(err, file.Close())
}

func (n *Node) fillInitramfs(a *vm.Initramfs) error {
	if err := a.Console(); err != nil {
		return err
	}
	busybox, err := Busybox()
	if err != nil {
		return err
	}
	files := map[string]string{"/bin/busybox": busybox, "/opt/kubernetes/" + Kubelet: filepath.Join(n.cluster.programs.kubernetes, Kubelet)}
	config, err := n.cluster.configOf(n.Name)
	if err != nil {
		return err
	}
	for place, folder := range map[string]string{
		"/opt/cluster": n.cluster.programs.own, "/opt/runtime": n.cluster.programs.runtime, strings.TrimSuffix(etc, "/"): config,
	} {
		if err := addFolder(files, place, folder); err != nil {
			return err
		}
	}
	modules, err := n.kernel.Modules()
	if err != nil {
		return err
	}
	for i, from := range modules {
		files[fmt.Sprintf("/modules/%03d-%s", i, filepath.Base(from))] = from
	}
	for to, from := range files {
		if err := a.File(strings.TrimPrefix(to, "/"), from); err != nil {
			return err
		}
	}
	text, err := json.Marshal(guestSpec{Name: n.Name, Addresses: n.Addresses(), Gateways: serverAddresses, Time: time.Now()})
	if err != nil {
		return err
	}
	return a.Data(strings.TrimPrefix(guestFile, "/"), 0o644, text)
}

// addFolder adds all files of a folder, but for hidden ones.
func addFolder(files map[string]string, place, folder string) error {
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.HasPrefix(entry.Name(), ".") {
			return err
		}
		relative, err := filepath.Rel(folder, path)
		files[filepath.Join(place, relative)] = path
		return err
	})
}

// Objects are the BPF objects of a virtual node's kernel, which it shares with nobody.
func (n *Node) Objects(ctx context.Context) (*Objects, error) {
	if n.kernel == nil {
		return nil, fmt.Errorf("looking for the BPF objects of %s: its kernel is the host's", n.Name)
	}
	said, err := n.Run(ctx, guestProgram, "objects")
	if err != nil {
		return nil, err
	}
	all := &Objects{}
	if err := json.Unmarshal([]byte(said), all); err != nil {
		return nil, fmt.Errorf("reading the BPF objects of %s: %w: %s", n.Name, err, said)
	}
	return all, nil
}
