// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/subsystem"
)

// agentPods are the labels of the node agents' pods.
var agentPods = client.MatchingLabels{"app.kubernetes.io/name": "podconfigmap-controller", "app.kubernetes.io/component": "agent"}

// tellOfAgents says what the manager will do on the user's cluster with the
// feature flag on, and notes how to take it away.
func (s *session) tellOfAgents(ctx context.Context) error {
	namespace := s.settings.PodNamespace
	s.step("The node agents (EBPF_ENABLED=true)")
	account := client.ObjectKey{Namespace: namespace, Name: subsystem.AgentName}
	err := s.client.Get(ctx, account, &corev1.ServiceAccount{})
	switch {
	case apierrors.IsNotFound(err):
		s.say("There is no ServiceAccount %s/%s, so no agent can run; it comes with:", namespace, account.Name)
		s.say("  kubectl apply -k config/default && kubectl -n %s scale deployment -l app.kubernetes.io/name=podconfigmap-controller --replicas=0", namespace)
		s.say("(or POD_NAMESPACE names the namespace where the operator is installed). Until then,")
		s.say("configs that ask for eBPF say in EBPFReady that no agent has reported.")
	case err != nil:
		return fmt.Errorf("looking for the agents' ServiceAccount: %w", err)
	case s.settings.RelatedImageAgent == "":
		s.say("RELATED_IMAGE_AGENT is not set, and a manager outside the cluster has no image of its own to")
		s.say("take instead: no agent is deployed, and configs that ask for eBPF say so in EBPFReady.")
	default:
		s.say("The manager deploys them to every node, as DaemonSet %s/%s,", namespace, subsystem.AgentName)
		s.say("image %s: root with capabilities, and host paths.", s.settings.RelatedImageAgent)
		s.say("On exit the DaemonSet goes, and with it the agents, who take their programs away.")
	}
	before, err := s.agentObjects(ctx)
	if err != nil {
		return err
	}
	s.later("removing the node agents that this manager deployed", func(ctx context.Context) error { return s.removeAgents(ctx, before) })
	return nil
}

// agentObjects are the agents' DaemonSets and reports, by UID.
func (s *session) agentObjects(ctx context.Context) (map[types.UID]client.Object, error) {
	all := map[types.UID]client.Object{}
	sets, reports := &appsv1.DaemonSetList{}, &v1alpha1.EBPFNodeList{}
	here := client.InNamespace(s.settings.PodNamespace)
	if err := s.client.List(ctx, sets, here, agentPods); err != nil {
		return nil, fmt.Errorf("listing DaemonSets: %w", err)
	}
	if err := s.client.List(ctx, reports, here); err != nil {
		return nil, fmt.Errorf("listing EBPFNodes: %w", err)
	}
	for i := range sets.Items {
		all[sets.Items[i].UID] = &sets.Items[i]
	}
	for i := range reports.Items {
		all[reports.Items[i].UID] = &reports.Items[i]
	}
	return all, nil
}

// removeAgents removes the DaemonSets that were not there before, waits until
// their pods are gone, which clean their nodes up, and removes the reports.
func (s *session) removeAgents(ctx context.Context, before map[types.UID]client.Object) error {
	now, err := s.agentObjects(ctx)
	if err != nil {
		return err
	}
	var sets, reports []client.Object
	for uid, object := range now {
		_, old := before[uid]
		_, isSet := object.(*appsv1.DaemonSet)
		switch {
		case old:
		case isSet:
			sets = append(sets, object)
		default:
			reports = append(reports, object)
		}
	}
	if err := s.deleteAll(ctx, sets); err != nil {
		return err
	}
	if len(sets) > 0 {
		if _, err := s.awaitAlone(ctx, "the agents' pods are gone", s.noAgentPods); err != nil {
			return err
		}
	}
	s.say("  removed here: %d DaemonSet(s), %d EBPFNode(s)", len(sets), len(reports))
	return s.deleteAll(ctx, reports)
}

func (s *session) noAgentPods(ctx context.Context) (bool, error) {
	pods := &corev1.PodList{}
	err := s.client.List(ctx, pods, client.InNamespace(s.settings.PodNamespace), agentPods)
	if err == nil && len(pods.Items) > 0 {
		return false, fmt.Errorf("%d are there", len(pods.Items))
	}
	return err == nil, err
}
