// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"slices"
	"testing"
)

func TestReadBenchmarks(t *testing.T) {
	got := reported{}
	err := got.read(`goos: linux
BenchmarkAttach/both-2     30   81.5 median-µs/pod   262 p99-µs/pod
    bench_test.go:46: a log line
BenchmarkTraffic           3    0.98 tcp-request/ours:nftables
BenchmarkTraffic           3    1.03 tcp-request/ours:nftables
BenchmarkTraffic           3    0.99 tcp-request/ours:nftables
PASS
`)
	want := reported{
		"Attach/both median-µs/pod": {81.5}, "Attach/both p99-µs/pod": {262}, "Traffic tcp-request/ours:nftables": {0.98, 1.03, 0.99},
	}
	if err != nil || !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	got["even"] = []float64{4, 1, 9, 2}
	for name, want := range map[string]float64{"Attach/both median-µs/pod": 81.5, "Traffic tcp-request/ours:nftables": 0.99, "even": 3} {
		if median, err := got.need(name); err != nil || median != want {
			t.Errorf("the median of %s is %v (%v), want %v", name, median, err, want)
		}
	}
	if _, err := got.need("Traffic udp-flow/ours-ns"); err == nil {
		t.Error("what no benchmark has reported is not missed")
	}
	if err := got.read("BenchmarkX-2 1 fast ns/op\n"); err == nil {
		t.Error("a value that is no number is not refused")
	}
}
