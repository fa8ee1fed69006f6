# A real cluster on this machine (test/cluster), and what is tested there (docs/testing.md).
# As root. Debian: gcc libc6-dev pkg-config libseccomp-dev, for runc; nftables.

## Real nodes

# How many nodes `make cluster` has.
NODES ?= 3

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
cluster: cluster-programs cluster-image ## Run a cluster of real nodes, with the operator's image, until Ctrl-C (NODES=).
	@go build -o bin/cluster ./test/cluster/cmd
	@exec bin/cluster -nodes $(NODES) -image $(operator_image)

.PHONY: test-cluster
test-cluster: cluster-programs bin/image bin/registry ## Test the cluster itself.
	$(GOTESTSUM) $(GOTEST_FLAGS) $(TEST_FLAGS) ./test/cluster/...

# What it takes to be root and has real nodes is not part of `make test`.
.PHONY: test-run
test-run: cluster-programs cluster-image ## Test `make run` on a real node (2 minutes).
	$(GOTESTSUM) $(GOTEST_FLAGS) -tags=nodes -run=OnNode $(TEST_FLAGS) ./hack/run

# -v: it prints what it does, and how long that took. TestOLM is e2e-olm's,
# TestSoak soak's, TestVirtualNode test-virtual-node's.
.PHONY: e2e
e2e: cluster-programs cluster-image bin/helm ## Test the operator, by its chart and image, on real nodes (TEST_FLAGS='-run TestEBPF').
	go test -v -count=1 -timeout=60m -skip '^Test(OLM|Soak|VirtualNode)$$' $(TEST_FLAGS) ./test/e2e

# How long `make soak` churns, and what its choices begin with (0: another one each time).
SOAK ?= 10m
SEED ?= 0

.PHONY: soak
soak: cluster-programs cluster-image bin/helm ## Churn pods and configs on real nodes, with kills, for SOAK= (10m), and look for what grows (SEED=).
	go test -v -count=1 -timeout=0 -run '^TestSoak$$' ./test/e2e -soak=$(SOAK) -soak.seed=$(SEED)

# Apart from `make e2e`: emulated nodes take 3 minutes, and twice that on a busy machine.
.PHONY: test-virtual-node
test-virtual-node: cluster-programs cluster-image bin/helm ## The same in short on nodes in QEMU, with Debian's Linux 6.1 and 5.10 (qemu-system-x86, xz-utils, busybox-static).
	go test -v -count=1 -timeout=90m -run='^TestVirtualNode$$' $(TEST_FLAGS) ./test/e2e -nodes=1
