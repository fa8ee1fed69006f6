// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the resources of group podconfig.example.com, version
// v1alpha1. Its markers are the only source of the CRDs: their schemas, their
// defaults and the rules that refuse a bad spec at admission.
//
// +kubebuilder:object:generate=true
// +groupName=podconfig.example.com
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	// GroupVersion names this group and version.
	GroupVersion = schema.GroupVersion{Group: "podconfig.example.com", Version: "v1alpha1"}

	// SchemeBuilder collects this package's types.
	SchemeBuilder = &schemeBuilder{}

	// AddToScheme registers this package's types with a scheme.
	AddToScheme = SchemeBuilder.AddToScheme
)

// schemeBuilder has the methods that `operator-sdk create api` writes calls of.
type schemeBuilder struct{ objects []runtime.Object }

// Register adds types.
func (b *schemeBuilder) Register(objects ...runtime.Object) {
	b.objects = append(b.objects, objects...)
}

// AddToScheme registers the types with a scheme.
func (b *schemeBuilder) AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion, b.objects...)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}

func init() { SchemeBuilder.Register(&PodConfigMapConfig{}, &PodConfigMapConfigList{}) }
