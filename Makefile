# The main path needs Go, make and git. All tools are pinned in Go modules and
# built at their first use. `make help` lists the targets.

SHELL = /usr/bin/env bash
.SHELLFLAGS = -euo pipefail -c
.DEFAULT_GOAL = help

# The release that this tree is, or becomes. It is written here only: `make manifests`
# brings it to all that is generated (docs/release.md).
VERSION ?= 0.1.0
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
# Where the images are published. Bundle and catalog have its name with "-bundle"
# and "-catalog" at the end.
IMAGE_REPOSITORY ?= ghcr.io/podconfigmap/podconfigmap-controller
# The image of manager and agent that image and docker-build make and deploy runs.
IMG ?= $(IMAGE_REPOSITORY):v$(VERSION)
PLATFORM ?=
KUBECTL ?= kubectl
# How long each fuzz test runs.
FUZZTIME ?= 30s
# How many packets fuzz-packets sends.
PACKETS ?= 1000000
# More flags for `go test`, such as TEST_FLAGS='-run TestName'.
TEST_FLAGS ?=
# Those below test/{cluster,e2e,scale,shipping} have targets of their own: they
# need tools that take long to build.
PACKAGES ?= $(slow_packages) $$(go list ./... | grep -vE '/test/(cluster|e2e|scale|shipping)(/|$$)')
# They take minutes: first, so that none runs alone at the end.
slow_packages = ./test/agent ./test/faults ./test/rbac ./hack/run ./test/integration ./ebpf/l4firewall ./ebpf/syscallcount \
	./test/controlplane
# Those that run nothing but themselves: go test knows what their results depend on.
cacheable_packages = ./docs $(addprefix ./controllers/,configmaps nodeagent status) \
	$(addprefix ./hack/,bundle bundle/validate catalog docs) \
	$(addprefix ./internal/,agent apifailure command eventnote ledger logging manager observed patientwatch \
		podtemplate quietstop retry settings syscalls telemetry wire) \
	$(addprefix ./test/,bench kernels kernels/vm untar)
# How many packages are tested at a time: most wait more than they compute.
PARALLEL ?= 4

KUSTOMIZE = go tool -modfile=$(CURDIR)/hack/tools/go.mod kustomize
# Its summary counts the skipped tests and says why they were. Of most packages nothing is
# taken from the cache: their tests run the operator as a program that Go does not see.
GOTESTSUM = go tool -modfile=hack/tools/go.mod gotestsum --format=pkgname --format-hide-empty-pkg --
# Without the tables of debuggers, which take a third of the time to link a test.
GOTEST_FLAGS = -count=1 -p=$(PARALLEL) -ldflags=-w -timeout=20m

version_package = github.com/podconfigmap/podconfigmap-controller/internal/version
LDFLAGS = -s -w -X $(version_package).Version=$(VERSION) -X $(version_package).Commit=$(COMMIT)

# Packages that the race detector watches from inside; those below test/ run the
# operator as a program, which RACE=true builds with the race detector.
unit_packages = ./api/... ./controllers/... ./internal/...
operator_tests = ./test/agent ./test/integration

.PHONY: help
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "} \
		/^## / {printf "\n%s\n", substr($$0, 4)} \
		/^[a-z][a-z0-9-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Try it

# With EBPF_ENABLED=true a machine that cannot says so before anything is built.
.PHONY: run
run: ## Run the operator: on a real node of its own, or with KUBECONFIG= on yours (ONCE=true, NODE=false, SAMPLE=true, EBPF_ENABLED=true).
	@if [ "$(EBPF_ENABLED)" = true ] && [ -z "$(KUBECONFIG)" ]; then go run ./hack/run/machine/check; fi
	@$(MAKE) --no-print-directory build
	@go build -o bin/demo ./hack/run
	@exec bin/demo

.PHONY: kubectl
kubectl: ## Build bin/kubectl, for machines without one.
	CGO_ENABLED=0 go -C hack/tools/kubectl build -trimpath -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2' -o $(CURDIR)/bin/kubectl .

.PHONY: controlplane
controlplane: ## Build etcd, kube-apiserver and kube-controller-manager (once; 6 to 12 minutes on two cores).
	@go run ./test/controlplane/cmd build

## Build

.PHONY: build
build: ## Build bin/podconfigmap-controller.
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/podconfigmap-controller .

.PHONY: clean
clean: ## Remove what was built here (the control plane's programs stay in your cache folder).
	rm -rf bin build $(filter-out dist/install.yaml,$(wildcard dist/*))

## Test

.PHONY: test
test: controlplane ## Run all tests, on a real control plane.
	@rm -f build/faults.txt
	COMMAND="$(GOTESTSUM)" PACKAGES="$(PACKAGES)" CACHEABLE="$(cacheable_packages)" \
		hack/test.sh $(filter-out -count=1,$(GOTEST_FLAGS)) $(TEST_FLAGS)
	@if [ -f build/faults.txt ]; then echo; echo "Measured by test/faults:"; cat build/faults.txt; fi

.PHONY: race
race: controlplane ## Run the tests with the race detector (needs a C compiler).
	CGO_ENABLED=1 $(GOTESTSUM) -race $(GOTEST_FLAGS) $(TEST_FLAGS) $(unit_packages)
	CGO_ENABLED=1 RACE=true $(GOTESTSUM) $(GOTEST_FLAGS) $(TEST_FLAGS) $(operator_tests)

.PHONY: cover
cover: controlplane ## Run all tests and print their coverage, per package and in total.
	PACKAGES="$(PACKAGES)" hack/cover.sh $(GOTEST_FLAGS) $(TEST_FLAGS)

.PHONY: fuzz
fuzz: ## Run each fuzz test for FUZZTIME=.
	hack/fuzz.sh $(FUZZTIME)

.PHONY: fuzz-packets
fuzz-packets: ## Send PACKETS= (1000000) packets at random through the firewall's programs, beside a reference (for nightly runs).
	L4FIREWALL_FUZZ_PACKETS=$(PACKETS) go test -count=1 -timeout=60m -run='^TestParser' -v ./ebpf/l4firewall

.PHONY: bench
bench: controlplane ## Measure speed, memory and, as root, eBPF (build/bench/*.json).
	go run ./test/bench $(BENCH_FLAGS)

## Install in the cluster of the current kubeconfig

.PHONY: install
install: ## Install the CRD.
	$(KUSTOMIZE) build config/crd | $(KUBECTL) apply --server-side -f -

.PHONY: uninstall
uninstall: ## Remove the CRD, and with it every PodConfigMapConfig.
	$(KUSTOMIZE) build config/crd | $(KUBECTL) delete --ignore-not-found -f -

.PHONY: deploy
deploy: build/deploy/kustomization.yaml ## Install the CRD and the operator, with the image IMG=.
	$(KUSTOMIZE) build build/deploy | $(KUBECTL) apply --server-side -f -

.PHONY: undeploy
undeploy: ## Remove the operator and the CRD.
	$(KUSTOMIZE) build config/default | $(KUBECTL) delete --ignore-not-found -f -

# config/default with the image IMG.
.PHONY: build/deploy/kustomization.yaml
build/deploy/kustomization.yaml:
	@mkdir -p $(@D)
	@printf '%s\n' 'apiVersion: kustomize.config.k8s.io/v1beta1' 'kind: Kustomization' 'resources: [../../config/default]' > $@
	@cd $(@D) && $(KUSTOMIZE) edit set image $(IMAGE_REPOSITORY)=$(IMG)

include $(sort $(wildcard hack/make/*.mk))
