// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// local shows the operator on this machine: in a cluster with a real node where there
// can be one, or else on a control plane alone.
func (s *session) local(ctx context.Context) error {
	reason, err := s.noNode()
	if err != nil {
		return err
	}
	s.settings.PodNamespace = cmp.Or(s.settings.PodNamespace, operatorNamespace)
	if reason == "" {
		s.settings.PodNamespace = operatorNamespace
		return s.onNode(ctx)
	}
	s.say("No real node, so the API server alone, and pods that are pretended to run: %s", reason)
	return s.withoutNode(ctx)
}

// withoutNode shows the operator on a control plane that lives as long as the session,
// and with the feature flag on, the node agent on this machine.
func (s *session) withoutNode(ctx context.Context) error {
	s.nodeName = demoNode
	watched, err := s.prepareEBPF()
	if err != nil {
		return err
	}
	sample, err := readSample(s.samples)
	if err != nil {
		return err
	}
	environ, err := s.startPlane(ctx)
	if err != nil {
		return err
	}
	if err := s.startManager(ctx, environ); err != nil {
		return err
	}
	if err := s.apply(ctx, sample); err != nil {
		return err
	}
	if err := s.startKubelet(ctx); err != nil {
		return err
	}
	if err := s.tour(ctx, sample, s.isRunning); err != nil {
		return err
	}
	if watched != nil {
		if err := s.showEBPF(ctx, watched); err != nil {
			return err
		}
	}
	s.explore(sample)
	return nil
}

// startPlane starts the control plane and brings into it what the operator needs.
// It returns the manager's settings there.
func (s *session) startPlane(ctx context.Context) (map[string]string, error) {
	s.step("A Kubernetes control plane, only for this (KUBECONFIG is not set)")
	s.say("The first time, etcd, kube-apiserver and kube-controller-manager are built from source:")
	s.say("6 to 12 minutes on two cores. They are kept, and start in seconds from then on.")
	plane, err := controlplane.Start(ctx, controlplane.Options{ControllerManager: true, Progress: s.lines("")})
	if err != nil {
		return nil, err
	}
	s.later("stopping the control plane, and removing its data", func(context.Context) error { return plane.Stop() })
	s.kubeconfig = plane.Kubeconfig()
	if s.client, err = harness.NewClient(plane.Config()); err != nil {
		return nil, err
	}
	if _, err := s.installCRDs(ctx); err != nil {
		return nil, err
	}
	environ := map[string]string{"KUBECONFIG": s.kubeconfig}
	if !s.settings.EBPFEnabled {
		return environ, nil
	}
	environ["POD_NAMESPACE"] = s.settings.PodNamespace
	environ["RELATED_IMAGE_AGENT"] = cmp.Or(s.settings.RelatedImageAgent, demoImage)
	return environ, s.prepareAgents(ctx, plane)
}
