// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
)

// TestRemoval turns the flag off, and uninstalls, while pods are filtered and counted:
// nothing of it may be left in the kernel.
func TestRemoval(t *testing.T) {
	p := &point{T: t, world: shared}
	var without []string
	p.step("without eBPF", func(p *point) {
		p.deploy(optional...)
		without = names(p.released())
	})
	p.step("ebpf.enabled=true", func(p *point) { p.enable(optional...) })
	p.namespace(guarded)
	p.step("pods that are filtered and counted on every node", func(p *point) { p.occupy() })
	var held objects
	p.step("what the agents have in the kernel", func(p *point) { held = p.held() })
	p.step("ebpf.enabled=false", func(p *point) {
		p.deploy(optional...)
		p.await("the agents are gone", func() error { return p.gone(system, agents, &appsv1.DaemonSet{}) })
		p.await("nothing is left in the kernel", func() error { return p.nothingLeft(held) })
		p.await("nothing privileged is left", p.unprivileged)
		// Those of the agents among them (docs/helm.md).
		is := p.released()
		if with := names(is); !slices.Equal(with, without) {
			p.Errorf("the release has %v, had %v before eBPF was on", with, without)
		}
		p.harmless(is)
	})
	p.step("ebpf.enabled=true again", func(p *point) {
		p.enable(optional...)
		p.awaitConfig(guarded, "held")
		held = p.held()
	})
	p.step("uninstall with the flag on", func(p *point) {
		p.await("ConfigMaps are as promised", func() error { return p.promised(guarded) })
		before := p.users()
		p.uninstall()
		p.await("nothing is left in the kernel", func() error { return p.nothingLeft(held) })
		p.await("no object of the release is left", p.unreleased)
		if after := p.users(); !slices.Equal(after, before) {
			p.Errorf("what stays is %v; it was %v", after, before)
		}
	})
	p.noNamespace(guarded)
}

// occupy has a pod on each node that wants all that there is.
func (p *point) occupy() []*corev1.Pod {
	p.config("held", v1alpha1.EBPFConfig{
		SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true},
		L4Firewall: &v1alpha1.L4Firewall{
			Enabled: true, BlockedPorts: []v1alpha1.Port{blockedPort},
			Directions: []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionIngress, v1alpha1.FirewallDirectionEgress},
		},
	})
	var pods []*corev1.Pod
	for _, node := range p.Nodes() {
		pods = append(pods, p.pod("held-"+node.Name, "held", node.Name, podSpec(serving("-tcp=8080,9090", "-udp=8080,9090"))))
	}
	p.awaitReady(pods...)
	p.awaitConfig(guarded, "held")
	return pods
}

// objects are those of the kernel, by kind and id.
type objects map[string]map[uint32]bool

func (o objects) add(kind string, id uint32) {
	if o[kind] == nil {
		o[kind] = map[uint32]bool{}
	}
	o[kind][id] = true
}

// held is what agents have in the kernel: what is pinned on their nodes, and what their
// processes have open. It fails unless there are pins, and programs at pods' cgroups,
// on each node.
func (p *point) held() objects {
	p.Helper()
	all := objects{}
	for _, n := range p.Nodes() {
		count, err := pinned(n, all)
		p.must(err)
		attached, err := attachments(n)
		p.must(err)
		if count == 0 || len(attached) < 4 {
			p.Fatalf("%s has %d pins and the attachments %v: there should be some of each direction, and for connect", n.Name, count, attached)
		}
	}
	for _, agent := range p.pods(system, agentLabels) {
		pids, err := p.Node(agent.Spec.NodeName).Processes(string(agent.UID))
		p.must(err)
		p.must(opened(pids, all))
	}
	for _, kind := range []string{"program", "map", "link"} {
		if len(all[kind]) == 0 {
			p.Fatalf("the agents have no %s in the kernel: %v", kind, all)
		}
	}
	say("  %d programs, %d maps, %d links", len(all["program"]), len(all["map"]), len(all["link"]))
	return all
}

// pins is where agents pin.
const pins = "/sys/fs/bpf/podconfigmap"

// pinned adds what is pinned on a node, and tells how much that is.
func pinned(n *cluster.Node, all objects) (int, error) {
	count := 0
	err := filepath.WalkDir(n.Path(pins), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		count++
		return identify(path, all)
	})
	return count, err
}

// identify opens a pin as what it is.
func identify(path string, all objects) error {
	if program, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer program.Close()
		info, err := program.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		all.add("program", uint32(id))
		return nil
	}
	if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		all.add("map", uint32(id))
		return inner(m, all)
	}
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return fmt.Errorf("%s is no program, map or link: %w", path, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	all.add("link", uint32(info.ID))
	all.add("program", uint32(info.Program))
	return nil
}

// inner adds the maps in an array of maps.
func inner(m *ebpf.Map, all objects) error {
	if m.Type() != ebpf.ArrayOfMaps {
		return nil
	}
	for i := range m.MaxEntries() {
		var id uint32
		err := m.Lookup(i, &id)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading an array of maps: %w", err)
		}
		all.add("map", id)
	}
	return nil
}

// kinds are the lines of /proc/PID/fdinfo that name objects.
var kinds = map[string]string{"prog_id": "program", "map_id": "map", "link_id": "link"}

// opened adds what processes have open.
func opened(pids []int, all objects) error {
	for _, pid := range pids {
		descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
		if err != nil {
			return err
		}
		for _, descriptor := range descriptors {
			if err := readDescriptor(descriptor, all); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func readDescriptor(path string, all objects) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if kind := kinds[name]; kind != "" {
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if err != nil {
				return err
			}
			all.add(kind, uint32(id))
		}
	}
	return lines.Err()
}

// attachTypes are those of the firewall.
var attachTypes = map[string]ebpf.AttachType{
	"ingress": ebpf.AttachCGroupInetIngress, "egress": ebpf.AttachCGroupInetEgress,
	"connect4": ebpf.AttachCGroupInet4Connect, "connect6": ebpf.AttachCGroupInet6Connect,
	"sendmsg4": ebpf.AttachCGroupUDP4Sendmsg, "sendmsg6": ebpf.AttachCGroupUDP6Sendmsg,
}

// attachments are the programs at all cgroups of a node, but for those of its runtime.
func attachments(n *cluster.Node) ([]string, error) {
	var found []string
	err := filepath.WalkDir(n.Path("/sys/fs/cgroup"), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		dir, err := os.Open(path)
		if err != nil {
			return nil //nolint:nilerr // the same
		}
		defer dir.Close()
		for name, kind := range attachTypes {
			result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: kind})
			if err != nil {
				return fmt.Errorf("asking %s for its programs: %w", path, err)
			}
			for range result.Programs {
				found = append(found, name+" at "+path)
			}
		}
		return nil
	})
	return found, err
}

// nothingLeft is nil when no node has a pin or an attachment, and none of the objects
// exists any more.
func (p *point) nothingLeft(held objects) error {
	for _, n := range p.Nodes() {
		// The folder that installations share may stay; it is empty.
		left, err := pinned(n, objects{})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if left > 0 {
			return fmt.Errorf("%s has %d pins", n.Name, left)
		}
		attached, err := attachments(n)
		if err != nil {
			return err
		}
		if len(attached) > 0 {
			return fmt.Errorf("%s has programs: %v", n.Name, attached)
		}
	}
	for kind, ids := range held {
		for id := range ids {
			if err := exists(kind, id); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s %d is still in the kernel (%w)", kind, id, err)
			}
		}
	}
	return nil
}

// exists opens an object by its id.
func exists(kind string, id uint32) error {
	var opened interface{ Close() error }
	var err error
	switch kind {
	case "program":
		opened, err = ebpf.NewProgramFromID(ebpf.ProgramID(id))
	case "map":
		opened, err = ebpf.NewMapFromID(ebpf.MapID(id))
	case "link":
		opened, err = link.NewFromID(link.ID(id))
	}
	if err != nil {
		return err
	}
	return errors.Join(errors.New("it was opened"), opened.Close())
}

// restricted tells whether a container can neither have privileges nor get any.
func restricted(c *corev1.SecurityContext, pod *corev1.PodSecurityContext) bool {
	if c == nil || c.Capabilities == nil || len(c.Capabilities.Add) > 0 {
		return false
	}
	user := c.RunAsNonRoot
	if user == nil && pod != nil {
		user = pod.RunAsNonRoot
	}
	return user != nil && *user && (c.Privileged == nil || !*c.Privileged) &&
		c.AllowPrivilegeEscalation != nil && !*c.AllowPrivilegeEscalation
}

// unprivileged is nil when no pod of the operator has more rights than a manager's, and
// no agent's report is left. Pods that the garbage collector has yet to end count.
func (p *point) unprivileged() error {
	for _, pod := range p.pods(system, nil) {
		if err := privileges(&pod.Spec); err != nil {
			return fmt.Errorf("pod %s: %w", pod.Name, err)
		}
	}
	reports := &v1alpha1.EBPFNodeList{}
	if err := p.client.List(p.Context(), reports, client.InNamespace(system)); err != nil {
		return err
	}
	if n := len(reports.Items); n > 0 {
		return fmt.Errorf("%d agents' reports are left", n)
	}
	return nil
}

// privileges tells what of a node a pod can reach that a manager's cannot.
func privileges(spec *corev1.PodSpec) error {
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			return fmt.Errorf("it has the host's %s", v.HostPath.Path)
		}
	}
	if spec.HostNetwork || spec.HostPID || spec.HostIPC {
		return errors.New("it is in the host's namespaces")
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if !restricted(c.SecurityContext, spec.SecurityContext) {
			return fmt.Errorf("container %s: %+v, %+v", c.Name, c.SecurityContext, spec.SecurityContext)
		}
	}
	return nil
}

// mapMemory is what the maps among objects take, in bytes.
func mapMemory(all objects) (uint64, error) {
	total := uint64(0)
	for id := range all["map"] {
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			return 0, fmt.Errorf("opening map %d: %w", id, err)
		}
		info, err := m.Info()
		if err := errors.Join(err, m.Close()); err != nil {
			return 0, fmt.Errorf("asking map %d for its size: %w", id, err)
		}
		bytes, there := info.Memlock()
		if !there {
			return 0, fmt.Errorf("map %d does not tell its size", id)
		}
		total += bytes
	}
	return total, nil
}
