// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// leaseJitter is client-go's leaderelection.JitterFactor: a renew deadline must
// leave room for one jittered retry.
const leaseJitter = 1.2

// check is the verdict over one variable; no problem means that it is fine.
type check struct{ variable, problem string }

func (s *Settings) checks() []check {
	return slices.Concat(s.electionChecks(), s.controllerChecks(), s.logChecks(), s.identityChecks(), s.agentChecks())
}

func (s *Settings) electionChecks() []check {
	minRenew := time.Duration(leaseJitter * float64(s.RetryPeriod))
	return []check{
		{"LEADER_ELECTION_RETRY_PERIOD", unless(s.RetryPeriod > 0, "use a duration greater than 0")},
		{"LEADER_ELECTION_RENEW_DEADLINE", unless(s.RenewDeadline > minRenew,
			"use more than 1.2 times LEADER_ELECTION_RETRY_PERIOD (%s)", s.RetryPeriod)},
		{"LEADER_ELECTION_LEASE_DURATION", unless(s.LeaseDuration > s.RenewDeadline && s.LeaseDuration >= time.Second,
			"use at least 1s and more than LEADER_ELECTION_RENEW_DEADLINE (%s)", s.RenewDeadline)},
		{"LEADER_ELECTION_LOCK_NAME", named(s.LockName, validation.IsDNS1123Subdomain)},
		{"LEADER_ELECTION_LOCK_NAMESPACE", optional(s.LockNamespace, validation.IsDNS1123Label)},
	}
}

func (s *Settings) controllerChecks() []check {
	return []check{
		{"CONTROLLER_RESYNC_PERIOD", unless(s.ResyncPeriod >= time.Second, "use at least 1s")},
		{"CONTROLLER_POD_WORKERS", between(s.PodWorkers, 1, 1024)},
		{"CONTROLLER_PCMC_WORKERS", between(s.PCMCWorkers, 1, 1024)},
		{"CONTROLLER_MAX_RETRIES", between(s.MaxRetries, 1, 100)},
		{"CONTROLLER_RECONCILIATION_TIMEOUT", unless(s.ReconciliationTimeout >= time.Second, "use at least 1s")},
		{"METRICS_ADDR", address(s.MetricsAddr)},
		{"HEALTH_PROBE_ADDR", address(s.HealthProbeAddr)},
	}
}

func (s *Settings) logChecks() []check {
	return []check{
		{"LOG_LEVEL", oneOf(s.LogLevel, "error", "warning", "info", "debug")},
		{"LOG_FORMAT", oneOf(s.LogFormat, "text", "json")},
	}
}

func (s *Settings) identityChecks() []check {
	watch := ""
	for _, namespace := range s.WatchNamespaces {
		if problem := named(namespace, validation.IsDNS1123Label); problem != "" {
			watch = fmt.Sprintf("namespace %q: %s", namespace, problem)
		}
	}
	return []check{
		{"WATCH_NAMESPACE", watch},
		{"POD_NAME", optional(s.PodName, validation.IsDNS1123Subdomain)},
		{"POD_NAMESPACE", optional(s.PodNamespace, validation.IsDNS1123Label)},
		{"OPERATOR_CONDITION_NAME", s.operatorCondition()},
		{"EBPF_ENABLED", unless(!s.EBPFEnabled || s.PodNamespace != "", "needs POD_NAMESPACE, the namespace of the node agents, too")},
		{"RELATED_IMAGE_AGENT", unless(!strings.ContainsAny(s.RelatedImageAgent, " \t\n"), "use an image reference without spaces")},
	}
}

func (s *Settings) operatorCondition() string {
	if s.OperatorConditionName != "" && s.PodNamespace == "" {
		return "needs POD_NAMESPACE, the namespace of the OperatorCondition, too"
	}
	return optional(s.OperatorConditionName, validation.IsDNS1123Subdomain)
}

func (s *Settings) agentChecks() []check {
	absolute := func(path string) string {
		return unless(path == "" || filepath.IsAbs(path), "use an absolute path")
	}
	return []check{
		{"AGENT_TOLERATIONS", s.AgentTolerations.problem()},
		{"AGENT_NODE_SELECTOR", s.AgentNodeSelector.problem()},
		{"AGENT_RESOURCES", s.AgentResources.problem()},
		{"AGENT_SECCOMP_PROFILE", oneOf(s.AgentSeccompProfile, "Unconfined", "RuntimeDefault")},
		{"AGENT_PRIORITY_CLASS", optional(s.AgentPriorityClass, validation.IsDNS1123Subdomain)},
		{"NODE_NAME", optional(s.NodeName, validation.IsDNS1123Subdomain)},
		{"CGROUP_ROOT", absolute(s.CgroupRoot)},
		{"BPFFS_ROOT", absolute(s.BPFFSRoot)},
	}
}

func unless(fine bool, remedy string, args ...any) string {
	if fine {
		return ""
	}
	return fmt.Sprintf(remedy, args...)
}

func between(n, low, high int) string {
	return unless(low <= n && n <= high, "use a whole number from %d to %d", low, high)
}

func oneOf(value string, allowed ...string) string {
	return unless(slices.Contains(allowed, value), "use one of %s", strings.Join(allowed, ", "))
}

func named(value string, violations func(string) []string) string {
	return strings.Join(violations(value), "; ")
}

func optional(value string, violations func(string) []string) string {
	if value == "" {
		return ""
	}
	return named(value, violations)
}

// address accepts what net.Listen does, or "0", which turns the server off.
func address(value string) string {
	if value == "0" {
		return ""
	}
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	return unless(err == nil, `use host:port such as ":8080", or 0 to turn it off`)
}
