# Programs that are too big, or too much at odds with each other in what they
# require, for hack/tools/go.mod: each has a folder there with a go.mod whose one
# "tool" line names it, or with a program of our own, and is built into bin/ by its
# folder's name.

## Tools

# Build tags, by the tool's name.
TAGS_operator-sdk = containers_image_openpgp

BIG_TOOLS = $(filter-out golangci-lint kubectl prometheus-operator,$(patsubst hack/tools/%/go.mod,%,$(wildcard hack/tools/*/go.mod)))

# Without a "tool" line the program is the folder's own.
package_of = $(if $(wildcard hack/tools/$(1)/main.go),.,tool)

bin/%: hack/tools/%/go.mod
	@echo "building bin/$* (some of the tools take 10 minutes on two cores the first time)"
	@mkdir -p bin
	CGO_ENABLED=0 go -C hack/tools/$* build -trimpath -tags '$(TAGS_$*)' -ldflags '-s -w $(LDFLAGS_$*)' -o $(CURDIR)/$@ $(call package_of,$*)
	@touch $@

.PHONY: big-tools
big-tools: $(addprefix bin/,$(BIG_TOOLS)) ## Build every tool of hack/tools that has a module of its own.

.PHONY: operator-sdk
operator-sdk: bin/operator-sdk ## Build bin/operator-sdk (about 10 minutes on two cores).
