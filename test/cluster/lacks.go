// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

// oldestKernel is the first that has all that machines are made of (cgroup.kill).
var oldestKernel = [2]int{5, 14}

// Unbuilt names the programs that Start will have to build.
func Unbuilt() ([]string, error) {
	missing, err := controlplane.Missing(controlplane.Scheduler, controlplane.Kubelet, controlplane.Proxy)
	if err != nil {
		return nil, err
	}
	for _, others := range []func() ([]string, error){controlplane.MissingRuntime, controlplane.MissingDNS} {
		more, err := others()
		if err != nil {
			return nil, err
		}
		missing = append(missing, more...)
	}
	return missing, nil
}

// Lacks says what this machine has not that a cluster needs, each with its remedy in a
// line of its own. It tries what can be tried in a moment, and leaves nothing.
func Lacks() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("this is user %d, and namespaces, mounts and cgroups are root's; try sudo env PATH=\"$PATH\" make …", uid)
	}
	unbuilt, err := Unbuilt()
	if err != nil {
		return err
	}
	needed := packages
	if !slices.Contains(unbuilt, controlplane.Runc) {
		needed = packages[:1]
	}
	return errors.Join(lacksKernel(), lacksPackages(needed), tryMachine())
}

func lacksKernel() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	return tooOld(unix.ByteSliceToString(name.Release[:]))
}

func tooOld(release string) error {
	var is [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &is[0], &is[1]); err != nil {
		return fmt.Errorf("reading the kernel's release %q: %w", release, err)
	}
	if slices.Compare(is[:], oldestKernel[:]) < 0 {
		return fmt.Errorf("this is Linux %s, and clusters need %d.%d or later", release, oldestKernel[0], oldestKernel[1])
	}
	return nil
}

// wanted is a package of Debian's, and how to find out whether its part is there.
type wanted struct {
	name  string
	there func() bool
}

// packages are nftables, and what runc is built with.
var packages = []wanted{
	{"nftables", isProgram("nft")},
	{"gcc", isProgram("gcc")},
	{"libc6-dev", isFile("/usr/include/stdio.h")},
	{"pkg-config", isProgram("pkg-config")},
	{"libseccomp-dev", isFile("/usr/include/seccomp.h")},
}

// isProgram asks for a program, where machines look for theirs, or in the PATH.
func isProgram(name string) func() bool {
	return func() bool {
		if _, err := lookUp(name); err == nil {
			return true
		}
		_, err := exec.LookPath(name)
		return err == nil
	}
}

func isFile(path string) func() bool {
	return func() bool {
		_, err := os.Stat(path)
		return err == nil
	}
}

func lacksPackages(all []wanted) error {
	var missing []string
	for _, w := range all {
		if !w.there() {
			missing = append(missing, w.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("there is no %s: apt-get install %s", strings.Join(missing, ", "), strings.Join(missing, " "))
}

// tryMachine makes a cgroup, and namespaces as a machine has them: in a container root
// may not be allowed to.
func tryMachine() error {
	mount, err := cgroupMount()
	if err != nil {
		return err
	}
	return tryMachineIn(mount)
}

func tryMachineIn(mount string) error {
	dir, err := os.MkdirTemp(mount, placePrefix+"trial-")
	if err != nil {
		return fmt.Errorf("making a cgroup: %w", err)
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	command := exec.Command("/proc/self/exe")
	command.Env = []string{roleVariable + "=" + roleTrial, specVariable + "=" + os.TempDir()}
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
	}
	said, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("making namespaces in a cgroup: %w: %s", err, strings.TrimSpace(string(said)))
	}
	return errors.Join(err, cgroup.Close(), removeCgroup(dir))
}

// beTrial mounts something where only it is seen.
func beTrial(folder string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leaving the host's mounts: %w", err)
	}
	return mount("tmpfs", folder, "tmpfs", "")
}

// Busybox is the path of this machine's busybox, which must be one that needs no
// libraries.
func Busybox() (string, error) {
	const remedy = "apt-get install busybox-static"
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", errors.New("there is no busybox: " + remedy)
	}
	program, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s is not static: %s", path, remedy)
		}
	}
	return path, nil
}
