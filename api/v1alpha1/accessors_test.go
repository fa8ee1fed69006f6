// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"maps"
	"reflect"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

func TestLabelSelector(t *testing.T) {
	for name, tc := range map[string]struct {
		selector *v1alpha1.PodSelector
		labels   labels.Set
		want     bool
	}{
		"nil matches every pod":     {nil, labels.Set{"app": "web"}, true},
		"empty matches every pod":   {&v1alpha1.PodSelector{}, nil, true},
		"label":                     {&v1alpha1.PodSelector{MatchLabels: map[string]string{"app": "web"}}, labels.Set{"app": "web"}, true},
		"other label":               {&v1alpha1.PodSelector{MatchLabels: map[string]string{"app": "web"}}, labels.Set{"app": "db"}, false},
		"label with an empty value": {&v1alpha1.PodSelector{MatchLabels: map[string]string{"app": ""}}, labels.Set{"app": "web"}, false},
		"expression": {&v1alpha1.PodSelector{MatchExpressions: []v1alpha1.PodSelectorRequirement{
			{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", "db"}}}}, labels.Set{"app": "db"}, true},
		"one of two expressions": {&v1alpha1.PodSelector{MatchExpressions: []v1alpha1.PodSelectorRequirement{
			{Key: "app", Operator: metav1.LabelSelectorOpExists},
			{Key: "tier", Operator: metav1.LabelSelectorOpExists}}}, labels.Set{"app": "db"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			spec := v1alpha1.PodConfigMapConfigSpec{PodSelector: tc.selector}
			selector, err := metav1.LabelSelectorAsSelector(spec.LabelSelector())
			if err != nil {
				t.Fatal(err)
			}
			if got := selector.Matches(tc.labels); got != tc.want {
				t.Errorf("%v matches %v: %v, want %v", selector, tc.labels, got, tc.want)
			}
		})
	}
}

func TestRequested(t *testing.T) {
	for name, tc := range map[string]struct {
		config *v1alpha1.EBPFConfig
		want   bool
	}{
		"nil":            {nil, false},
		"empty":          {&v1alpha1.EBPFConfig{}, false},
		"both off":       {&v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{}, L4Firewall: &v1alpha1.L4Firewall{}}, false},
		"metrics only":   {&v1alpha1.EBPFConfig{MetricsExport: &v1alpha1.MetricsExport{Enabled: true}}, false},
		"syscalls":       {&v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true}}, true},
		"firewall":       {&v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{Enabled: true}}, true},
		"one of the two": {&v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{}, L4Firewall: &v1alpha1.L4Firewall{Enabled: true}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.config.Requested(); got != tc.want {
				t.Errorf("Requested() = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestEffective(t *testing.T) {
	set := &v1alpha1.L4Firewall{
		DefaultAction: v1alpha1.FirewallActionBlock,
		Mode:          v1alpha1.FirewallModeAudit,
		Directions:    []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionEgress},
	}
	both := []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionEgress, v1alpha1.FirewallDirectionIngress}
	var absent *v1alpha1.L4Firewall
	var noExport *v1alpha1.MetricsExport
	export := func(interval string) *v1alpha1.MetricsExport {
		return &v1alpha1.MetricsExport{UpdateInterval: interval}
	}
	for name, tc := range map[string]struct{ got, want any }{
		"action, no firewall":     {absent.EffectiveDefaultAction(), v1alpha1.FirewallActionAllow},
		"action, not set":         {(&v1alpha1.L4Firewall{}).EffectiveDefaultAction(), v1alpha1.FirewallActionAllow},
		"action, set":             {set.EffectiveDefaultAction(), v1alpha1.FirewallActionBlock},
		"mode, no firewall":       {absent.EffectiveMode(), v1alpha1.FirewallModeEnforce},
		"mode, not set":           {(&v1alpha1.L4Firewall{}).EffectiveMode(), v1alpha1.FirewallModeEnforce},
		"mode, set":               {set.EffectiveMode(), v1alpha1.FirewallModeAudit},
		"directions, no firewall": {absent.EffectiveDirections(), []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionIngress}},
		"directions, not set":     {(&v1alpha1.L4Firewall{}).EffectiveDirections(), []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionIngress}},
		"directions, empty":       {(&v1alpha1.L4Firewall{Directions: both[:0]}).EffectiveDirections(), []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionIngress}},
		"directions, one":         {set.EffectiveDirections(), both[:1]},
		"directions, both":        {(&v1alpha1.L4Firewall{Directions: both}).EffectiveDirections(), both},
		"interval, no export":     {noExport.EffectiveInterval(), 30 * time.Second},
		"interval, not set":       {export("").EffectiveInterval(), 30 * time.Second},
		"interval, set":           {export("1m30s").EffectiveInterval(), 90 * time.Second},
		"interval, unreadable":    {export("often").EffectiveInterval(), 30 * time.Second},
		"interval, negative":      {export("-1s").EffectiveInterval(), 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if !reflect.DeepEqual(tc.got, tc.want) {
				t.Errorf("got %v, want %v", tc.got, tc.want)
			}
		})
	}
}

// The maps whose deep copy is written by hand share nothing with their copy.
func TestDeepCopyOfMaps(t *testing.T) {
	spec := &v1alpha1.PodConfigMapConfigSpec{
		PodSelector:           &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": "web"}},
		ConfigMapDataTemplate: map[string]string{"key": "text"},
	}
	dup := spec.DeepCopy()
	spec.PodSelector.MatchLabels["app"] = "changed"
	spec.ConfigMapDataTemplate["key"] = "changed"
	if got, want := dup.PodSelector.MatchLabels, (map[string]string{"app": "web"}); !maps.Equal(got, want) {
		t.Errorf("copied matchLabels: %v, want %v", got, want)
	}
	if got, want := dup.ConfigMapDataTemplate, (map[string]string{"key": "text"}); !maps.Equal(got, want) {
		t.Errorf("copied configMapDataTemplate: %v, want %v", got, want)
	}
	if empty := (&v1alpha1.PodConfigMapConfigSpec{PodSelector: &v1alpha1.PodSelector{}}).DeepCopy(); empty.PodSelector.MatchLabels != nil || empty.ConfigMapDataTemplate != nil {
		t.Errorf("copy of nil maps: %#v, want nil maps", empty)
	}
}

func TestAddToScheme(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	for _, object := range []runtime.Object{&v1alpha1.PodConfigMapConfig{}, &v1alpha1.PodConfigMapConfigList{}} {
		kinds, _, err := scheme.ObjectKinds(object)
		if err != nil || kinds[0].GroupVersion().String() != "podconfig.example.com/v1alpha1" {
			t.Errorf("%T is registered as %v (%v), want group version podconfig.example.com/v1alpha1", object, kinds, err)
		}
	}
}
