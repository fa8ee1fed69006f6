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

	// SchemeBuilder collects the functions that register this package's types.
	SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)

	// AddToScheme registers this package's types with a scheme.
	AddToScheme = SchemeBuilder.AddToScheme
)

func addKnownTypes(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion, &PodConfigMapConfig{}, &PodConfigMapConfigList{})
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
