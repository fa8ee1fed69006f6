// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DefaultUpdateInterval is how often counters are exported where
// updateInterval is not set.
const DefaultUpdateInterval = 30 * time.Second

// LabelSelector is the selector in the form that API machinery works with. A
// config without a selector gets an empty one, which matches every pod.
func (s *PodConfigMapConfigSpec) LabelSelector() *metav1.LabelSelector {
	return s.PodSelector.LabelSelector()
}

// LabelSelector is the same selector in the form that API machinery works
// with; that of a nil PodSelector is empty and matches every pod.
func (s *PodSelector) LabelSelector() *metav1.LabelSelector {
	if s == nil {
		return &metav1.LabelSelector{}
	}
	out := &metav1.LabelSelector{MatchLabels: s.MatchLabels}
	for _, e := range s.MatchExpressions {
		out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement(e))
	}
	return out
}

// Requested reports whether the config asks for a feature that needs the
// kernel: syscall monitoring or the firewall. A nil config asks for none.
func (c *EBPFConfig) Requested() bool {
	if c == nil {
		return false
	}
	return c.SyscallMonitoring != nil && c.SyscallMonitoring.Enabled ||
		c.L4Firewall != nil && c.L4Firewall.Enabled
}

// EffectiveDefaultAction is defaultAction, or allow where it is not set.
func (f *L4Firewall) EffectiveDefaultAction() FirewallAction {
	if f == nil || f.DefaultAction == "" {
		return FirewallActionAllow
	}
	return f.DefaultAction
}

// EffectiveMode is mode, or enforce where it is not set.
func (f *L4Firewall) EffectiveMode() FirewallMode {
	if f == nil || f.Mode == "" {
		return FirewallModeEnforce
	}
	return f.Mode
}

// EffectiveDirections is directions, or ingress where none is set.
func (f *L4Firewall) EffectiveDirections() []FirewallDirection {
	if f == nil || len(f.Directions) == 0 {
		return []FirewallDirection{FirewallDirectionIngress}
	}
	return f.Directions
}

// EffectiveInterval is updateInterval, or 30 s where it is not set. A value
// that is no positive duration, which admission refuses, counts as not set.
func (m *MetricsExport) EffectiveInterval() time.Duration {
	if m == nil {
		return DefaultUpdateInterval
	}
	interval, err := time.ParseDuration(m.UpdateInterval)
	if err != nil || interval <= 0 {
		return DefaultUpdateInterval
	}
	return interval
}
