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

const crdName = "podconfigmapconfigs.podconfig.example.com"

// installCRD installs the CRD where there is none, and returns what it made.
func (s *session) installCRD(ctx context.Context) (*apiextensionsv1.CustomResourceDefinition, error) {
	crd := &apiextensionsv1.CustomResourceDefinition{}
	err := s.client.Get(ctx, client.ObjectKey{Name: crdName}, crd)
	switch {
	case err == nil:
		s.say("its CRD is there already, and left as it is (make install brings it up to date)")
		return nil, nil
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("looking for the CRD: %w", err)
	}
	if err := harness.InstallCRD(ctx, s.client); err != nil {
		return nil, err
	}
	if err := s.client.Get(ctx, client.ObjectKey{Name: crdName}, crd); err != nil {
		return nil, fmt.Errorf("reading the CRD: %w", err)
	}
	s.say("installed its CRD %s", crdName)
	return crd, nil
}

func (s *session) removeCRD(ctx context.Context, crd client.Object) error {
	return s.deleteAll(ctx, []client.Object{crd})
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
