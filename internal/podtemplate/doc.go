// SPDX-License-Identifier: Apache-2.0

// Package podtemplate renders spec.configMapDataTemplate: Go templates, written
// by the users of a namespace, over the metadata of one pod. They run inside a
// manager that serves every namespace, so a template is hostile input.
//
// # Data
//
// The caller of [Template.Execute] builds the view; these names are a promise
// to users. Values are plain strings, maps and lists without methods (a
// corev1.PodPhase or a metav1.Time must be converted first).
//
//	.podName .namespace .uid        string
//	.nodeName                       string, "" until the pod is scheduled
//	.phase                          string: Pending, Running, Succeeded, Failed, Unknown
//	.podIP .hostIP                  string, "" until assigned
//	.podIPs .hostIPs                []string, empty until assigned
//	.serviceAccountName             string
//	.labels .annotations            map[string]string
//	.owner                          map[string]string: kind, name of the controlling owner, "" without one
//	.containers                     []map[string]string: name, image, in the pod's order
//	.startTime                      string, RFC 3339 in UTC, "" until started
//	.qosClass                       string: Guaranteed, Burstable, BestEffort
//	.pcmcName                       string, name of the PodConfigMapConfig
//
// A key that is absent is an error: {{ .labels.app }} fails for a pod without
// that label. Optional keys, and keys with characters that Go's syntax does not
// take, are read by function:
//
//	{{ get .labels "tier" | default "none" }}
//	{{ index .labels "app.kubernetes.io/name" }}       empty where absent
//	{{ if hasKey .labels "tier" }}...{{ end }}
//	{{ get .labels "tier" | required "set the label tier" }}
//
// # Language
//
// text/template without define, block and template (no recursion, and each key
// stands alone), and with the functions that [Functions] lists. Those have the
// names and the argument order of the sprig library, but are bounded, total and
// pure: the same pod always gives the same text, so rendering never causes a
// write by itself. Where sprig hides a mistake (a text that is no number becomes
// 0, a decoding error becomes the value) they fail.
//
// # Limits
//
// Every limit but the last is counted, not timed: a template that passes once
// for some data always passes for it. The template's text: 16,384 characters,
// nested 100 deep. One execution: 100,000 steps (nodes run in loops), 8 MiB
// read and written by functions, 1 MiB and 32 levels for one value, the output
// limit the caller sets, and one second, which is a safety net. The templates of
// one config together get four times the steps and bytes of one ([Allowance]).
package podtemplate
