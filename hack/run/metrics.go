// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	metricSyscalls = "ebpf_syscall_count_total"
	metricFirewall = "ebpf_l4_firewall_total"
	metricPrefix   = "podconfigmap_controller_"
)

// samples are what a scrape of the agent returned.
type samples map[string]*dto.MetricFamily

// scrape reads the agent's /metrics.
func (s *session) scrape(ctx context.Context) (samples, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.agentMetrics.address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	web := &http.Client{Transport: &http.Transport{DialContext: s.agentMetrics.dial, DisableKeepAlives: true}}
	response, err := web.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/metrics answers %s", response.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(response.Body)
}

// by returns a pod's values of a metric, by one more label.
func (all samples) by(metric, namespace, pod, label string) map[string]uint64 {
	values := map[string]uint64{}
	for _, m := range all[metricPrefix+metric].GetMetric() {
		labels := map[string]string{}
		for _, l := range m.Label {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["namespace"] == namespace && labels["pod_name"] == pod && labels["pid"] == "" {
			values[labels[label]] = uint64(m.GetCounter().GetValue() + m.GetGauge().GetValue())
		}
	}
	return values
}

// mostFirst lists the keys by falling values.
func mostFirst(values map[string]uint64) []string {
	return slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(-cmp.Compare(values[a], values[b]), strings.Compare(a, b))
	})
}

// table prints rows in columns as wide as needed; the first row is the head.
func (c *console) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len(cell))
		}
	}
	for i, row := range rows {
		line := ""
		for j, cell := range row {
			line += fmt.Sprintf("%-*s", widths[j]+2, cell)
		}
		style := ""
		if i == 0 {
			style = faint
		}
		c.print(style, strings.TrimRight(line, " "))
	}
}
