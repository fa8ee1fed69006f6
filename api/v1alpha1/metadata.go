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

// LabelLegacyKernel is a label of Nodes: "true" asks for the agent with the
// capabilities that kernels before 5.11 need, where AGENT_LEGACY_KERNELS allows it.
const LabelLegacyKernel = "podconfig.example.com/legacy-kernel"

// AnnotationCleanupSince is on the agents' DaemonSet while its agents detach
// everything because it is going to be removed; its value is when that began, in
// RFC 3339. An agent that ends meanwhile leaves nothing.
const AnnotationCleanupSince = "podconfig.example.com/cleanup-since"
