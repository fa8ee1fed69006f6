# A real cluster on this machine (test/cluster), and what is tested there (docs/testing.md).
# As root. Debian: gcc libc6-dev pkg-config libseccomp-dev, for runc; nftables.

## Real nodes

# How many nodes `make cluster` has, and a folder for its logs, which stays; by default
# they go with it.
NODES ?= 3
LOGS ?=
# What comes to it besides: a node in QEMU with a kernel of Debian's, such as VIRTUAL=6.1,
# and so many nodes on which kwok pretends that pods run.
VIRTUAL ?=
KWOK ?= 0

cluster_images = build/cluster/images
# One platform is enough here. The layout and tar of `make image` stay as they are.
operator_image = $(CURDIR)/$(cluster_images)/$(image_name).tar

.PHONY: cluster-programs
cluster-programs: ## Build kubelet, containerd, runc and the rest of a node (once; 10 to 20 minutes on two cores).
	@go run ./test/controlplane/cmd build kube-scheduler kubelet kube-proxy
	@go run ./test/controlplane/cmd build-runtime
	@go run ./test/controlplane/cmd build-dns

.PHONY: cluster-image
cluster-image: bin/image
	@$(MAKE) --no-print-directory image images=$(cluster_images) IMAGE_PLATFORMS=linux/$$(go env GOARCH)

.PHONY: cluster
cluster: cluster-programs cluster-image $(if $(filter-out 0,$(KWOK)),bin/kwok) ## Run a cluster of real nodes, with the operator's image, until Ctrl-C (NODES=3, VIRTUAL=6.1: one in QEMU, KWOK=20: pretended ones, LOGS=).
	@go build -o bin/cluster ./test/cluster/cmd
	@exec bin/cluster -nodes $(NODES) -kwok $(KWOK) -image $(operator_image) $(if $(VIRTUAL),-virtual $(VIRTUAL)) $(if $(LOGS),-logs $(LOGS))

# It interrupts end-to-end tests, too: what they need is here as well.
.PHONY: test-cluster
test-cluster: cluster-programs cluster-image bin/registry bin/helm bin/kwok ## Test the cluster itself, and that nothing is left of what is interrupted.
	hack/orderly.sh $(GOTESTSUM) $(GOTEST_FLAGS) -timeout=60m $(TEST_FLAGS) ./test/cluster/...

# What it takes to be root and has real nodes is not part of `make test`.
.PHONY: test-run
test-run: cluster-programs cluster-image ## Test `make run` on a real node (2 minutes).
	hack/orderly.sh $(GOTESTSUM) $(GOTEST_FLAGS) -tags=nodes -run=OnNode $(TEST_FLAGS) ./hack/run

.PHONY: e2e
e2e: ## Test the operator end to end: all of the four targets that follow, and what each took.
	@MAKE='$(MAKE)' hack/e2e.sh e2e-nodes e2e-olm test-virtual-node test-scale

# -v: it prints what it does, and how long that took. TestOLM is e2e-olm's,
# TestSoak soak's, TestVirtualNode test-virtual-node's.
.PHONY: e2e-nodes
e2e-nodes: cluster-programs cluster-image bin/helm ## Test the operator, by its chart and image, on real nodes (TEST_FLAGS='-run TestEBPF').
	hack/orderly.sh go test -v -count=1 -timeout=60m -skip '^Test(OLM|Soak|VirtualNode)$$' $(TEST_FLAGS) ./test/e2e

# How long `make soak` churns, and what its choices begin with (0: another one each time).
SOAK ?= 10m
SEED ?= 0

.PHONY: soak
soak: cluster-programs cluster-image bin/helm ## Churn pods and configs on real nodes, with kills, for SOAK= (10m), and look for what grows (SEED=).
	hack/orderly.sh go test -v -count=1 -timeout=0 -run '^TestSoak$$' ./test/e2e -soak=$(SOAK) -soak.seed=$(SEED)

# Apart from `make e2e-nodes`: emulated nodes take 3 minutes, and twice that on a busy machine.
.PHONY: test-virtual-node
test-virtual-node: cluster-programs cluster-image bin/helm ## The same in short on nodes in QEMU, with Debian's Linux 6.1 and 5.10 (qemu-system-x86, xz-utils, busybox-static).
	hack/orderly.sh go test -v -count=1 -timeout=90m -run='^TestVirtualNode$$' $(TEST_FLAGS) ./test/e2e -nodes=1
