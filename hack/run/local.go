// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// local shows the operator on a control plane that lives as long as the session.
func (s *session) local(ctx context.Context) error {
	s.step("A Kubernetes control plane, only for this (KUBECONFIG is not set)")
	s.say("The first time, etcd, kube-apiserver and kube-controller-manager are built from source:")
	s.say("6 to 12 minutes on two cores. They are kept, and start in seconds from then on.")
	plane, err := controlplane.Start(ctx, controlplane.Options{ControllerManager: true, Progress: s.lines("")})
	if err != nil {
		return err
	}
	s.later("stopping the control plane, and removing its data", func(context.Context) error { return plane.Stop() })
	s.kubeconfig = plane.Kubeconfig()
	if s.client, err = harness.NewClient(plane.Config()); err != nil {
		return err
	}
	s.step("The kind PodConfigMapConfig")
	if _, err := s.installCRD(ctx); err != nil {
		return err
	}
	if err := s.startManager(ctx, map[string]string{"KUBECONFIG": s.kubeconfig}); err != nil {
		return err
	}
	sample, err := readSample(s.samples)
	if err != nil {
		return err
	}
	if err := s.apply(ctx, sample); err != nil {
		return err
	}
	if err := s.startKubelet(ctx); err != nil {
		return err
	}
	if err := s.tour(ctx, sample, isRunning); err != nil {
		return err
	}
	s.explore(sample)
	return nil
}
