// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Programs that Build makes only when asked for, besides those of Start.
const (
	Scheduler = "kube-scheduler"
	Kubelet   = "kubelet"
	Proxy     = "kube-proxy"
)

// Programs that BuildRuntime makes.
const (
	Containerd = "containerd"
	Shim       = "containerd-shim-runc-v2"
	Ctr        = "ctr"
	Runc       = "runc"
	PTP        = "ptp"
	Loopback   = "loopback"
	HostLocal  = "host-local"
)

// CoreDNS is the program that BuildDNS makes.
const CoreDNS = "coredns"

const (
	etcd              = "etcd"
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"

	etcdModule       = "go.etcd.io/etcd/server/v3"
	kubernetesModule = "k8s.io/kubernetes"
	containerdModule = "github.com/containerd/containerd/v2"
	runcModule       = "github.com/opencontainers/runc"
	pluginsModule    = "github.com/containernetworking/plugins"
	coreDNSModule    = "github.com/coredns/coredns"
)

// program says how one program is built.
type program struct {
	module string // pins its version, in the go.mod of folder
	folder string // below the root of the repository
	pkg    string
	usual  string // time of a build on two cores with an empty build cache
	tags   string
	// needs names what a build with a C compiler takes beyond Go; empty: nothing,
	// and no C.
	needs string
}

var programs = map[string]program{
	etcd:              {module: etcdModule, folder: "hack/etcd", pkg: etcdModule, usual: "about 2 minutes"},
	apiServer:         kubernetesProgram(apiServer, "4 to 9 minutes"),
	controllerManager: kubernetesProgram(controllerManager, "about a minute after kube-apiserver"),
	Scheduler:         kubernetesProgram(Scheduler, "half a minute after kube-apiserver"),
	Kubelet:           kubernetesProgram(Kubelet, "about a minute after kube-apiserver"),
	Proxy:             kubernetesProgram(Proxy, "half a minute after kube-apiserver"),
	Containerd:        containerdProgram(Containerd, "about 3 minutes"),
	Shim:              containerdProgram(Shim, "half a minute after containerd"),
	Ctr:               containerdProgram(Ctr, "half a minute after containerd"),
	Runc: {module: runcModule, folder: "hack/runc", pkg: runcModule, usual: "half a minute", tags: "seccomp,netgo,osusergo",
		needs: "a C compiler, pkg-config and libseccomp's static library (Debian: apt-get install gcc libc6-dev pkg-config libseccomp-dev)"},
	PTP:       plugin("main", PTP),
	Loopback:  plugin("main", Loopback),
	HostLocal: plugin("ipam", HostLocal),
	// Its own main package has more plugins than a cluster's DNS needs.
	CoreDNS: {module: coreDNSModule, folder: "hack/coredns", pkg: ".", usual: "about 2 minutes"},
}

func kubernetesProgram(name, usual string) program {
	return program{module: kubernetesModule, folder: "hack/controlplane", pkg: kubernetesModule + "/cmd/" + name, usual: usual}
}

func containerdProgram(name, usual string) program {
	return program{module: containerdModule, folder: "hack/containerd", pkg: containerdModule + "/cmd/" + name, usual: usual,
		tags: "no_btrfs,no_devmapper,no_zfs"}
}

func plugin(kind, name string) program {
	return program{module: pluginsModule, folder: "hack/cni", pkg: pluginsModule + "/plugins/" + kind + "/" + name, usual: "a quarter of a minute"}
}

// Build returns the folder that holds etcd, kube-apiserver and
// kube-controller-manager, and the programs named in extra. What is missing it
// builds from the versions pinned in hack/etcd and hack/controlplane, telling
// progress (which may be nil) what it does. The folder is below the user's
// cache folder and named after the versions. Several processes may call Build
// at once, and a build may be interrupted: programs appear there only whole.
//
// The working folder must be in the repository.
func Build(ctx context.Context, progress io.Writer, extra ...string) (string, error) {
	b, err := newPlaneBuilder(progress)
	if err != nil {
		return "", err
	}
	return b.all(ctx, planePrograms(extra))
}

// Missing names what Build would have to build.
func Missing(extra ...string) ([]string, error) {
	b, err := newPlaneBuilder(nil)
	if err != nil {
		return nil, err
	}
	return b.missing(planePrograms(extra))
}

func newPlaneBuilder(progress io.Writer) (*builder, error) {
	return newBuilder(progress, "controlplane", pin{"kubernetes", apiServer}, pin{"etcd", etcd})
}

func planePrograms(extra []string) []string {
	return append([]string{etcd, apiServer, controllerManager}, extra...)
}

// BuildRuntime does the same for the programs that a kubelet runs containers by:
// containerd with its shim and ctr, runc, and plugins for the pods' network. They
// are pinned in hack/containerd, hack/runc and hack/cni.
func BuildRuntime(ctx context.Context, progress io.Writer) (string, error) {
	b, err := newRuntimeBuilder(progress)
	if err != nil {
		return "", err
	}
	return b.all(ctx, runtimePrograms)
}

// MissingRuntime names what BuildRuntime would have to build.
func MissingRuntime() ([]string, error) {
	b, err := newRuntimeBuilder(nil)
	if err != nil {
		return nil, err
	}
	return b.missing(runtimePrograms)
}

var runtimePrograms = []string{Containerd, Shim, Ctr, Runc, PTP, Loopback, HostLocal}

func newRuntimeBuilder(progress io.Writer) (*builder, error) {
	return newBuilder(progress, "runtime", pin{"containerd", Containerd}, pin{"runc", Runc}, pin{"cni", PTP})
}

// BuildDNS does the same for CoreDNS, which is pinned in hack/coredns.
func BuildDNS(ctx context.Context, progress io.Writer) (string, error) {
	b, err := newDNSBuilder(progress)
	if err != nil {
		return "", err
	}
	return b.all(ctx, []string{CoreDNS})
}

// MissingDNS names what BuildDNS would have to build.
func MissingDNS() ([]string, error) {
	b, err := newDNSBuilder(nil)
	if err != nil {
		return nil, err
	}
	return b.missing([]string{CoreDNS})
}

func newDNSBuilder(progress io.Writer) (*builder, error) {
	return newBuilder(progress, "dns", pin{"coredns", CoreDNS})
}

func (b *builder) all(ctx context.Context, names []string) (string, error) {
	missing, err := b.missing(names)
	if err != nil || len(missing) == 0 {
		return b.out, err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	// Whoever held the lock may have built them.
	if missing, err = b.missing(names); err != nil {
		return "", err
	}
	for _, name := range missing {
		if err := b.build(ctx, name); err != nil {
			return "", fmt.Errorf("building %s: %w", name, err)
		}
	}
	return b.out, nil
}

// builder builds programs of one set of versions.
type builder struct {
	root     string // of the repository
	out      string
	progress io.Writer
}

// pin is a part of a folder's name: a label, and the program whose version
// follows it.
type pin struct{ label, program string }

// newBuilder makes the folder for programs of a kind and of pinned versions.
func newBuilder(progress io.Writer, kind string, pins ...pin) (*builder, error) {
	if progress == nil {
		progress = io.Discard
	}
	root, err := repositoryRoot()
	if err != nil {
		return nil, err
	}
	var versions []string
	for _, p := range pins {
		version, err := pinnedVersion(root, programs[p.program])
		if err != nil {
			return nil, err
		}
		versions = append(versions, p.label+"-"+version)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("finding the cache folder: %w", err)
	}
	out := filepath.Join(cache, "podconfigmap-controller", kind, strings.Join(versions, "-"))
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of programs: %w", err)
	}
	return &builder{root: root, out: out, progress: progress}, nil
}

// repositoryRoot looks upwards from the working folder: tests run in the
// folder of their package.
func repositoryRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the working folder: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, programs[apiServer].folder, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("looking for %s/go.mod above %q: %w", programs[apiServer].folder, start, fs.ErrNotExist)
		}
	}
}

// pinnedVersion reads the version of p's module from the go.mod that pins it.
func pinnedVersion(root string, p program) (string, error) {
	path := filepath.Join(root, p.folder, "go.mod")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the pinned version of %s: %w", p.module, err)
	}
	if v := requiredVersion(string(text), p.module); v != "" {
		return v, nil
	}
	return "", fmt.Errorf("looking for %s in %q: not required there", p.module, path)
}

// requiredVersion returns the version that the text of a go.mod requires of
// module, or "".
func requiredVersion(gomod, module string) string {
	for line := range strings.Lines(gomod) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) >= 2 && f[0] == module && strings.HasPrefix(f[1], "v") {
			return f[1]
		}
	}
	return ""
}

// missing returns those of names that are not built yet.
func (b *builder) missing(names []string) ([]string, error) {
	var missing []string
	for _, name := range names {
		if _, known := programs[name]; !known {
			return nil, fmt.Errorf("building %q: not a known program", name)
		}
		_, err := os.Stat(filepath.Join(b.out, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, name)
		case err != nil:
			return nil, fmt.Errorf("looking for %s: %w", name, err)
		}
	}
	return missing, nil
}

// lock waits until no other process builds. The kernel drops the lock of a
// process that dies.
func (b *builder) lock(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(b.out, ".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the build lock: %w", err)
	}
	stop := b.ticker("waiting for another process that builds the control plane")
	defer stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %q: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for the lock %q: %w", path, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// build makes one program. It is called with the lock held, so that the
// temporary name is its own, and what an interrupted build left is replaced.
func (b *builder) build(ctx context.Context, name string) error {
	p := programs[name]
	fmt.Fprintf(b.progress, "building %s into %s (once; with an empty build cache %s)\n", name, b.out, p.usual)
	began := time.Now()
	stop := b.ticker("building " + name)
	defer stop()
	version, err := pinnedVersion(b.root, p)
	if err != nil {
		return err
	}
	temporary := filepath.Join(b.out, ".building-"+name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", p.tags, "-ldflags", linkFlags(p, version), "-o", temporary, p.pkg)
	cmd.Dir = filepath.Join(b.root, p.folder)
	cgo := "CGO_ENABLED=0"
	if p.needs != "" {
		cgo = "CGO_ENABLED=1"
	}
	cmd.Env = append(os.Environ(), cgo, "GOWORK=off")
	// An interrupted go removes its work folder; a killed one does not.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	// A go that outlived this process would write the same temporary file as
	// the next holder of the lock.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err = onLastingThread(cmd.Start); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%w\n%s%s", errors.Join(err, ctx.Err()), lastLines(said.String(), shownLines), p.remedy())
	}
	if err := os.Rename(temporary, filepath.Join(b.out, name)); err != nil {
		return err
	}
	fmt.Fprintf(b.progress, "built %s in %s\n", name, time.Since(began).Round(time.Second))
	return nil
}

// remedy ends the error of a build that needs more than Go.
func (p program) remedy() string {
	if p.needs == "" {
		return ""
	}
	return "\nit needs " + p.needs
}

// linkFlags leaves out debug information, links what has C in it statically and
// sets the version that programs of Kubernetes and containerd report: a build from a
// module knows none, and reports 0.0.0.
func linkFlags(p program, version string) string {
	flags := "-s -w"
	switch p.module {
	case kubernetesModule:
	case containerdModule:
		return flags + " -X " + containerdModule + "/version.Version=" + version
	case runcModule:
		return flags + " -linkmode=external -extldflags=-static"
	default:
		return flags
	}
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	for _, set := range []string{"gitVersion=" + version, "gitMajor=" + major, "gitMinor=" + minor, "gitTreeState=clean"} {
		flags += " -X k8s.io/component-base/version." + set
	}
	return flags
}

// ticker says every 15 seconds that what goes on, until stop is called.
func (b *builder) ticker(what string) (stop func()) {
	began := time.Now()
	tick := time.NewTicker(15 * time.Second)
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				fmt.Fprintf(b.progress, "%s, for %s\n", what, time.Since(began).Round(time.Second))
			}
		}
	}()
	return func() {
		tick.Stop()
		close(ended)
		<-done // so that nothing writes to progress any more
	}
}
