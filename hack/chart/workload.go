// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
)

// deployment adds the managers' Deployment.
func (p *page) deployment(o object) error {
	if err := errors.Join(p.replicas(o), p.pods(o), p.container(o)); err != nil {
		return err
	}
	return p.plain(o)
}

func (p *page) replicas(o object) error {
	spec, err := o.in("spec")
	if err != nil {
		return err
	}
	spec["replicas"] = p.value("$.Values.replicas")
	// Without a leader election no manager may start before the last one was told to
	// stop. Not Recreate: what the cluster fills in for a rolling update would have an
	// upgrade to it refused.
	spec["strategy"] = p.hole(hole{lines: func(indent int, key string) string {
		return text(indent, "{{- if not $.Values.leaderElection.enabled }}", key+":", "  type: RollingUpdate",
			"  rollingUpdate:", "    maxSurge: 0", "    maxUnavailable: 1", ifEnd)
	}})
	return nil
}

// pods is about their template.
func (p *page) pods(o object) error {
	labels, err := o.in("spec", "template", "metadata", "labels")
	if err != nil {
		return err
	}
	annotations, err := o.in("spec", "template", "metadata", "annotations")
	if err != nil {
		return err
	}
	pod, err := o.in("spec", "template", "spec")
	if err != nil {
		return err
	}
	p.mergedIf(labels, "$.Values.podLabels")
	p.mergedIf(annotations, "$.Values.podAnnotations")
	if pod["serviceAccountName"] != manager {
		return fmt.Errorf("its pods run as %v, not %s", pod["serviceAccountName"], manager)
	}
	pod["serviceAccountName"] = p.named("ServiceAccount", manager)
	pod["affinity"] = p.blockOr("$.Values.affinity", pod["affinity"])
	pod["imagePullSecrets"] = p.block("$.Values.image.pullSecrets")
	pod["nodeSelector"] = p.block("$.Values.nodeSelector")
	pod["tolerations"] = p.block("$.Values.tolerations")
	pod["priorityClassName"] = p.scalar("(" + include + `priorityClassName" $)`)
	return nil
}

// container is about the only one that the pods have.
func (p *page) container(o object) error {
	c, err := o.in("spec", "template", "spec", "containers", 0)
	if err != nil {
		return err
	}
	configured, _ := c["env"].([]any)
	if c["env"], err = p.env(configured); err != nil {
		return err
	}
	c["image"] = p.value(include + `image" $`)
	c["imagePullPolicy"] = p.scalar("$.Values.image.pullPolicy")
	c["resources"] = p.block("$.Values.resources")
	return nil
}

func (p *page) serviceMonitor(o object) error {
	if err := p.labelled(o, "$.Values.serviceMonitor.labels"); err != nil {
		return err
	}
	endpoint, err := o.in("spec", "endpoints", 0)
	if err != nil {
		return err
	}
	endpoint["scrapeTimeout"] = p.scalar("$.Values.serviceMonitor.scrapeTimeout")
	// Not the list item's first key, which has the dash.
	endpoint["zzinterval"] = p.hole(hole{lines: func(indent int, _ string) string {
		return text(indent, "{{- with $.Values.serviceMonitor.interval }}", "interval: {{ . | quote }}", ifEnd)
	}})
	return p.when("$.Values.serviceMonitor.enabled", o)
}

// labelled adds labels of the values to an object that has some.
func (p *page) labelled(o object, values string) error {
	labels, err := o.in("metadata", "labels")
	if err != nil {
		return err
	}
	p.mergedIf(labels, values)
	return nil
}

func (p *page) prometheusRule(o object) error {
	if err := p.labelled(o, "$.Values.prometheusRule.labels"); err != nil {
		return err
	}
	spec, err := o.in("spec")
	if err != nil {
		return err
	}
	o["spec"] = p.services(spec)
	return p.when("$.Values.prometheusRule.enabled", o)
}

func (p *page) dashboard(o object) error {
	metadata, err := o.in("metadata")
	if err != nil {
		return err
	}
	if labels, _ := metadata["labels"].(map[string]any); labels["grafana_dashboard"] != "1" {
		return errors.New("it is no dashboard of Grafana's, and the chart has no place for other ConfigMaps")
	}
	if err := p.labelled(o, "$.Values.dashboard.labels"); err != nil {
		return err
	}
	metadata["annotations"] = p.block("$.Values.dashboard.annotations")
	data, err := o.in("data")
	if err != nil {
		return err
	}
	o["data"] = p.services(data)
	return p.when("$.Values.dashboard.enabled", o)
}

// services renames the metrics' Services, which are Prometheus' jobs, in all texts
// of a value.
func (p *page) services(value any) any {
	switch value := value.(type) {
	case string:
		for _, service := range []string{"metrics", "agent-metrics"} {
			if strings.Contains(value, prefix+service) {
				value = strings.ReplaceAll(value, prefix+service, p.value(fullName)+"-"+service)
			}
		}
		return value
	case []any:
		for i := range value {
			value[i] = p.services(value[i])
		}
	case map[string]any:
		for key := range value {
			value[key] = p.services(value[key])
		}
	}
	return value
}

func (p *page) disruptionBudget(o object) error {
	spec, err := o.in("spec")
	if err != nil {
		return err
	}
	spec["maxUnavailable"] = p.hole(hole{lines: func(indent int, key string) string {
		const budget = "$.Values.podDisruptionBudget."
		return text(indent, "{{- if ne (toString "+budget+`minAvailable) "" }}`, "minAvailable: {{ "+budget+"minAvailable }}",
			"{{- else }}", key+": {{ "+budget+"maxUnavailable }}", ifEnd)
	}})
	return p.when("$.Values.podDisruptionBudget.enabled", o)
}

func (p *page) networkPolicy(o object) error {
	spec, err := o.in("spec")
	if err != nil {
		return err
	}
	types, _ := spec["policyTypes"].([]any)
	spec["policyTypes"] = append(types, p.more("{{- if $.Values.networkPolicy.egress }}", "- Egress", ifEnd))
	spec["egress"] = p.block("$.Values.networkPolicy.egress")
	rule, err := o.in("spec", "ingress", 0)
	if err != nil {
		return err
	}
	port, err := o.in("spec", "ingress", 0, "ports", 0)
	if err != nil {
		return err
	}
	if port["port"] != "metrics" {
		return errors.New("its first rule is not that of the metrics' port")
	}
	rule["zzfrom"] = p.hole(hole{lines: func(indent int, _ string) string {
		return text(indent, "{{- with $.Values.networkPolicy.metricsFrom }}", "from:", fmt.Sprintf("  {{- toYaml . | nindent %d }}", indent+2),
			"  - podSelector:", "      matchLabels:", "        {{- "+include+fmt.Sprintf(`testLabels" $ | nindent %d }}`, indent+8), ifEnd)
	}})
	return p.when("$.Values.networkPolicy.enabled", o)
}

func (p *page) priorityClass(o object) error {
	o["value"] = p.value("int64 $.Values.priorityClass.value")
	return p.when("$.Values.priorityClass.create", o)
}
