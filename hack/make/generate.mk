# What is generated, and the checks of what is written by hand. Tools are pinned
# in hack/tools; `go tool` builds each at its first use and caches it.

## Generate and check

CONTROLLER_GEN = go tool -modfile=hack/tools/go.mod controller-gen
GOLANGCI_LINT = go tool -modfile=$(CURDIR)/hack/tools/golangci-lint/go.mod golangci-lint

# Folders of controllers that run in the node agent; all others run in the manager.
AGENT_CONTROLLERS = controllers/nodeagent
MANAGER_CONTROLLERS = $(filter-out $(AGENT_CONTROLLERS),$(patsubst %/,%,$(wildcard controllers/*/)))

BPF2GO = go tool -modfile=$(CURDIR)/hack/tools/go.mod bpf2go
# One version: another would write other objects. Debian: clang-14 llvm-14 libbpf-dev.
CLANG ?= clang-14
LLVM_STRIP ?= llvm-strip-14
# mcpu=v2 loads on every kernel from 5.4 on.
BPF_CFLAGS = -O2 -g -Wall -Werror -mcpu=v2 -I/usr/include/$(shell uname -m)-linux-gnu
# Each folder of ebpf/ that holds NAME.bpf.c gets NAME_bpfel.go and NAME_bpfel.o.
# A line "// Types for Go: A B" in it names types that Go needs besides the maps'.
BPF_SOURCES = $(wildcard ebpf/*/*.bpf.c ebpf/*/testdata/*.bpf.c ebpf/*/nextlayout/*.bpf.c)

comma = ,
empty =
space = $(empty) $(empty)
# The folders $(1) as controller-gen takes them.
paths = "paths={$(subst $(space),$(comma),$(patsubst %,./%/...,$(strip $(1))))}"

# What is made of config/ (manifests: bundle) comes after config/ itself, where both
# are made; alone it takes config/ as it is.
.PHONY: generate bpf docs manifests config-manifests config-image verify lint fmt vet tools

generate: bpf ## Write the generated Go code (BPF objects, tables of system calls, deep copies) and docs.
	go run ./hack/syscalls
	$(CONTROLLER_GEN) object:headerFile=hack/boilerplate.go.txt paths=./api/...
	go run ./hack/docs

bpf: ## Compile the BPF programs (needs clang-14, llvm-14 and libbpf-dev).
	@for source in $(BPF_SOURCES); do \
		folder=$$(dirname $$source); name=$$(basename $$source .bpf.c); \
		types=$$(sed -n 's|^// Types for Go:||p' $$source | sed 's| \([^ ]*\)| -type \1|g'); \
		command -v $(CLANG) >/dev/null || { echo "compiling $$source needs $(CLANG): apt-get install clang-14 llvm-14 libbpf-dev" >&2; exit 1; }; \
		(cd $$folder && GOPACKAGE=$$(basename $$folder) $(BPF2GO) -target bpfel -cc $(CLANG) -strip $(LLVM_STRIP) \
			-cflags "$(BPF_CFLAGS)" -go-package $$(basename $$folder) $$types $$name $$name.bpf.c); \
	done

docs: ## Write docs/settings.md, docs/metrics.md and docs/templates.md from the code.
	go run ./hack/docs

manifests: config-manifests ## Write all manifests: CRDs and roles from the Go markers, and from these what is shipped, of VERSION.

# All that is made of config/ gets its version from here.
config-image:
	@cd config/manager && $(KUSTOMIZE) edit set image controller=$(IMAGE_REPOSITORY):v$(VERSION)

config-manifests: generate config-image
	$(CONTROLLER_GEN) crd paths=./api/... output:crd:dir=config/crd/bases
	go run ./hack/crd config/crd/bases/*.yaml
	$(CONTROLLER_GEN) rbac:roleName=manager-role $(call paths,$(MANAGER_CONTROLLERS)) output:rbac:dir=config/rbac
	$(CONTROLLER_GEN) rbac:roleName=leader-election-role,fileName=leader_election_role.yaml paths=./internal/manager output:rbac:dir=config/rbac
	$(if $(wildcard $(AGENT_CONTROLLERS)),$(CONTROLLER_GEN) rbac:roleName=agent-role$(comma)fileName=agent_role.yaml $(call paths,$(AGENT_CONTROLLERS)) output:rbac:dir=config/rbac)

verify: manifests ## Fail unless all generated files are those that are committed, and none is untracked.
	@changes=$$(git status --porcelain --untracked-files=all) && if [ -n "$$changes" ]; then \
		echo "not committed, or not what the generators write:"; echo "$$changes"; git --no-pager diff; exit 1; fi

fmt: ## Format the Go code.
	$(GOLANGCI_LINT) fmt

vet: ## Run go vet.
	go vet ./...

# Modules of their own that hold programs of ours.
own_modules = $(patsubst %/main.go,%,hack/coredns/main.go $(wildcard hack/tools/*/main.go))

lint: ## Run the linters.
	$(GOLANGCI_LINT) run
	@for module in $(own_modules); do echo "linting $$module"; (cd $$module && $(GOLANGCI_LINT) run); done

tools: ## Build and cache the tools ahead of their first use.
	$(CONTROLLER_GEN) --version
	go tool -modfile=hack/tools/go.mod kustomize version
	go tool -modfile=hack/tools/go.mod gotestsum --version
	$(GOLANGCI_LINT) version
