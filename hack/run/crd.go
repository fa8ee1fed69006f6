// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// kind is one of ours.
type kind struct {
	name, crd string
	install   func(context.Context, client.Client) error
}

var (
	kindConfig = kind{"PodConfigMapConfig", "podconfigmapconfigs.podconfig.example.com", harness.InstallCRD}
	kindNode   = kind{"EBPFNode", "ebpfnodes.podconfig.example.com", harness.InstallNodeCRD}
)

// installCRDs installs the CRDs where they lack, and returns what it made.
func (s *session) installCRDs(ctx context.Context) (created []client.Object, err error) {
	kinds := []kind{kindConfig}
	if s.settings.EBPFEnabled {
		kinds = append(kinds, kindNode)
	}
	for _, k := range kinds {
		s.step("The kind %s", k.name)
		crd, err := s.installCRD(ctx, k)
		if err != nil {
			return created, err
		}
		if crd != nil {
			created = append(created, crd)
		}
	}
	return created, nil
}

func (s *session) installCRD(ctx context.Context, k kind) (*apiextensionsv1.CustomResourceDefinition, error) {
	crd := &apiextensionsv1.CustomResourceDefinition{}
	err := s.client.Get(ctx, client.ObjectKey{Name: k.crd}, crd)
	switch {
	case err == nil:
		s.say("its CRD is there already, and left as it is (make install brings it up to date)")
		return nil, nil
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("looking for the CRD: %w", err)
	}
	if err := k.install(ctx, s.client); err != nil {
		return nil, err
	}
	if err := s.client.Get(ctx, client.ObjectKey{Name: k.crd}, crd); err != nil {
		return nil, fmt.Errorf("reading the CRD: %w", err)
	}
	s.say("installed its CRD %s", k.crd)
	return crd, nil
}

func (s *session) removeConfigs(ctx context.Context) error {
	configs := &v1alpha1.PodConfigMapConfigList{}
	if err := s.client.List(ctx, configs); err != nil {
		return fmt.Errorf("listing PodConfigMapConfigs: %w", err)
	}
	var objects []client.Object
	for i := range configs.Items {
		objects = append(objects, &configs.Items[i])
	}
	return s.deleteAll(ctx, objects)
}
