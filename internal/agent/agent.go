// SPDX-License-Identifier: Apache-2.0

// Package agent assembles the mode `agent`: one process a node, which brings
// eBPF programs to the node's pods (controllers/nodeagent), and leaves them in
// the kernel when it ends.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/nodeagent"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/patientwatch"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
	"github.com/podconfigmap/podconfigmap-controller/internal/version"
)

const (
	// shutdownTimeout bounds a clean stop, without what follows it.
	shutdownTimeout = 10 * time.Second
	// eventSource is the reporting controller of Events.
	eventSource = "podconfigmap-controller-agent"

	protobuf = "application/vnd.kubernetes.protobuf"
)

// Run serves the node's pods until the context ends, which is a clean stop and
// no error. What it attached stays in the kernel for the next agent, unless
// there will be none.
func Run(ctx context.Context, config *rest.Config, s *settings.Settings) error {
	c, err := newClients(config)
	if err != nil {
		return err
	}
	size := slotCount(ctx, c, s)
	n, err := openNode(ctx, s, size.slots)
	if err != nil {
		return err
	}
	mgr, err := assemble(ctx, c, s, n)
	for _, watch := range n.improve(c, s, size) {
		if err == nil {
			err = mgr.Add(watch)
		}
	}
	if err != nil {
		return errors.Join(err, n.close())
	}
	klog.FromContext(ctx).Info("Starting", "mode", "agent", "version", version.String(), "node", s.NodeName,
		"watchedNamespaces", s.WatchNamespaces, "pins", s.EffectiveBPFFSRoot(), "kernel", n.facts.KernelVersion)
	err = mgr.Start(ctx)
	anew := errors.Is(err, errAnew)
	if anew {
		err = nil
	}
	err = errors.Join(err, n.close())
	switch {
	case ctx.Err() != nil:
		return errors.Join(err, sayFarewell(ctx, c, s))
	case anew && err == nil:
		return beginAnew()
	default:
		return err // not told to stop: the next agent goes on
	}
}

// clients are the agent's ways to the API server.
type clients struct {
	config     *rest.Config
	scheme     *runtime.Scheme
	objects    client.Client // without a cache
	kubernetes kubernetes.Interface
	core       rest.Interface
	configs    rest.Interface
}

func newClients(config *rest.Config) (*clients, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "podconfigmap-controller-agent/" + version.Version
	// API Priority and Fairness is the limit; a client's own would only add to it.
	config.QPS = -1
	config.Wrap(patientwatch.New)
	c := &clients{config: config, scheme: runtime.NewScheme()}
	if err := errors.Join(corev1.AddToScheme(c.scheme), v1alpha1.AddToScheme(c.scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	metav1.AddToGroupVersion(c.scheme, v1alpha1.GroupVersion)
	var err error
	if c.objects, err = client.New(config, client.Options{Scheme: c.scheme}); err != nil {
		return nil, fmt.Errorf("making the client of objects: %w", err)
	}
	ofCore := rest.CopyConfig(config)
	ofCore.ContentType, ofCore.AcceptContentTypes = protobuf, protobuf+",application/json"
	set, err := kubernetes.NewForConfig(ofCore)
	if err != nil {
		return nil, fmt.Errorf("making the client of the core API: %w", err)
	}
	c.kubernetes, c.core = set, set.CoreV1().RESTClient()
	ofConfigs := rest.CopyConfig(config)
	ofConfigs.APIPath, ofConfigs.GroupVersion = "/apis", &v1alpha1.GroupVersion
	ofConfigs.NegotiatedSerializer = serializer.NewCodecFactory(c.scheme).WithoutConversion()
	if c.configs, err = rest.RESTClientFor(ofConfigs); err != nil {
		return nil, fmt.Errorf("making the client of PodConfigMapConfigs: %w", err)
	}
	return c, nil
}

// assemble puts the parts together.
func assemble(ctx context.Context, c *clients, s *settings.Settings, n *node) (manager.Manager, error) {
	shutdown := shutdownTimeout
	mgr, err := ctrl.NewManager(c.config, ctrl.Options{
		Scheme: c.scheme, Logger: klog.FromContext(ctx),
		Metrics:                 metricsserver.Options{BindAddress: s.MetricsAddr},
		HealthProbeBindAddress:  s.HealthProbeAddr,
		GracefulShutdownTimeout: &shutdown,
	})
	if err != nil {
		return nil, fmt.Errorf("making the manager: %w", err)
	}
	events := mgr.GetEventRecorder(eventSource)
	var reconciler *nodeagent.Reconciler
	writer := nodeagent.NewWriter(nodeagent.Writer{
		Client: c.objects, Namespace: s.PodNamespace, Node: s.NodeName, Events: events,
		Report: func() *v1alpha1.EBPFNodeStatus {
			if !reconciler.CaughtUp() {
				return nil
			}
			return reconciler.Report(&n.facts)
		},
	})
	options := nodeagent.Options{
		Events: events, Metrics: nodeagent.NewMetrics(telemetry.NewFactory(metrics.Registry), n.supports()),
		MaxRetries: s.MaxRetries, ResyncPeriod: s.ResyncPeriod, Changed: writer.Changed,
	}
	n.serve(&options)
	reconciler = nodeagent.NewReconciler(options)
	watches, err := nodeagent.NewWatches(nodeagent.Sources{
		Core: c.core, Configs: c.configs, Node: s.NodeName, Namespaces: s.WatchNamespaces, Resync: s.ResyncPeriod,
	}, reconciler)
	if err != nil {
		return nil, err
	}
	return mgr, errors.Join(mgr.Add(watches), mgr.Add(writer), mgr.Add(n.work(reconciler, watches)), addProbes(mgr, reconciler))
}

// work runs the reconciler, and has it told of cgroups.
func (n *node) work(r *nodeagent.Reconciler, watches *nodeagent.Watches) manager.Runnable {
	return manager.RunnableFunc(func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		cgroups := make(chan error, 1)
		go func() {
			cgroups <- n.watchCgroups(ctx, r)
			cancel()
		}()
		err := r.Run(ctx, func(ctx context.Context) error {
			if err := watches.WaitForFirst(ctx); err != nil || n.tree == nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-n.tree.Scanned():
				return nil
			}
		})
		cancel()
		return errors.Join(err, <-cgroups)
	})
}

func (n *node) watchCgroups(ctx context.Context, r *nodeagent.Reconciler) error {
	if n.tree == nil {
		<-ctx.Done()
		return nil
	}
	return n.tree.Run(ctx, r.CgroupChanged)
}

func addProbes(mgr manager.Manager, r *nodeagent.Reconciler) error {
	ready := func(*http.Request) error {
		if !r.CaughtUp() {
			return errors.New("not every pod of the node has been looked at yet")
		}
		return nil
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("pods", ready)); err != nil {
		return fmt.Errorf("adding the probes: %w", err)
	}
	return nil
}

func shorten(text string, limit int) string { return eventnote.Shorten(text, limit) }
