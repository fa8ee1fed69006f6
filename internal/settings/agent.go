// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

// Tolerations are those of the agents' pods, as JSON (or YAML in one line).
type Tolerations []corev1.Toleration

// UnmarshalText is part of encoding.TextUnmarshaler.
func (t *Tolerations) UnmarshalText(text []byte) error {
	var all []corev1.Toleration
	if err := yaml.UnmarshalStrict(text, &all); err != nil {
		return errors.New(`a JSON list such as [{"key":"dedicated","operator":"Exists","effect":"NoSchedule"}], or [] for none`)
	}
	*t = all
	return nil
}

// problem follows the API server's rules for tolerations.
func (t Tolerations) problem() string {
	for i, one := range t {
		if problem := tolerationProblem(one); problem != "" {
			return fmt.Sprintf("toleration %d: %s", i+1, problem)
		}
	}
	return ""
}

func tolerationProblem(t corev1.Toleration) string {
	effects := []corev1.TaintEffect{"", corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
	key := ""
	if t.Key != "" {
		key = named(t.Key, validation.IsQualifiedName)
	}
	for _, c := range []struct {
		wrong  bool
		remedy string
	}{
		{key != "", "key: " + key},
		{t.Operator != "" && t.Operator != corev1.TolerationOpExists && t.Operator != corev1.TolerationOpEqual, "operator: use Exists or Equal"},
		{t.Key == "" && t.Operator != corev1.TolerationOpExists, "without a key the operator is Exists"},
		{t.Operator == corev1.TolerationOpExists && t.Value != "", "the operator Exists takes no value"},
		{!slices.Contains(effects, t.Effect), "effect: use NoSchedule, PreferNoSchedule or NoExecute, or leave it out for all"},
		{t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute, "tolerationSeconds goes with the effect NoExecute only"},
	} {
		if c.wrong {
			return c.remedy
		}
	}
	return ""
}

// NodeSelector are labels that nodes must carry, as key=value,key=value.
type NodeSelector map[string]string

// UnmarshalText is part of encoding.TextUnmarshaler.
func (n *NodeSelector) UnmarshalText(text []byte) error {
	all := NodeSelector{}
	for pair := range strings.SplitSeq(string(text), ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if _, twice := all[key]; !ok || twice {
			return errors.New("labels with their values, each once, such as pool=apps,disk=fast")
		}
		all[key] = value
	}
	*n = all
	return nil
}

func (n NodeSelector) problem() string {
	for key, value := range n {
		violations := slices.Concat(validation.IsQualifiedName(key), validation.IsValidLabelValue(value))
		if len(violations) > 0 {
			return fmt.Sprintf("label %s=%s: %s", key, value, strings.Join(violations, "; "))
		}
	}
	return ""
}

// Resources are those of the agents' containers, as JSON (or YAML in one line).
type Resources struct{ corev1.ResourceRequirements }

// UnmarshalText is part of encoding.TextUnmarshaler.
func (r *Resources) UnmarshalText(text []byte) error {
	if err := yaml.UnmarshalStrict(text, &r.ResourceRequirements); err != nil {
		return errors.New(`a JSON object such as {"requests":{"cpu":"25m","memory":"128Mi"},"limits":{"memory":"1Gi"}}`)
	}
	return nil
}

func (r *Resources) problem() string {
	if len(r.Claims) > 0 {
		return "the agent uses no claims; remove them"
	}
	for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
		for name, quantity := range list {
			if quantity.Sign() < 0 {
				return fmt.Sprintf("%s: use 0 or more", name)
			}
		}
	}
	for name, limit := range r.Limits {
		if request, ok := r.Requests[name]; ok && request.Cmp(limit) > 0 {
			return fmt.Sprintf("%s: the request is above the limit", name)
		}
	}
	return ""
}
