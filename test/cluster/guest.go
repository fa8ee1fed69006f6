// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Serial lines of a virtual machine, besides the console.
const (
	ordersLine     = "/dev/ttyS1"
	containerdLine = "/dev/ttyS2"
	kubeletLine    = "/dev/ttyS3"
)

// stageVariable tells the first process of a virtual machine that it has left the
// kernel's first file system.
const stageVariable = "PODCONFIGMAP_GUEST_STAGE"

// BeGuest is the main function of test/cluster/guest: the first process of a virtual
// machine, or, as `guest objects`, a look at what BPF objects its kernel has. As the
// first process it returns only with an error, with which the machine ends.
func BeGuest(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "objects":
		return tellObjects(os.Stdout)
	case os.Getpid() != 1:
		return errors.New("this is for the first process of a virtual machine, or takes the argument objects")
	case os.Getenv(stageVariable) == "":
		return leaveInitramfs()
	}
	return beGuestMachine()
}

// leaveInitramfs makes a root that can be left, with the same files: runc, which changes
// the root of a container, cannot leave the kernel's first one.
func leaveInitramfs() error {
	const root = "/newroot"
	if err := errors.Join(mount("proc", "/proc", "proc", ""), mount("devtmpfs", "/dev", "devtmpfs", "")); err != nil {
		return err
	}
	note("the kernel runs")
	if err := loadModules("/modules"); err != nil {
		return err
	}
	note("modules are loaded")
	if err := mount("tmpfs", root, "tmpfs", "size=90%,mode=755"); err != nil {
		return err
	}
	for _, name := range []string{"bin", "etc", "opt", "var/lib/containerd"} {
		if err := bind("/"+name, root+"/"+name, false); err != nil {
			return err
		}
	}
	if err := os.Mkdir(root+"/dev", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev", root+"/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving /dev: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), unix.Chdir("/")); err != nil {
		return err
	}
	return fmt.Errorf("starting anew: %w", syscall.Exec(guestProgram, []string{guest}, []string{"PATH=" + programPath, stageVariable + "=2"}))
}

// note tells on the console how far the machine is, with the time since the kernel's
// start.
func note(what string) {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) == nil {
		fmt.Fprintf(os.Stderr, "[%9.3f] guest: %s\n", float64(now.Nano())/1e9, what)
	}
}

// loadModules loads a folder's modules, in the order of their names.
func loadModules(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		file, err := os.Open(filepath.Join(folder, entry.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(file.Fd()), "", 0)
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("loading %s: %w", entry.Name(), err)
		}
	}
	return nil
}

// beGuestMachine furnishes the machine and serves orders.
func beGuestMachine() error {
	text, err := os.ReadFile(guestFile)
	if err != nil {
		return err
	}
	var g guestSpec
	if err := json.Unmarshal(text, &g); err != nil {
		return fmt.Errorf("reading %s: %w", guestFile, err)
	}
	if err := g.furnish(); err != nil {
		return err
	}
	var lines []*os.File
	for _, path := range []string{ordersLine, containerdLine, kubeletLine} {
		line, err := openRaw(path)
		if err != nil {
			return fmt.Errorf("opening %s: %w", path, err)
		}
		lines = append(lines, line)
	}
	note("ready for orders")
	// The collector of garbage costs more here than memory.
	return serveOrders(spec{Name: g.Name, Node: true, Environ: []string{"GOGC=400"}}, lines[0], lines[0])
}

// openRaw opens a serial line that passes on what it gets as it is.
func openRaw(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	settings.Iflag, settings.Oflag, settings.Lflag = 0, 0, 0
	settings.Cflag |= unix.CS8 | unix.CLOCAL | unix.CREAD
	settings.Cc[unix.VMIN], settings.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(file.Fd()), unix.TCSETS, settings); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (g *guestSpec) furnish() error {
	if err := mountKernel(); err != nil {
		return err
	}
	for _, m := range []struct{ kind, target, data string }{
		{"devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"}, {"tmpfs", "/dev/shm", "mode=1777"},
		{"cgroup2", cgroupRoot, ""}, {"bpf", "/sys/fs/bpf", ""}, {"tracefs", "/sys/kernel/tracing", ""},
	} {
		if err := mount(m.kind, m.target, m.kind, m.data); err != nil {
			return err
		}
	}
	// kubelet passes mounts on to pods.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing mounts: %w", err)
	}
	for _, dir := range []string{"/root", "/var/log", "/var/lib"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return g.settle()
}

// settle gives the machine its commands, time, name and network.
func (g *guestSpec) settle() error {
	if said, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("making links to busybox: %w: %s", err, said)
	}
	if time.Now().Before(g.Time) {
		now := unix.NsecToTimeval(g.Time.UnixNano())
		if err := unix.Settimeofday(&now); err != nil {
			return fmt.Errorf("setting the clock: %w", err)
		}
	}
	if err := errors.Join((&spec{Name: g.Name, Root: "/"}).writeEtc(), unix.Sethostname([]byte(g.Name)), writeSysctls(), g.network()); err != nil {
		return err
	}
	// No process may be in the root, or kubelet could pass no controllers on.
	cgroup, err := systemCgroup("init")
	if err != nil {
		return err
	}
	return errors.Join(moveTo(cgroup.Name()), cgroup.Close())
}

// network gives the machine its addresses and the way to all others.
func (g *guestSpec) network() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	if err := errors.Join(addAddresses(handle, "lo", nil, 0, 0), addAddresses(handle, nodeLink, g.Addresses, 24, 64)); err != nil {
		return err
	}
	for _, gateway := range g.Gateways {
		if err := addRoute(handle, netip.PrefixFrom(unspecified(gateway), 0), gateway); err != nil {
			return err
		}
	}
	return nil
}

// Objects are the BPF objects of a kernel, but for what runc has for each container.
type Objects struct {
	Programs, Maps, Links []string
}

// tellObjects writes Objects as JSON.
func tellObjects(to io.Writer) error {
	var all Objects
	var errs []error
	errs = append(errs,
		each(ebpf.ProgramGetNextID, ebpf.NewProgramFromID, func(p *ebpf.Program) error {
			defer p.Close()
			info, err := p.Info()
			if err == nil && info.Type != ebpf.CGroupDevice {
				all.Programs = append(all.Programs, info.Type.String()+" "+info.Name)
			}
			return err
		}),
		each(ebpf.MapGetNextID, ebpf.NewMapFromID, func(m *ebpf.Map) error {
			defer m.Close()
			info, err := m.Info()
			if err == nil {
				all.Maps = append(all.Maps, info.Type.String()+" "+info.Name)
			}
			return err
		}),
		tellLinks(&all),
	)
	slices.Sort(all.Programs)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return json.NewEncoder(to).Encode(all)
}

// each opens all objects of a kind. One that has gone meanwhile is none.
func each[ID ~uint32, T any](next func(ID) (ID, error), open func(ID) (T, error), look func(T) error) error {
	for id := ID(0); ; {
		var err error
		if id, err = next(id); errors.Is(err, os.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		object, err := open(id)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = look(object)
		}
		if err != nil {
			return err
		}
	}
}

func tellLinks(all *Objects) error {
	links := &link.Iterator{}
	defer links.Close()
	for links.Next() {
		info, err := links.Link.Info()
		if err != nil {
			return err
		}
		all.Links = append(all.Links, fmt.Sprint(info.Type))
	}
	return links.Err()
}
