// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// bundle is what a bundle's manifests say.
type bundle struct {
	csv      *operatorsv1alpha1.ClusterServiceVersion
	crds     []apiextensionsv1.CustomResourceDefinition
	roles    []rbacv1.Role
	bindings []rbacv1.RoleBinding
	// kinds are those of all manifests.
	kinds []string
}

func readBundle(root string) (*bundle, error) {
	files, err := filepath.Glob(filepath.Join(root, "manifests", "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(fmt.Errorf("looking for manifests in %s: there are none", root), err)
	}
	b := &bundle{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the bundle: %w", err)
		}
		if err := b.add(text); err != nil {
			return nil, fmt.Errorf("decoding %s: %w", file, err)
		}
	}
	if b.csv == nil {
		return nil, fmt.Errorf("looking for the ClusterServiceVersion in %s: there is none", root)
	}
	return b, nil
}

func (b *bundle) add(text []byte) error {
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(text, &meta); err != nil {
		return err
	}
	b.kinds = append(b.kinds, meta.Kind)
	switch meta.Kind {
	case operatorsv1alpha1.ClusterServiceVersionKind:
		b.csv = &operatorsv1alpha1.ClusterServiceVersion{}
		return yaml.Unmarshal(text, b.csv)
	case "CustomResourceDefinition":
		return addTo(&b.crds, text)
	case "Role":
		return addTo(&b.roles, text)
	case "RoleBinding":
		return addTo(&b.bindings, text)
	}
	return nil
}

func addTo[T any](list *[]T, text []byte) error {
	var one T
	err := yaml.Unmarshal(text, &one)
	*list = append(*list, one)
	return err
}

// install is how the CSV installs the operator.
func (b *bundle) install() operatorsv1alpha1.StrategyDetailsDeployment {
	return b.csv.Spec.InstallStrategy.StrategySpec
}

// containers are those of all Deployments.
func (b *bundle) containers() []corev1.Container {
	var all []corev1.Container
	for _, d := range b.install().DeploymentSpecs {
		all = append(all, d.Spec.Template.Spec.InitContainers...)
		all = append(all, d.Spec.Template.Spec.Containers...)
	}
	return all
}
