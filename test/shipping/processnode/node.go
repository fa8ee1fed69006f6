// SPDX-License-Identifier: Apache-2.0

// Package processnode is a Kubernetes node whose containers are plain processes of
// this machine. It takes every pod of the cluster, runs those whose images it has,
// and reports their status, so that tests can go through what Deployments,
// DaemonSets and the scorecard make, with the pods' own environment and the tokens
// of their ServiceAccounts.
//
// An image is one static program, and what other files it has. Its container is a
// chroot with these and the pod's volumes (ConfigMaps, empty directories, projected tokens), a user
// without rights, and a loopback address of the pod's own; Services are reached by a
// proxy for HTTP. A pod with host paths,
// such as a node agent's, runs outside of a chroot, as root. There are no cgroups,
// no namespaces and no limits: for these, tests need a real node.
//
// It needs root, for the chroots.
package processnode

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	period     = 200 * time.Millisecond
	beatPeriod = 10 * time.Second
	// user is whom images without root run as.
	user = 65532
)

// Image is what an image would hold.
type Image struct {
	// Program is a static program on this machine, Path where the image has it. Both
	// are empty for an image without a program of its own, such as a bundle's.
	Program, Path string
	// Root is a folder with the image's other files, if it has any.
	Root string
	// Env gives variables besides the container's own, such as the addresses to
	// listen on: all pods share the machine's network. May be nil.
	Env func(pod *corev1.Pod, ip string) map[string]string
}

// Options say what Start starts.
type Options struct {
	// Name is the node's.
	Name string
	// Config is an administrator's.
	Config *rest.Config
	// Images are those that the node has, by their references. Pods with others
	// stay Pending.
	Images map[string]Image
	// Hold keeps a pod from being started, for as long as it says so. May be nil.
	Hold func(*corev1.Pod) bool
}

// Node is a running node. Its methods may be called from several goroutines.
type Node struct {
	options Options
	dir     string
	client  client.Client
	tokens  kubernetes.Interface
	server  *url.URL
	logs    *httptest.Server
	gateway *gateway
	lease   *coordinationv1.Lease
	subnet  string // of the pods' addresses, such as 127.12.34.
	cancel  context.CancelFunc
	done    chan struct{}

	mu       sync.Mutex
	pods     map[types.UID]*pod
	count    int
	failures []error
}

// Start registers the node and serves pods until Stop.
func Start(ctx context.Context, c client.Client, o Options) (*Node, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("starting a node of processes: it runs them in chroots; run this as root")
	}
	n := &Node{options: o, client: c, pods: map[types.UID]*pod{}, done: make(chan struct{})}
	var err error
	if n.server, err = url.Parse(o.Config.Host); err != nil {
		return nil, fmt.Errorf("reading the API server's address: %w", err)
	}
	if n.tokens, err = kubernetes.NewForConfig(o.Config); err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	if n.dir, err = os.MkdirTemp("", "processnode-"); err != nil {
		return nil, fmt.Errorf("making the node's folder: %w", err)
	}
	n.subnet = fmt.Sprintf("127.%d.%d.", 1+mathrand.IntN(254), mathrand.IntN(256))
	if n.gateway, err = startGateway(c); err != nil {
		return nil, errors.Join(err, os.RemoveAll(n.dir))
	}
	n.logs = httptest.NewTLSServer(n.logHandler())
	if err := n.register(ctx); err != nil {
		n.logs.Close()
		return nil, errors.Join(err, n.gateway.server.Close(), os.RemoveAll(n.dir))
	}
	var serving context.Context
	serving, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(n.done)
		n.serve(serving)
	}()
	return n, nil
}

// register makes the node, which is ready, and its Lease, which keeps it so.
func (n *Node) register(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.options.Name, Labels: map[string]string{
		corev1.LabelHostname: n.options.Name, corev1.LabelOSStable: "linux",
	}}}
	if err := n.client.Create(ctx, node); err != nil {
		return fmt.Errorf("making the node: %w", err)
	}
	_, port, err := net.SplitHostPort(n.logs.Listener.Addr().String())
	if err != nil {
		return fmt.Errorf("reading the address of the node's logs: %w", err)
	}
	before := node.DeepCopy()
	now := metav1.Now()
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "ProcessNode", Message: "containers are processes", LastHeartbeatTime: now, LastTransitionTime: now}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	node.Status.Capacity = corev1.ResourceList{
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("16Gi"),
	}
	node.Status.Allocatable = node.Status.Capacity
	if _, err := fmt.Sscan(port, &node.Status.DaemonEndpoints.KubeletEndpoint.Port); err != nil {
		return fmt.Errorf("reading the port of the node's logs: %w", err)
	}
	if err := n.client.Status().Patch(ctx, node, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("making the node ready: %w", err)
	}
	holder, seconds := n.options.Name, int32(40)
	n.lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.options.Name, Namespace: corev1.NamespaceNodeLease}}
	n.lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: time.Now()}}
	if err := n.client.Create(ctx, n.lease); err != nil {
		return fmt.Errorf("making the node's Lease: %w", err)
	}
	return nil
}

func (n *Node) serve(ctx context.Context) {
	look, beat := time.NewTicker(period), time.NewTicker(beatPeriod)
	defer look.Stop()
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-beat.C:
			n.lease.Spec.RenewTime = &metav1.MicroTime{Time: now}
			n.note(n.client.Update(ctx, n.lease))
		case <-look.C:
			n.note(n.look(ctx))
		}
	}
}

// note keeps an error for Stop, unless somebody else was only faster.
func (n *Node) note(err error) {
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || errors.Is(err, context.Canceled) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failures = append(n.failures, err)
}

// look compares the cluster's pods with those that run here.
func (n *Node) look(ctx context.Context) error {
	list := &corev1.PodList{}
	if err := n.client.List(ctx, list); err != nil {
		return err
	}
	there := map[types.UID]bool{}
	for i := range list.Items {
		p := &list.Items[i]
		there[p.UID] = true
		if err := n.take(ctx, p); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("serving pod %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid, p := range n.pods {
		if !there[uid] {
			p.latest.Store(nil) // deleted by force
		}
	}
	return nil
}

func (n *Node) take(ctx context.Context, p *corev1.Pod) error {
	n.mu.Lock()
	running := n.pods[p.UID]
	n.mu.Unlock()
	finished := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	switch {
	case running != nil:
		running.latest.Store(p)
	case p.DeletionTimestamp != nil:
		return n.client.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})
	case p.Spec.NodeName == "":
		return n.client.SubResource("binding").Create(ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: n.options.Name}})
	case n.options.Hold != nil && n.options.Hold(p):
	case p.Spec.NodeName == n.options.Name && !finished && n.has(p):
		n.start(ctx, p)
	}
	return nil
}

// has tells whether the node has all of a pod's images.
func (n *Node) has(p *corev1.Pod) bool {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if _, ok := n.options.Images[c.Image]; !ok {
			return false
		}
	}
	return true
}

func (n *Node) start(ctx context.Context, p *corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.count++
	running := &pod{node: n, uid: p.UID, ip: fmt.Sprintf("%s%d", n.subnet, 1+n.count%254), dir: filepath.Join(n.dir, string(p.UID)), ended: make(chan struct{})}
	running.latest.Store(p)
	n.pods[p.UID] = running
	go func() {
		defer close(running.ended)
		n.note(running.serve(ctx))
		n.mu.Lock()
		delete(n.pods, p.UID)
		n.mu.Unlock()
	}()
}

// Running names the pods that have processes, as namespace/name.
func (n *Node) Running() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for p := range maps.Values(n.pods) {
		if latest := p.latest.Load(); latest != nil {
			names = append(names, latest.Namespace+"/"+latest.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Stop ends all processes. The error is what went wrong since the start.
func (n *Node) Stop() error {
	n.cancel()
	<-n.done
	n.mu.Lock()
	all := slices.Collect(maps.Values(n.pods))
	n.mu.Unlock()
	for _, p := range all {
		<-p.ended
	}
	n.logs.Close()
	return errors.Join(append(n.failures, n.gateway.server.Close(), os.RemoveAll(n.dir))...)
}
