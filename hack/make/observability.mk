# The alerts and the dashboard with the real Prometheus.

## Monitoring

.PHONY: test-observability
test-observability: controlplane ## Test alerts and dashboard with Prometheus beside managers and agents (root; Debian's package prometheus).
	@{ command -v prometheus && command -v promtool; } >/dev/null || { echo "this needs Prometheus and promtool: apt-get install prometheus" >&2; exit 1; }
	$(GOTESTSUM) $(GOTEST_FLAGS) $(TEST_FLAGS) ./test/shipping/observability

# Not part of CI: it takes 10 minutes, and every run draws other figures.
.PHONY: pictures
pictures: controlplane build/pictures/node_modules ## Take the pictures of docs/monitoring.md anew (root; Debian's prometheus, chromium, npm).
	@{ command -v prometheus && command -v chromium; } >/dev/null || { echo "this needs Prometheus and a browser: apt-get install prometheus chromium" >&2; exit 1; }
	go test -count=1 -timeout=30m -v ./test/shipping/pictures

build/pictures/node_modules: test/shipping/pictures/page/package-lock.json
	@mkdir -p $(@D)
	cp test/shipping/pictures/page/package.json $< $(@D)
	cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@
