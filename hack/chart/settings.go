// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

// setting says where a variable of the operator's environment comes from.
type setting struct {
	// value is the path below .Values that users set.
	value string
	// expression gives the variable's text; without one it is the value itself.
	expression string
	// when is the condition under which the variable is set. Variables that config
	// sets are always set; for others, without a condition, it is that the
	// expression gives something.
	when string
	// not tells why there is no value for it.
	not string
}

const (
	byDownwardAPI = "the manifests set it by the downward API"
	byDaemonSet   = "agents get it from their DaemonSet"
	whileOn       = "$.Values.ebpf.enabled"
)

// fromValues has every variable of the operator.
var fromValues = map[string]setting{
	"LEADER_ELECTION_ENABLED":        {value: "leaderElection.enabled", when: "not $.Values.leaderElection.enabled"},
	"LEADER_ELECTION_LEASE_DURATION": {value: "leaderElection.leaseDuration"},
	"LEADER_ELECTION_RENEW_DEADLINE": {value: "leaderElection.renewDeadline"},
	"LEADER_ELECTION_RETRY_PERIOD":   {value: "leaderElection.retryPeriod"},
	"LEADER_ELECTION_LOCK_NAME":      {value: "leaderElection.lockName"},
	"LEADER_ELECTION_LOCK_NAMESPACE": {not: "the role for it is in the release's namespace"},

	"CONTROLLER_RESYNC_PERIOD":          {value: "controller.resyncPeriod"},
	"CONTROLLER_POD_WORKERS":            {value: "controller.podWorkers"},
	"CONTROLLER_PCMC_WORKERS":           {value: "controller.pcmcWorkers"},
	"CONTROLLER_MAX_RETRIES":            {value: "controller.maxRetries"},
	"CONTROLLER_RECONCILIATION_TIMEOUT": {value: "controller.reconciliationTimeout"},

	"LOG_LEVEL":       {value: "logging.level"},
	"LOG_FORMAT":      {value: "logging.format"},
	"LOG_JSON_FORMAT": {not: "logging.format says the same"},
	"DEBUG":           {not: "logging.level says the same"},

	"METRICS_ADDR":      {not: "the ports of the pods and Services are fixed"},
	"HEALTH_PROBE_ADDR": {not: "the ports of the pods are fixed"},

	"WATCH_NAMESPACE": {value: "watchNamespaces", expression: `join "," $.Values.watchNamespaces`},
	"EBPF_ENABLED":    {value: "ebpf.enabled"},

	"AGENT_LEGACY_KERNELS":  {value: "ebpf.agent.legacyKernels", when: "and " + whileOn + " $.Values.ebpf.agent.legacyKernels"},
	"AGENT_TOLERATIONS":     {value: "ebpf.agent.tolerations", expression: "toJson $.Values.ebpf.agent.tolerations", when: whileOn},
	"AGENT_NODE_SELECTOR":   {value: "ebpf.agent.nodeSelector", expression: include + `agentNodeSelector" $`, when: "and " + whileOn + " $.Values.ebpf.agent.nodeSelector"},
	"AGENT_RESOURCES":       {value: "ebpf.agent.resources", expression: "toJson $.Values.ebpf.agent.resources", when: whileOn},
	"AGENT_PRIORITY_CLASS":  {value: "ebpf.agent.priorityClassName", expression: include + `agentPriorityClass" $`, when: "and " + whileOn + " (" + include + `agentPriorityClass" $)`},
	"AGENT_SECCOMP_PROFILE": {value: "ebpf.agent.seccompProfile", when: "and " + whileOn + " $.Values.ebpf.agent.seccompProfile"},
	"RELATED_IMAGE_AGENT":   {value: "ebpf.agent.image", expression: include + `agentImage" $`, when: "and " + whileOn + " (" + include + `agentImage" $)`},

	"POD_NAME":                {not: byDownwardAPI},
	"POD_NAMESPACE":           {not: byDownwardAPI},
	"KUBECONFIG":              {not: "the pod's ServiceAccount is used"},
	"OPERATOR_CONDITION_NAME": {not: "it is OLM's"},
	"NODE_NAME":               {not: byDaemonSet},
	"CGROUP_ROOT":             {not: byDaemonSet},
	"BPFFS_ROOT":              {not: byDaemonSet},
}

func (s setting) text() string {
	if s.expression != "" {
		return s.expression
	}
	return "$.Values." + s.value
}

// env turns the variables of the manager's container into those of the chart:
// what config sets comes from values, then what values may set besides, then
// extraEnv.
func (p *page) env(configured []any) ([]any, error) {
	var all []any
	set := map[string]bool{}
	for _, one := range configured {
		variable, ok := one.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("env has %v, which is no variable", one)
		}
		name, _ := variable["name"].(string)
		set[name] = true
		if _, fixed := variable["valueFrom"]; !fixed {
			from, known := fromValues[name]
			if !known || from.value == "" {
				return nil, fmt.Errorf("config sets %s, which no value of the chart sets: add one to hack/chart/settings.go", name)
			}
			variable["value"] = p.value(from.text() + " | quote")
		}
		all = append(all, variable)
	}
	for _, v := range settings.Variables() {
		from, known := fromValues[v.Name]
		switch {
		case !known:
			return nil, fmt.Errorf("the operator reads %s: say in hack/chart/settings.go which value sets it, or why none does", v.Name)
		case set[v.Name] || from.not != "":
		default:
			all = append(all, p.optional(v.Name, from))
		}
	}
	return append(all, p.hole(hole{lines: func(indent int, _ string) string {
		return text(indent, "{{- "+include+`checkExtraEnv" $ }}`, "{{- with $.Values.extraEnv }}", fmt.Sprintf("{{- toYaml . | nindent %d }}", indent), "{{- end }}")
	}})), nil
}

// optional is a variable that is set under a condition.
func (p *page) optional(name string, from setting) string {
	when := from.when
	if when == "" {
		when = from.text()
	}
	return p.more("{{- if "+when+" }}", "- name: "+name, "  value: {{ "+from.text()+" | quote }}", "{{- end }}")
}

// settingsTemplate is the text of a template that names every variable of the
// operator, with what to do instead of setting it by extraEnv.
func settingsTemplate() string {
	b := &strings.Builder{}
	b.WriteString(header + `{{- define "podconfigmap-controller.settings" -}}` + "\n")
	for _, name := range slices.Sorted(maps.Keys(fromValues)) {
		if from := fromValues[name]; from.value != "" {
			fmt.Fprintf(b, "%s: use the value %s\n", name, from.value)
		} else {
			fmt.Fprintf(b, "%s: %q\n", name, "leave it out, "+from.not)
		}
	}
	b.WriteString("{{- end }}\n")
	return b.String()
}
