# The Helm chart, and the manifests in one file, both made from config.

CHART = helm-charts/podconfigmap-controller
HELM_DOCS = go tool -modfile=$(CURDIR)/hack/tools/helm-docs/go.mod helm-docs

# What the programs say of themselves.
LDFLAGS_helm = -X helm.sh/helm/v4/internal/version.version=v4.3.1
LDFLAGS_helm3 = -X helm.sh/helm/v3/internal/version.version=v3.22.0 \
	-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=37 \
	-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=37

## Package

.PHONY: chart
chart: ## Write the templates and the README of the Helm chart.
	@set -o pipefail; $(KUSTOMIZE) build config/chart | go run ./hack/chart -version $(VERSION) $(CHART)
	$(HELM_DOCS) --chart-search-root=$(CHART) --template-files=README.md.gotmpl --log-level=warning

.PHONY: dist/install.yaml
dist/install.yaml: ## Write the manifests of config/default into one file.
	@mkdir -p $(@D)
	$(KUSTOMIZE) build config/default -o $@

manifests: chart dist/install.yaml
ifneq ($(filter manifests verify,$(MAKECMDGOALS)),)
chart dist/install.yaml: config-manifests
endif

# The Prometheus operator's CRDs, out of its module, whose version is pinned like a
# tool's.
prometheus_operator = github.com/prometheus-operator/prometheus-operator
build/prometheus-operator: hack/tools/prometheus-operator/go.mod
	@rm -rf $@ && mkdir -p $@
	@folder=$$(go -C $(<D) mod download -json $(prometheus_operator) | sed -n 's/^.*"Dir": "\(.*\)".*$$/\1/p'); \
		install -m 644 "$$folder"/example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml $@

.PHONY: test-helm
test-helm: controlplane bin/helm bin/helm3 build/prometheus-operator ## Test the chart with Helm 4 and 3 on a real control plane (as root).
	$(GOTESTSUM) $(GOTEST_FLAGS) $(TEST_FLAGS) ./hack/chart ./test/shipping/helm/... ./test/shipping/agreement/...
