// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EBPFNode is what the node agent of one node reports: what its kernel can do,
// and what became there of each config that asks for eBPF. It lives in the
// operator's namespace, has the name of its node, and is owned by that Node.
// Only that node's agent writes it; it is no place for settings.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=ebpfnodes,singular=ebpfnode,scope=Namespaced
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Pods",type=integer,JSONPath=`.status.attachedPods`,description="Pods of the node that a program serves"
// +kubebuilder:printcolumn:name="Kernel",type=string,JSONPath=`.status.kernelVersion`
// +kubebuilder:printcolumn:name="Unsupported",type=string,JSONPath=`.status.features[?(@.supported==false)].name`,description="Features that the node cannot serve"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1,description="Why the node is ready or not"
// +kubebuilder:printcolumn:name="Arch",type=string,JSONPath=`.status.architecture`,priority=1
// +kubebuilder:printcolumn:name="Cgroups",type=string,JSONPath=`.status.cgroupVersion`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EBPFNode struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// status is the agent's report.
	// +optional
	Status EBPFNodeStatus `json:"status,omitempty"`
}

// EBPFNodeList is a list of EBPFNodes.
//
// +kubebuilder:object:root=true
type EBPFNodeList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EBPFNode `json:"items"`
}

// EBPFFeature names something that a node's kernel can do or not.
//
// +kubebuilder:validation:MaxLength=63
type EBPFFeature string

// Features of a node.
const (
	// FeatureSyscallCounter counts system calls per pod.
	FeatureSyscallCounter EBPFFeature = "SyscallCounter"
	// FeatureL4Firewall filters TCP and UDP per pod.
	FeatureL4Firewall EBPFFeature = "L4Firewall"
	// FeatureConnectDenied lets a connection that egress rules forbid fail at
	// once; without it the connection's first packet is dropped.
	FeatureConnectDenied EBPFFeature = "ConnectDenied"
)

// EBPFNodeStatus is the report of one node's agent.
type EBPFNodeStatus struct {
	// kernelVersion is the node's, as uname -r prints it.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	KernelVersion string `json:"kernelVersion,omitempty"`

	// architecture is the node's, in Go's words, such as amd64.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Architecture string `json:"architecture,omitempty"`

	// cgroupVersion is v2, hybrid (v2 beside v1, as on older distributions) or v1.
	// Only v1 alone cannot be served.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	CgroupVersion string `json:"cgroupVersion,omitempty"`

	// btf tells whether the kernel describes its own types, which counting system
	// calls needs.
	// +optional
	BTF bool `json:"btf"`

	// features says for each feature whether the node can serve it.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Features []EBPFNodeFeature `json:"features,omitempty"`

	// attachedPods is the number of the node's pods that a program serves.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	AttachedPods int32 `json:"attachedPods"`

	// configs says, for each config that asks for eBPF for a pod of this node,
	// what became of its pods here.
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=4096
	Configs []EBPFNodeConfig `json:"configs,omitempty"`

	// conditions are Ready (reason Serving, or Degraded) and, after a cleanup,
	// Detached (reason CleanedUp). An agent that serves has no Detached that is
	// True.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// EBPFNodeFeature says whether a node can serve a feature.
type EBPFNodeFeature struct {
	// name is SyscallCounter, L4Firewall or ConnectDenied.
	Name EBPFFeature `json:"name"`

	// supported tells whether the node can serve it.
	Supported bool `json:"supported"`

	// reason says why it cannot, and what to do.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
}

// EBPFNodeConfig says what became of one config's pods on a node.
type EBPFNodeConfig struct {
	// namespace is the config's, and its pods'.
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// name is the config's.
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// generation is the config's metadata.generation that the numbers are about.
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation"`

	// desired is the number of the node's pods that the config wants served.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	Desired int32 `json:"desired"`

	// attached is how many of them have all that the config asks for.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	Attached int32 `json:"attached"`

	// failed is how many of them could not be served though the node can.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	Failed int32 `json:"failed"`

	// unsupported is how many of them ask for a feature that the node cannot serve.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	Unsupported int32 `json:"unsupported"`

	// message says why pods are failed or unsupported, and what to do.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
}

func init() { SchemeBuilder.Register(&EBPFNode{}, &EBPFNodeList{}) }
