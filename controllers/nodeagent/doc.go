// SPDX-License-Identifier: Apache-2.0

// Package nodeagent brings eBPF programs to the pods of one node: it resolves
// what the configs want for each pod, purely, and attaches, changes and detaches
// accordingly as pods, configs and cgroups come, change and go. What became of
// it stands in the node's EBPFNode object, in Events and in metrics.
//
// One goroutine does all the work, in batches: a pod costs microseconds, and
// what concerns all pods at once, such as a config's change, is handed to the
// kernel in one go.
package nodeagent

// What the agent's assembly (internal/agent) asks when it stops: whether its
// DaemonSet is to go.
//
// +kubebuilder:rbac:groups=apps,resources=daemonsets,verbs=get,namespace=system
// +kubebuilder:rbac:groups="",resources=pods,verbs=get,namespace=system
