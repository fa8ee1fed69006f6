// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types of a PodConfigMapConfig.
const (
	// ConditionReady is True when every other condition is True or was not
	// asked for.
	ConditionReady = "Ready"
	// ConditionConfigMapsSynced says whether every matching pod's ConfigMap
	// reflects the observed generation.
	ConditionConfigMapsSynced = "ConfigMapsSynced"
	// ConditionEBPFReady says whether the eBPF features that the config asks
	// for are at work in the kernel, for every matching pod.
	ConditionEBPFReady = "EBPFReady"
)

// ReasonReady is the reason of a Ready condition that is True. One that is not
// carries the reason of the condition that holds it back.
const ReasonReady = "Ready"

// ReasonProgressing is a reason of ConfigMapsSynced and of EBPFReady: work for
// this generation is still under way.
const ReasonProgressing = "Progressing"

// Reasons of ConfigMapsSynced.
const (
	// ReasonSynced: every matching pod has its ConfigMap.
	ReasonSynced = "Synced"
	// ReasonNameConflict: a ConfigMap of that name exists and is not ours.
	ReasonNameConflict = "NameConflict"
	// ReasonTemplateInvalid: a template does not parse, or fails for a pod.
	ReasonTemplateInvalid = "TemplateInvalid"
	// ReasonTooLarge: the data of a pod exceed what a ConfigMap may hold.
	ReasonTooLarge = "TooLarge"
	// ReasonRetriesExhausted: writing failed too often in a row; it is tried
	// again at the resync period.
	ReasonRetriesExhausted = "RetriesExhausted"
)

// Reasons of EBPFReady.
const (
	// ReasonAttached: every matching pod is served.
	ReasonAttached = "Attached"
	// ReasonFeatureDisabled: the config asks for eBPF, the operator's flag
	// EBPF_ENABLED is off.
	ReasonFeatureDisabled = "FeatureDisabled"
	// ReasonNodeUnsupported: a node's kernel or cgroup version cannot serve
	// what the config asks for.
	ReasonNodeUnsupported = "NodeUnsupported"
	// ReasonAttachFailed: a node that should serve a pod could not.
	ReasonAttachFailed = "AttachFailed"
	// ReasonAgentNotAdmitted: the cluster refuses the node agent's pods.
	ReasonAgentNotAdmitted = "AgentNotAdmitted"
	// ReasonNotRequested: the config asks for no eBPF feature.
	ReasonNotRequested = "NotRequested"
)

// ConditionDetached is a condition of an EBPFNode: the agent ended on purpose,
// and left no program, pin or attachment on its node. An EBPFNode also has the
// condition Ready.
const ConditionDetached = "Detached"

// Reasons of an EBPFNode's conditions.
const (
	// ReasonServing: the agent works, and the node supports every feature.
	ReasonServing = "Serving"
	// ReasonDegraded: the node lacks a feature, or pods could not be served.
	ReasonDegraded = "Degraded"
	// ReasonCleanedUp: nothing of the agent's is left in the node's kernel.
	ReasonCleanedUp = "CleanedUp"
)
