# The alerts and the dashboard with the real Prometheus.

## Monitoring

.PHONY: test-observability
test-observability: controlplane ## Test alerts and dashboard with Prometheus beside managers and agents (root; Debian's package prometheus).
	@{ command -v prometheus && command -v promtool; } >/dev/null || { echo "this needs Prometheus and promtool: apt-get install prometheus" >&2; exit 1; }
	$(GOTESTSUM) $(GOTEST_FLAGS) $(TEST_FLAGS) ./test/shipping/observability
