// SPDX-License-Identifier: Apache-2.0

// Package machine tells whether this machine can run the eBPF part of the demo.
// It is small, so that somebody whose machine cannot knows before anything large
// is built.
package machine

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/podcgroup"
)

// Facts are what the eBPF programs find here.
type Facts struct {
	Kernel     string // as uname -r prints it
	CgroupRoot string // the cgroup v2 mount
}

// Look tries everything that the demo needs, in a moment, and leaves nothing. The
// error is a *Lacking.
func Look() (*Facts, error) {
	f, lacks := &Facts{}, &Lacking{}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		f.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var err error
	if f.CgroupRoot, err = cgroupRoot(); err != nil {
		lacks.add("cgroup v2 (%v): boot with systemd.unified_cgroup_hierarchy=1, or mount it: mount -t cgroup2 none /sys/fs/cgroup/unified", err)
	}
	if uid := os.Geteuid(); uid != 0 {
		// Without root the kernel refuses the rest, whatever it can do.
		lacks.add("root (this is user %d): cgroups, network namespaces and BPF programs are the administrator's; try sudo, as in sudo env PATH=\"$PATH\" make run EBPF_ENABLED=true", uid)
		return nil, lacks
	}
	for _, probe := range []func() error{syscallcount.Probe, l4firewall.Probe, l4firewall.ProbeConnectDenied} {
		if err := probe(); err != nil {
			lacks.add("BPF programs: %v", err)
		}
	}
	if len(lacks.What) > 0 {
		return nil, lacks
	}
	return f, nil
}

// Lacking is what a machine has not.
type Lacking struct{ What []string }

func (l *Lacking) add(format string, args ...any) {
	l.What = append(l.What, fmt.Sprintf(format, args...))
}

func (l *Lacking) Error() string {
	return "EBPF_ENABLED=true loads real BPF programs here, and this machine lacks:\n  - " + strings.Join(l.What, "\n  - ") +
		"\nWithout EBPF_ENABLED, make run shows the ConfigMaps; with KUBECONFIG, agents run on that cluster's nodes."
}

// cgroupRoot is the cgroup v2 mount that test/sandbox works in.
func cgroupRoot() (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", errors.New("this is not a Linux with /proc")
	}
	defer mounts.Close()
	root, err := podcgroup.FindRoot(mounts)
	if err == nil && root != "/sys/fs/cgroup" && root != "/sys/fs/cgroup/unified" {
		return "", fmt.Errorf("it is mounted at %s only, not at /sys/fs/cgroup or /sys/fs/cgroup/unified", root)
	}
	return root, err
}
