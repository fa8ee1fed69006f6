// SPDX-License-Identifier: Apache-2.0

// Package manager assembles the mode `manager`: caches, controllers, leader
// election, metrics and probes.
package manager

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	operatorsv2 "github.com/operator-framework/api/pkg/operators/v2"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
	"github.com/podconfigmap/podconfigmap-controller/controllers/status"
	"github.com/podconfigmap/podconfigmap-controller/controllers/subsystem"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/patientwatch"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
	"github.com/podconfigmap/podconfigmap-controller/internal/version"
	"github.com/podconfigmap/podconfigmap-controller/internal/wire"
)

const (
	// shutdownTimeout bounds a clean stop; the Lease is released after it.
	shutdownTimeout = 10 * time.Second
	// eventSource is the reporting controller of Events.
	eventSource = "podconfigmap-controller"
)

// Run runs the manager until the context ends, which is a clean stop and no
// error.
func Run(ctx context.Context, config *rest.Config, s *settings.Settings) error {
	mgr, err := newManager(ctx, config, s)
	if err != nil {
		return err
	}
	pods, configMaps, core, err := newStores(ctx, mgr, s)
	if err != nil {
		return err
	}
	if err := addProbes(mgr, pods, configMaps); err != nil {
		return err
	}
	board := &subsystem.Board{}
	if err := addControllers(mgr, s, pods, configMaps, core, board); err != nil {
		return err
	}
	if err := addSubsystem(mgr, s, board); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Starting", "mode", "manager", "version", version.String(),
		"watchedNamespaces", s.WatchNamespaces, "ebpfEnabled", s.EBPFEnabled, "leaderElection", s.LeaderElection)
	return mgr.Start(ctx)
}

func newManager(ctx context.Context, config *rest.Config, s *settings.Settings) (ctrl.Manager, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "podconfigmap-controller/" + version.Version
	// API Priority and Fairness is the limit; a client's own would only add to it.
	config.QPS = -1
	config.Wrap(patientwatch.New)
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), appsv1.AddToScheme(scheme), operatorsv2.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	shutdown := shutdownTimeout
	options := ctrl.Options{
		Scheme:                  scheme,
		Logger:                  klog.FromContext(ctx),
		Metrics:                 metricsserver.Options{BindAddress: s.MetricsAddr},
		HealthProbeBindAddress:  s.HealthProbeAddr,
		GracefulShutdownTimeout: &shutdown,
		Cache: cache.Options{
			SyncPeriod:        &s.ResyncPeriod,
			DefaultNamespaces: map[string]cache.Config{},
			DefaultTransform:  cache.TransformStripManagedFields(),
		},
	}
	for _, namespace := range s.WatchNamespaces {
		options.Cache.DefaultNamespaces[namespace] = cache.Config{}
	}
	if s.EBPFEnabled {
		options.Cache.ByObject = subsystem.Caches(s.PodNamespace)
	}
	if err := electLeader(&options, config, s); err != nil {
		return nil, err
	}
	mgr, err := ctrl.NewManager(config, options)
	if err != nil {
		return nil, fmt.Errorf("making the manager: %w", err)
	}
	return mgr, nil
}

// newStores makes the caches of pods and ConfigMaps, and the client that feeds
// them. Every replica keeps them warm.
func newStores(ctx context.Context, mgr ctrl.Manager, s *settings.Settings) (*observed.Pods, *observed.ConfigMaps, *corev1client.CoreV1Client, error) {
	config := rest.CopyConfig(mgr.GetConfig())
	config.ContentType, config.AcceptContentTypes = wire.ContentType, wire.ContentType+",application/json"
	core, err := corev1client.NewForConfigAndClient(config, mgr.GetHTTPClient())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("making the client of the core API: %w", err)
	}
	reader, err := observed.NewClient(mgr.GetConfig(), mgr.GetHTTPClient())
	if err != nil {
		return nil, nil, nil, err
	}
	pods, err := observed.NewPods(reader, s.WatchNamespaces, s.ResyncPeriod)
	if err != nil {
		return nil, nil, nil, err
	}
	configMaps, err := observed.NewConfigMaps(reader, s.WatchNamespaces)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := errors.Join(mgr.Add(pods), mgr.Add(configMaps)); err != nil {
		return nil, nil, nil, fmt.Errorf("adding the caches: %w", err)
	}
	// Asking for them now starts them with the other caches, before there is a leader.
	if err := startInformer(ctx, mgr, &v1alpha1.PodConfigMapConfig{}, "PodConfigMapConfig"); err != nil {
		return nil, nil, nil, err
	}
	if s.EBPFEnabled {
		if err := startInformer(ctx, mgr, &v1alpha1.EBPFNode{}, "EBPFNode"); err != nil {
			return nil, nil, nil, err
		}
	}
	return pods, configMaps, core, nil
}

// startInformer says what to do where the cluster does not know our kind.
func startInformer(ctx context.Context, mgr ctrl.Manager, of client.Object, kind string) error {
	_, err := mgr.GetCache().GetInformer(ctx, of, cache.BlockUntilSynced(false))
	switch {
	case meta.IsNoMatchError(err):
		return fmt.Errorf("the cluster has no %s kind: install config/crd first (kubectl apply -k config/crd): %w", kind, err)
	case err != nil:
		return fmt.Errorf("watching %ss: %w", kind, err)
	}
	return nil
}

func addProbes(mgr ctrl.Manager, pods *observed.Pods, configMaps *observed.ConfigMaps) error {
	ready := func(*http.Request) error {
		if !pods.HasSynced() || !configMaps.HasSynced() {
			return errors.New("the first list of pods or ConfigMaps is not complete yet")
		}
		return nil
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("caches", ready)); err != nil {
		return fmt.Errorf("adding the probes: %w", err)
	}
	return nil
}

func addControllers(mgr ctrl.Manager, s *settings.Settings, pods *observed.Pods, configMaps *observed.ConfigMaps, core *corev1client.CoreV1Client, board *subsystem.Board) error {
	book := ledger.New()
	forConfigMaps, forStatus := newMetrics(telemetry.NewFactory(metrics.Registry))
	events := mgr.GetEventRecorder(eventSource)
	configMapController := configmaps.NewReconciler(configmaps.Options{
		Client: core, Pods: pods, ConfigMaps: configMaps, Ledger: book, Events: events, Metrics: forConfigMaps,
		MaxRetries: s.MaxRetries, ResyncPeriod: s.ResyncPeriod,
	})
	if err := configMapController.SetUp(mgr, s.PodWorkers, s.ReconciliationTimeout); err != nil {
		return err
	}
	statusController := status.NewReconciler(status.Options{
		Client: mgr.GetClient(), Pods: pods, Ledger: book, Events: events, Metrics: forStatus,
		EBPFEnabled: s.EBPFEnabled, Agents: board, AgentNamespace: s.PodNamespace,
		MaxRetries: s.MaxRetries, ResyncPeriod: s.ResyncPeriod,
	})
	if err := statusController.SetUp(mgr, s.PCMCWorkers, s.ReconciliationTimeout); err != nil {
		return err
	}
	return mgr.Add(&garbageTuner{
		synced:  func() bool { return pods.HasSynced() && configMaps.HasSynced() },
		waiting: func() int { return forConfigMaps.QueueLength(telemetry.Pod) },
	})
}

// addSubsystem adds what deploys the node agents, or with the flag off removes
// them, and what reports of it to OLM, where OLM runs this operator.
func addSubsystem(mgr ctrl.Manager, s *settings.Settings, board *subsystem.Board) error {
	live, err := client.New(mgr.GetConfig(), client.Options{HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("making the client without a cache: %w", err)
	}
	if s.OperatorConditionName != "" {
		key := types.NamespacedName{Namespace: s.PodNamespace, Name: s.OperatorConditionName}
		if err := mgr.Add(&subsystem.OperatorCondition{Client: live, Key: key, Board: board}); err != nil {
			return err
		}
	}
	recorder := mgr.GetEventRecorder(eventSource)
	switch {
	case s.EBPFEnabled:
		gate := &subsystem.Gate{Client: mgr.GetClient(), Live: live, Events: recorder, Settings: s, Board: board}
		return gate.SetUp(mgr)
	case s.PodNamespace != "":
		return mgr.Add(&subsystem.Removal{Live: live, Events: recorder, Namespace: s.PodNamespace, Board: board})
	default:
		// Out of a cluster there is no place where agents could be.
		board.Set(subsystem.State{})
		return nil
	}
}
