// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Labels of every ConfigMap that the operator writes.
const (
	// LabelGeneratedBy names the PodConfigMapConfig that the ConfigMap is made
	// from. A label's value ends at 63 characters, and so does a config's name.
	LabelGeneratedBy = "podconfig.example.com/generated-by-pcmc"
	// LabelPodUID holds the UID of the pod that the ConfigMap is about.
	LabelPodUID = "podconfig.example.com/pod-uid"
)
