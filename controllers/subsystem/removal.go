// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// +kubebuilder:rbac:groups="",resources=pods,verbs=list,namespace=system
// +kubebuilder:rbac:groups=podconfig.example.com,resources=ebpfnodes,verbs=list;watch;delete,namespace=system

const (
	// cleanupLimit is how long nodes have to report that they are clean.
	cleanupLimit = 60 * time.Second
	// departureLimit is how long agents' pods may take to end, after which what
	// their nodes reported is removed all the same.
	departureLimit = 45 * time.Second
	// removalPeriod is how often a removal looks how far it is.
	removalPeriod = time.Second
	// namedNodes is how many nodes a message names.
	namedNodes = 10
)

// Removal takes the agents away while the feature flag is off: they clean up,
// then their DaemonSets go, then what they reported. It looks once and ends where
// there is nothing. It is a manager's Runnable, and the leader's alone.
type Removal struct {
	// Live reads and writes without a cache.
	Live      client.Client
	Events    events.EventRecorder
	Namespace string
	Board     *Board
}

// NeedLeaderElection is true: one is enough.
func (r *Removal) NeedLeaderElection() bool { return true }

// Start removes what there is, and tries again for as long as it takes.
func (r *Removal) Start(ctx context.Context) error {
	work := &removal{live: r.Live, events: r.Events, namespace: r.Namespace, names: []string{AgentName, LegacyName}, reports: true}
	fresh := wait.Backoff{Duration: removalPeriod, Factor: 2, Steps: 7, Jitter: 0.1}
	backoff := fresh
	for {
		left, err := work.step(ctx)
		pause := removalPeriod
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !apierrors.IsConflict(err):
			pause = backoff.Step()
			logging.Warning(klog.FromContext(ctx), "Could not look for node agents to remove", "err", err, "retryIn", pause)
		case err == nil && !left:
			r.Board.Set(State{})
			return nil
		case err == nil:
			backoff = fresh
			r.Board.Set(State{Busy: "node agents are being removed", BusyUntil: work.since.Add(busyLimit)})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// removal is the removal of some DaemonSets. What a next leader has to know of it
// stands in their annotations.
type removal struct {
	live      client.Client
	events    events.EventRecorder
	namespace string
	names     []string
	// reports tells that every EBPFNode goes with them.
	reports bool

	// since is when the cleanup began, gone when the last DaemonSet had gone.
	since, gone time.Time
}

// step does what can be done now, and tells whether something is left.
func (r *removal) step(ctx context.Context) (left bool, err error) {
	sets, err := r.sets(ctx)
	if err != nil {
		return false, err
	}
	if len(sets) == 0 {
		return r.tidy(ctx)
	}
	if err := r.cleanAll(ctx, sets); err != nil {
		return true, err
	}
	absent, err := r.absent(ctx, sets)
	if err != nil {
		return true, err
	}
	if len(absent) > 0 && time.Since(r.since) < cleanupLimit {
		return true, nil
	}
	for _, set := range sets {
		if err := r.delete(ctx, set, absent); err != nil {
			return true, err
		}
	}
	return true, nil
}

// sets are the DaemonSets that are there and ours.
func (r *removal) sets(ctx context.Context) ([]*appsv1.DaemonSet, error) {
	var all []*appsv1.DaemonSet
	for _, name := range r.names {
		set := &appsv1.DaemonSet{}
		err := r.live.Get(ctx, types.NamespacedName{Namespace: r.namespace, Name: name}, set)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("looking for DaemonSet %q: %w", name, err)
		case set.Annotations[annotationApplied] == "" && set.Labels[labelComponent] != component:
		default:
			all = append(all, set)
		}
	}
	return all, nil
}

// cleanAll has all agents clean up that do not yet, and notes since when the last
// of them do.
func (r *removal) cleanAll(ctx context.Context, sets []*appsv1.DaemonSet) error {
	r.since = time.Time{}
	for _, set := range sets {
		if set.DeletionTimestamp == nil && !isCleaning(set) {
			if err := r.clean(ctx, set); err != nil {
				return err
			}
		}
		if since := at(set, annotationCleanupSince); since.After(r.since) {
			r.since = since
		}
	}
	return nil
}

// clean has the agents of a DaemonSet detach everything.
func (r *removal) clean(ctx context.Context, set *appsv1.DaemonSet) error {
	next := cleaning(set)
	next.Annotations = merged(set.Annotations, map[string]string{annotationCleanupSince: time.Now().UTC().Format(time.RFC3339)})
	if err := r.live.Update(ctx, next, client.FieldOwner(observed.FieldManager)); err != nil {
		return fmt.Errorf("having the agents of DaemonSet %q clean up: %w", set.Name, err)
	}
	next.DeepCopyInto(set)
	klog.FromContext(ctx).Info("The node agents clean up", "daemonSet", set.Namespace+"/"+set.Name, "limit", cleanupLimit)
	r.events.Eventf(set, nil, corev1.EventTypeNormal, reasonCleaning, action,
		"the node agents are being removed: they detach everything and report it, within %s", cleanupLimit)
	return nil
}

// absent names the nodes that have not reported that they are clean: those with
// an agent, and those that reported before.
func (r *removal) absent(ctx context.Context, sets []*appsv1.DaemonSet) ([]string, error) {
	pods := &corev1.PodList{}
	if err := r.live.List(ctx, pods, client.InNamespace(r.namespace), client.MatchingLabels(agentLabels())); err != nil {
		return nil, fmt.Errorf("listing the agents' pods: %w", err)
	}
	nodes, err := r.nodes(ctx)
	if err != nil {
		return nil, err
	}
	clean, asked := map[string]bool{}, map[string]bool{}
	for i := range nodes {
		clean[nodes[i].Name] = meta.IsStatusConditionTrue(nodes[i].Status.Conditions, v1alpha1.ConditionDetached)
		asked[nodes[i].Name] = r.reports
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		for _, set := range sets {
			if pod.Spec.NodeName != "" && ownedBy(pod, set) {
				asked[pod.Spec.NodeName] = true
			}
		}
	}
	maps.DeleteFunc(asked, func(node string, is bool) bool { return !is || clean[node] })
	return slices.Sorted(maps.Keys(asked)), nil
}

func ownedBy(pod *corev1.Pod, set *appsv1.DaemonSet) bool {
	for _, o := range pod.OwnerReferences {
		if o.UID == set.UID {
			return true
		}
	}
	return false
}

// nodes are all EBPFNodes; none where the cluster does not know the kind.
func (r *removal) nodes(ctx context.Context) ([]v1alpha1.EBPFNode, error) {
	list := &v1alpha1.EBPFNodeList{}
	err := r.live.List(ctx, list, client.InNamespace(r.namespace))
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing EBPFNodes: %w", err)
	}
	return list.Items, nil
}

func (r *removal) delete(ctx context.Context, set *appsv1.DaemonSet, absent []string) error {
	if set.DeletionTimestamp != nil {
		return nil
	}
	logger := klog.FromContext(ctx).WithValues("daemonSet", set.Namespace+"/"+set.Name)
	if len(absent) > 0 {
		logging.Warning(logger, "Nodes did not report that they are clean; removing the agents all the same", "nodes", absent, "waited", cleanupLimit)
		r.events.Eventf(set, nil, corev1.EventTypeWarning, reasonAbsent, action, "%s", eventnote.Shorten(absentMessage(set.Namespace, absent), eventnote.MaxBytes))
	}
	err := r.live.Delete(ctx, set, client.Preconditions{UID: &set.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting DaemonSet %q: %w", set.Name, err)
	}
	logger.Info("Removed the node agents")
	r.events.Eventf(set, nil, corev1.EventTypeNormal, reasonRemoved, action, "removed the node agents")
	return nil
}

func absentMessage(namespace string, absent []string) string {
	named, more := absent, ""
	if len(absent) > namedNodes {
		named, more = absent[:namedNodes], fmt.Sprintf(" and %d more", len(absent)-namedNodes)
	}
	return fmt.Sprintf("within %s these nodes did not report that their programs are detached: %s%s. "+
		"An agent that ends later cleans up by itself, and a reboot does; else remove /sys/fs/bpf/%s/%s on the node",
		cleanupLimit, strings.Join(named, ", "), more, pinFolder, namespace)
}

// tidy removes what the nodes reported, when no agent is left that could report
// again.
func (r *removal) tidy(ctx context.Context) (left bool, err error) {
	if !r.reports {
		return false, nil
	}
	nodes, err := r.nodes(ctx)
	if err != nil || len(nodes) == 0 {
		return false, err
	}
	if r.gone.IsZero() {
		r.gone = time.Now()
	}
	r.since = r.gone
	pods := &corev1.PodList{}
	if err := r.live.List(ctx, pods, client.InNamespace(r.namespace), client.MatchingLabels(agentLabels())); err != nil {
		return true, fmt.Errorf("listing the agents' pods: %w", err)
	}
	if len(pods.Items) > 0 && time.Since(r.gone) < departureLimit {
		return true, nil
	}
	for i := range nodes {
		if err := r.live.Delete(ctx, &nodes[i]); client.IgnoreNotFound(err) != nil {
			return true, fmt.Errorf("deleting EBPFNode %q: %w", nodes[i].Name, err)
		}
	}
	klog.FromContext(ctx).Info("Removed what the node agents had reported", "nodes", len(nodes))
	return true, nil
}
