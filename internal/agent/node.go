// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/nodeagent"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/podslots"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/podcgroup"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

// maxReason is what fits into a feature's reason.
const maxReason = 1024

// node is what the agent works with on its node. What the node lacks is nil, and
// the facts say why.
type node struct {
	facts    nodeagent.NodeFacts
	tree     *podcgroup.Tree
	slots    *podslots.Slots
	counter  *syscallcount.Counter
	firewall *l4firewall.Firewall
}

// openNode finds out what the node can do, and opens what there is. Only that
// another agent still holds the pins is an error: whatever a kernel lacks is
// reported instead.
func openNode(ctx context.Context, s *settings.Settings, slots uint32) (*node, error) {
	n := &node{facts: nodeagent.NodeFacts{KernelVersion: kernelVersion(), Architecture: runtime.GOARCH, BTF: hasBTF(), CgroupVersion: cgroupVersion()}}
	ground := n.openGround(s, slots)
	for _, f := range n.features(s.EffectiveBPFFSRoot()) {
		err := ground
		if err == nil {
			err = f.open()
		}
		if errors.Is(err, bpffs.ErrLocked) {
			return nil, errors.Join(fmt.Errorf("opening %s: %w", f.name, err), n.close())
		}
		feature := v1alpha1.EBPFNodeFeature{Name: f.name, Supported: err == nil}
		if err != nil {
			feature.Reason = reasonOf(explainRights(err))
			logging.Warning(klog.FromContext(ctx), "The node does not support a feature", "feature", f.name, "reason", feature.Reason, "triedAgainEvery", s.ResyncPeriod)
		}
		n.facts.Features = append(n.facts.Features, feature)
	}
	if n.counter != nil && len(n.counter.Discarded()) > 0 {
		logging.Warning(klog.FromContext(ctx), "Counts of system calls begin again: this version does not understand the maps that were found", "maps", n.counter.Discarded())
	}
	return n, nil
}

// openGround opens what every feature stands on.
func (n *node) openGround(s *settings.Settings, slots uint32) error {
	root, err := cgroupRoot(s.CgroupRoot)
	if err != nil {
		return err
	}
	if n.tree, err = podcgroup.Open(root); err != nil {
		return fmt.Errorf("the pods' cgroups cannot be watched: %w", err)
	}
	if err := makePinFolder(s.EffectiveBPFFSRoot()); err != nil {
		return err
	}
	if n.slots, err = podslots.Open(s.EffectiveBPFFSRoot(), slots); err != nil {
		n.slots = nil
		return explained(err)
	}
	return nil
}

func (n *node) openCounter(dir string) error {
	if err := syscallcount.Probe(); err != nil {
		return err
	}
	counter, err := syscallcount.Open(syscallcount.Options{Dir: dir, Slots: n.slots.Len()})
	if err != nil {
		return explained(err)
	}
	n.counter = counter
	return nil
}

func (n *node) openFirewall(dir string) error {
	if err := l4firewall.Probe(); err != nil {
		return err
	}
	firewall, err := l4firewall.Open(l4firewall.Options{Dir: dir, Slots: n.slots.Len()})
	if err != nil {
		return explained(err)
	}
	n.firewall = firewall
	return nil
}

// probeConnectDenied asks for what is a part of the firewall.
func (n *node) probeConnectDenied() error {
	if n.firewall == nil {
		return errors.New("it is a part of L4Firewall, which is not supported")
	}
	return l4firewall.ProbeConnectDenied()
}

// close lets go of everything; what is pinned stays.
func (n *node) close() error {
	var errs []error
	if n.counter != nil {
		errs = append(errs, n.counter.Close())
	}
	if n.firewall != nil {
		errs = append(errs, n.firewall.Close())
	}
	if n.slots != nil {
		errs = append(errs, n.slots.Close())
	}
	return errors.Join(errs...)
}

// supports tells of each feature whether the node supports it.
func (n *node) supports() map[string]bool {
	all := map[string]bool{}
	for _, f := range n.facts.Features {
		all[string(f.Name)] = f.Supported
	}
	return all
}

// serve gives a reconciler what the node has. (A nil pointer in an interface
// would not be nil.)
func (n *node) serve(o *nodeagent.Options) {
	if n.tree != nil {
		o.Cgroups = n.tree
	}
	if n.slots != nil {
		o.Slots = n.slots
	}
	if n.counter != nil {
		o.Counter = n.counter
	}
	if n.firewall != nil {
		o.Firewall = n.firewall
	}
}

// reasonOf is what a report says of an error: the feature is named beside it.
func reasonOf(err error) string {
	reason := err.Error()
	if unsupported, ok := err.(*kernelfeature.Unsupported); ok { //nolint:errorlint // what wraps it says more
		reason = unsupported.Reason
		if unsupported.Remedy != "" {
			reason += "; " + unsupported.Remedy
		}
	}
	return shorten(reason, maxReason)
}

// explained adds to an error that no probe foresaw what becomes of it.
func explained(err error) error {
	var unsupported *kernelfeature.Unsupported
	if errors.As(err, &unsupported) || errors.Is(err, bpffs.ErrLocked) {
		return err
	}
	return fmt.Errorf("%w; the agent tries again every CONTROLLER_RESYNC_PERIOD", err)
}

// makePinFolder makes the directory of the pins, for root alone.
func makePinFolder(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = bpffs.Check(dir)
	}
	if err != nil && !errors.Is(err, bpffs.ErrNotBPFFS) {
		return fmt.Errorf("the directory of the pins cannot be made: %w; mount a BPF file system (mount -t bpf bpf /sys/fs/bpf) on the node, and set BPFFS_ROOT to a directory in it", err)
	}
	if err != nil {
		// Left behind in another file system it would be nothing but litter.
		_ = os.Remove(dir)
		return fmt.Errorf("BPFFS_ROOT: %w; mount one on the node (mount -t bpf bpf /sys/fs/bpf)", err)
	}
	return nil
}

// cgroupRoot is the given root of the cgroup v2 tree, or the one that is found.
func cgroupRoot(given string) (string, error) {
	if given == "" {
		root, err := findCgroupRoot()
		if err != nil {
			return "", fmt.Errorf("no cgroup v2 hierarchy: %w; boot the node with cgroup v2 (systemd.unified_cgroup_hierarchy=1)", err)
		}
		return root, nil
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(given, &stat); err != nil {
		return "", fmt.Errorf("CGROUP_ROOT=%q: %w; set it to the node's cgroup v2 tree, or leave it out", given, err)
	}
	if stat.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", fmt.Errorf("CGROUP_ROOT=%q is not in a cgroup v2 hierarchy; set it to the node's cgroup v2 tree, or leave it out", given)
	}
	return given, nil
}

func findCgroupRoot() (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	return podcgroup.FindRoot(mounts)
}

// cgroupVersion is v2, hybrid or v1.
func cgroupVersion() string {
	root, err := findCgroupRoot()
	switch {
	case err != nil:
		return "v1"
	case filepath.Base(root) == "unified":
		return "hybrid"
	default:
		return "v2"
	}
}

func kernelVersion() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

func hasBTF() bool {
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	return !errors.Is(err, fs.ErrNotExist)
}
