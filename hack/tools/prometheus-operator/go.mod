// Not a tool: the CRDs in this module's source are what the chart is tested with.
module github.com/podconfigmap/podconfigmap-controller/hack/tools/prometheus-operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
