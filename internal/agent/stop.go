// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

const (
	// defaultDaemonSet is the agents' DaemonSet, should the own pod not say which.
	defaultDaemonSet = "podconfigmap-controller-agent"
	// farewellTime bounds all that an agent asks and tells after it was stopped.
	farewellTime = 8 * time.Second
)

// leaving tells whether the agent ends for good, so that nothing would look
// after its pins: its DaemonSet is being deleted, is gone, cleans up, may not be
// read any more, or wants no pod on this node any more. An API server that does
// not answer is no reason to drop a firewall.
func leaving(ctx context.Context, c *clients, s *settings.Settings) (leaves bool, why string) {
	name := ownDaemonSet(ctx, c, s)
	set, err := c.kubernetes.AppsV1().DaemonSets(s.PodNamespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, fmt.Sprintf("DaemonSet %q is gone", name)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return true, fmt.Sprintf("DaemonSet %q may not be read any more", name)
	case err != nil:
		return false, fmt.Sprintf("DaemonSet %q could not be read: %v", name, err)
	case set.DeletionTimestamp != nil:
		return true, fmt.Sprintf("DaemonSet %q is being deleted", name)
	case set.Annotations[v1alpha1.AnnotationCleanupSince] != "":
		return true, fmt.Sprintf("the agents of DaemonSet %q clean up", name)
	}
	node, err := c.kubernetes.CoreV1().Nodes().Get(ctx, s.NodeName, metav1.GetOptions{})
	switch {
	case err != nil:
		return false, fmt.Sprintf("DaemonSet %q is there, and node %q could not be read: %v", name, s.NodeName, err)
	case !serves(ctx, set, node):
		return true, fmt.Sprintf("DaemonSet %q serves node %q no more", name, s.NodeName)
	default:
		return false, fmt.Sprintf("DaemonSet %q is there", name)
	}
}

// serves tells whether a DaemonSet wants a pod on a node: its node selector and
// affinity match, and every taint that would drive the pod away is tolerated.
// What cannot be understood counts as served: a firewall is not dropped for that.
func serves(ctx context.Context, set *appsv1.DaemonSet, node *corev1.Node) bool {
	spec := &set.Spec.Template.Spec
	matches, err := nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: *spec}).Match(node)
	if err != nil {
		return true
	}
	_, evicted := scheduling.FindMatchingUntoleratedTaint(klog.FromContext(ctx), node.Spec.Taints, slices.Concat(whatDaemonSetsTolerate, spec.Tolerations),
		func(t *corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute }, false)
	return matches && !evicted
}

// whatDaemonSetsTolerate is added to the pods of every DaemonSet, so nodes that
// are in trouble keep them. Source: Kubernetes' documentation of DaemonSets.
var whatDaemonSetsTolerate = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
}

// ownDaemonSet is the name of the DaemonSet that owns the agent's pod.
func ownDaemonSet(ctx context.Context, c *clients, s *settings.Settings) string {
	if s.PodName == "" {
		return defaultDaemonSet
	}
	pod, err := c.kubernetes.CoreV1().Pods(s.PodNamespace).Get(ctx, s.PodName, metav1.GetOptions{})
	if err != nil {
		return defaultDaemonSet
	}
	if owner := metav1.GetControllerOf(pod); owner != nil && owner.Kind == "DaemonSet" {
		return owner.Name
	}
	return defaultDaemonSet
}

// sayFarewell leaves what is pinned for the next agent, or takes it away where
// there will be none. The context is that of the agent and has ended.
func sayFarewell(ctx context.Context, c *clients, s *settings.Settings) error {
	logger := klog.FromContext(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTime)
	defer cancel()
	leaves, why := leaving(ctx, c, s)
	if !leaves {
		logger.Info("Stopped; programs and counters stay in the kernel", "because", why)
		return nil
	}
	if err := removeAll(s.EffectiveBPFFSRoot()); err != nil {
		return err
	}
	logger.Info("Stopped; nothing of the agent is left in the kernel", "because", why)
	if err := reportDetached(ctx, c, s); err != nil {
		logging.Warning(logger, "That the node is clean could not be reported", "err", err)
	}
	return nil
}
