// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes cluster on this machine, without Docker:
// etcd, API server (RBAC, Node authorization, NodeRestriction), controller-manager,
// scheduler, and nodes with the real kubelet, containerd, runc and kube-proxy. The
// programs are built from pinned Go modules and kept in the user's cache.
//
// The control plane and each node are machines of their own as far as the kernel can
// make them so without virtualization: namespaces for network, mounts, processes,
// host name, IPC and cgroups, on a subtree of cgroup v2. Pods have real cgroups,
// real networks (IPv4 and IPv6, routed between nodes), and a BPF file system on each
// node. Services have names, by CoreDNS. What machines share is the kernel and the
// host's /usr and /dev. There are no limits of resources (the runtime drops them).
//
//	c, err := cluster.Start(ctx, cluster.Options{Nodes: 2, Progress: os.Stderr})
//	defer c.Stop()
//	client, err := harness.NewClient(c.Config())
//
// It needs root, cgroup v2 mounted somewhere below /sys/fs/cgroup, Linux 5.14, the
// programs mount and nft, and for the first build what runc needs (a C compiler,
// pkg-config, libseccomp-dev).
//
// Nothing is left of a cluster when it stops, or when the process that started it
// ends, however that happens: see reserve.go. Several clusters can run at a time.
//
// Importing this package is enough to be started again as a machine's first process:
// an init function recognizes it. The host's own network and cgroups are not touched.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/pki"
)

// Options say what Start starts.
type Options struct {
	// Nodes is how many there are: node-1, node-2, … Three if 0; at most 200.
	Nodes int
	// Images are tars of OCI layouts that every node gets, as bin/image makes them.
	Images []string
	// Logs is a folder for the logs of all programs and pods, which stays. If empty,
	// they go with the cluster.
	Logs string
	// APIServerFlags come after those that Start gives, such as
	// "--audit-policy-file=…".
	APIServerFlags []string
	// Progress gets a line for each step. May be nil.
	Progress io.Writer
}

// Cluster is a running cluster. Its methods may be called from several goroutines,
// Stop after all others.
type Cluster struct {
	options   Options
	place     *place
	logs      string
	programs  programs
	authority *pki.Authority
	address   string // of the API server, for the host
	config    *rest.Config
	clients   kubernetes.Interface

	plane    *machine
	fabric   *fabric
	gateways []*gateway
	nodes    []*Node
	kwok     *Kwok

	virtualMu sync.Mutex // guards virtual
	virtual   []*Node
}

// programs are the folders of the machines' programs.
type programs struct{ kubernetes, runtime, dns, own string }

// Start builds what is not built yet, starts a cluster and waits until all nodes are
// ready. ctx limits the start only: a cluster runs until Stop, or until this process
// ends. When Start fails it leaves nothing but the logs, and its error has the last
// lines of the log of what failed.
//
// The working folder must be in the repository.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Nodes < 0 || o.Nodes > 200 {
		return nil, fmt.Errorf("starting a cluster of %d nodes: give 1 to 200", o.Nodes)
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("starting a cluster: it makes namespaces, mounts and cgroups; run this as root")
	}
	c := &Cluster{options: o}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	began := time.Now()
	if err := c.prepare(ctx); err != nil {
		return err
	}
	c.say("programs and images are there after %s", since(began))
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	if err := c.startNodes(ctx); err != nil {
		return err
	}
	c.say("%d nodes ready, %s after the start", len(c.nodes), since(began))
	return nil
}

// prepare builds programs and images, and takes a place for the cluster.
func (c *Cluster) prepare(ctx context.Context) error {
	var err error
	if c.programs.kubernetes, err = controlplane.Build(ctx, c.options.Progress, controlplane.Scheduler, controlplane.Kubelet, controlplane.Proxy); err != nil {
		return err
	}
	if c.programs.runtime, err = controlplane.BuildRuntime(ctx, c.options.Progress); err != nil {
		return err
	}
	if c.programs.dns, err = controlplane.BuildDNS(ctx, c.options.Progress); err != nil {
		return err
	}
	if c.place, err = reserve(); err != nil {
		return err
	}
	if c.logs, err = filepath.Abs(c.options.Logs); err != nil {
		return err
	}
	if c.options.Logs == "" {
		c.logs = filepath.Join(c.place.dir, "logs")
	}
	c.programs.own = filepath.Join(c.place.dir, "bin")
	if err := buildOwn(ctx, c.programs.own); err != nil {
		return err
	}
	if err := c.buildWorkload(ctx); err != nil {
		return err
	}
	if c.authority, err = pki.NewAuthority(clusterName); err != nil {
		return fmt.Errorf("making the cluster's authority: %w", err)
	}
	c.address, err = controlplane.FreeAddress()
	return err
}

// newMachine makes a machine. Its /var outlives it, so that it can be started again.
func (c *Cluster) newMachine(ctx context.Context, name string, node bool) (*machine, error) {
	dir := filepath.Join(c.place.dir, "machines", name)
	config, err := c.configOf(name)
	if err != nil {
		return nil, err
	}
	s := spec{Name: name, Root: filepath.Join(dir, "root"), Node: node, Folders: map[string]folder{
		"/var":            {Source: filepath.Join(dir, "var")},
		"/var/log":        {Source: filepath.Join(c.logs, name)},
		"/etc/cluster":    {Source: config, ReadOnly: true},
		"/opt/cluster":    {Source: c.programs.own, ReadOnly: true},
		"/opt/dns":        {Source: c.programs.dns, ReadOnly: true},
		"/opt/images":     {Source: filepath.Join(c.place.dir, "images"), ReadOnly: true},
		"/opt/kubernetes": {Source: c.programs.kubernetes, ReadOnly: true},
		"/opt/runtime":    {Source: c.programs.runtime, ReadOnly: true},
	}}
	cgroup := filepath.Join(c.place.cgroup, name)
	for _, folder := range []string{s.Root, filepath.Join(dir, "var", "log"), filepath.Join(c.logs, name), filepath.Join(c.place.dir, "images"), cgroup} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
	}
	return startMachine(ctx, s, cgroup, filepath.Join(c.logs, name), filepath.Join(dir, "spec.json"))
}

// configOf is the folder of a machine's configuration.
func (c *Cluster) configOf(name string) (string, error) {
	folder := filepath.Join(c.place.dir, "machines", name, "config")
	return folder, os.MkdirAll(folder, 0o755)
}

// startNodes starts all nodes at once.
func (c *Cluster) startNodes(ctx context.Context) error {
	var all errgroup.Group
	for i := range c.options.Nodes {
		c.nodes = append(c.nodes, &Node{cluster: c, Name: fmt.Sprintf("node-%d", i+1), index: i + 1})
	}
	for _, n := range c.nodes {
		all.Go(func() error {
			if err := n.configure(); err != nil {
				return fmt.Errorf("configuring %s: %w", n.Name, err)
			}
			return n.Start(ctx)
		})
	}
	return all.Wait()
}

// Stop ends the cluster and removes all that belonged to it, but for logs that were
// given a folder. The error says what could not be removed. It may be called again.
func (c *Cluster) Stop() error {
	var errs []error
	if c.kwok != nil {
		errs = append(errs, c.kwok.Stop())
	}
	c.virtualMu.Lock()
	virtual := c.virtual
	c.virtualMu.Unlock()
	for _, n := range append(c.Nodes(), virtual...) {
		errs = append(errs, n.Kill())
	}
	for _, g := range c.gateways {
		errs = append(errs, g.close())
	}
	c.gateways = nil
	if c.plane != nil {
		errs = append(errs, c.plane.kill())
		c.plane = nil
	}
	if c.fabric != nil {
		errs = append(errs, c.fabric.close())
		c.fabric = nil
	}
	if c.place != nil {
		errs = append(errs, c.place.release())
		c.place = nil
	}
	return errors.Join(errs...)
}

// Config returns the configuration of a client in the group system:masters, without a
// limit of its own on requests. Any other user is an Impersonate away.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Clients are clients of an administrator, such as for a pod's log.
func (c *Cluster) Clients() kubernetes.Interface { return c.clients }

// Kubeconfig returns the path of a kubeconfig for the user of Config.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.place.dir, "kubeconfig") }

// Logs is the folder of the logs: a folder for each machine, with one file for each
// program, and below pods/ those of its pods.
func (c *Cluster) Logs() string { return c.logs }

// Nodes are all nodes.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Node is the node of that name, or nil.
func (c *Cluster) Node(name string) *Node {
	c.virtualMu.Lock()
	defer c.virtualMu.Unlock()
	for _, n := range append(c.Nodes(), c.virtual...) {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Dial connects from a machine that is no node, next to the API server: to a pod, a
// node, or a port of the control plane. address is an IP address and a port.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return c.fabric.dial(ctx, network, address)
}

// Load gives every node the image of a tar.
func (c *Cluster) Load(ctx context.Context, tar string) error {
	name, err := c.keepImage(tar)
	if err != nil {
		return err
	}
	var all errgroup.Group
	for _, n := range c.nodes {
		all.Go(func() error { return n.importImage(ctx, name) })
	}
	return all.Wait()
}

func (c *Cluster) say(format string, args ...any) {
	fmt.Fprintf(c.options.Progress, format+"\n", args...)
}

// root is the repository's.
func root() (string, error) { return harness.Root() }
