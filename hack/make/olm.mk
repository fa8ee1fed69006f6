# The OLM bundle, its validation, tests with the real OLM, and the scorecard.

## OLM

# The image of our own scorecard tests (test/scorecard).
SCORECARD_IMG ?= $(IMAGE_REPOSITORY)-scorecard:v$(VERSION)
# The images of bundle/ and of the catalog that lists it.
BUNDLE_IMG ?= $(IMAGE_REPOSITORY)-bundle:v$(VERSION)
CATALOG_IMG ?= $(IMAGE_REPOSITORY)-catalog:v$(VERSION)
BUNDLE_CHANNELS ?= candidate,stable
BUNDLE_DEFAULT_CHANNEL ?= stable

TAGS_scorecard-test = containers_image_openpgp
TAGS_opm = json1,containers_image_openpgp
# A build from a module knows no version; bundles carry operator-sdk's.
LDFLAGS_operator-sdk = -X github.com/operator-framework/operator-sdk/internal/version.Version=$(shell awk '$$2 == "github.com/operator-framework/operator-sdk" {print $$3}' hack/tools/operator-sdk/go.mod)

.PHONY: bundle
bundle: bin/operator-sdk ## Write bundle/ and bundle.Dockerfile (VERSION=, IMG=).
	$(KUSTOMIZE) build config/manifests | go run ./hack/bundle -version $(VERSION) -image $(IMG) -scorecard-image $(SCORECARD_IMG) \
		-channels $(BUNDLE_CHANNELS) -default-channel $(BUNDLE_DEFAULT_CHANNEL) -rights test/scorecard/rights.yaml

# Where the bundle is, and where its catalog goes: tests have others.
bundle_folder = bundle
catalog_folder = build/catalog

.PHONY: catalog
catalog: bin/opm ## Write the file-based catalog of bundle/, as `make bundle` left it (build/catalog).
	@go run ./hack/catalog -version $(VERSION) -image $(BUNDLE_IMG) -bundle $(bundle_folder) $(catalog_folder)

# operatorhub's own result is that it is deprecated for the two after it.
.PHONY: bundle-validate
bundle-validate: bin/operator-sdk ## Run operator-sdk's validators on bundle/; a warning is a failure, too.
	go run ./hack/bundle/validate -operator-sdk bin/operator-sdk bundle

manifests: bundle
ifneq ($(filter manifests verify,$(MAKECMDGOALS)),)
bundle: config-manifests
endif

# OLM's two programs have a module each, because a module's tool is one program; that
# of opm takes OLM's versions, so that most of it is built once. What OLM's own image
# has besides, to bring content out of other images, comes from the same module.
OLM_UTILITIES = bin/cpb bin/copy-content
$(OLM_UTILITIES): package = github.com/operator-framework/operator-lifecycle-manager/$(if $(filter bin/cpb,$@),util/cpb,cmd/copy-content)
$(OLM_UTILITIES): hack/tools/olm/go.mod
	CGO_ENABLED=0 go -C hack/tools/olm build -trimpath -ldflags '-s -w' -o $(CURDIR)/$@ $(package)
	@touch $@

.PHONY: test-olm
test-olm: busybox controlplane bin/operator-sdk bin/olm bin/olm-catalog bin/opm bin/image bin/registry $(OLM_UTILITIES) ## Install the bundle from a registry with the real OLM, upgrade, uninstall (as root; Debian's busybox-static).
	$(GOTESTSUM) $(GOTEST_FLAGS) $(TEST_FLAGS) ./test/shipping/processnode ./test/shipping/olm

# -v: it prints the result of each test.
.PHONY: scorecard
scorecard: controlplane bin/operator-sdk bin/scorecard-test ## Run operator-sdk scorecard on bundle/, on a control plane of its own (as root).
	go test -v $(GOTEST_FLAGS) $(TEST_FLAGS) ./test/shipping/processnode ./test/shipping/scorecard

# OLM's own images and scorecard's, of programs that are built here, for real nodes.
olm_images = build/olm
OLM_IMAGES = $(addprefix $(olm_images)/,olm.tar opm.tar scorecard-test.tar)
# $(1): the name, $(2): files that go in, as DEST=SOURCE, $(3): more flags.
build_olm_image = bin/image build -platform linux/$$(go env GOARCH) -user 1001:1001 $(addprefix -add /bin/,$(2)) $(3) -tar $@ -name $(1)

$(olm_images)/olm.tar: bin/olm bin/olm-catalog $(OLM_UTILITIES) | bin/image
	@mkdir -p $(@D)
	@$(call build_olm_image,quay.io/operator-framework/olm:latest,olm=bin/olm catalog=bin/olm-catalog cpb=bin/cpb copy-content=bin/copy-content cp=$(shell command -v busybox))
$(olm_images)/opm.tar: bin/opm bin/grpc-health-probe | bin/image
	@mkdir -p $(@D)
	@$(call build_olm_image,quay.io/operator-framework/opm:latest,opm=bin/opm grpc_health_probe=bin/grpc-health-probe)
$(olm_images)/scorecard-test.tar: bin/scorecard-test | bin/image
	@mkdir -p $(@D)
	@$(call build_olm_image,quay.io/operator-framework/scorecard-test:latest,scorecard-test=bin/scorecard-test)

.PHONY: busybox
busybox:
	@command -v busybox >/dev/null || { echo "OLM's image has busybox's cp: apt-get install busybox-static" >&2; exit 1; }

# -v: it prints what it does, and how long that took.
.PHONY: e2e-olm
e2e-olm: busybox cluster-programs cluster-image bin/helm bin/operator-sdk bin/opm bin/registry $(OLM_IMAGES) ## Test the operator by OLM, and its bundle by the scorecard, on real nodes (as root; Debian's busybox-static).
	hack/orderly.sh go test -v -count=1 -timeout=60m $(TEST_FLAGS) -run TestOLM ./test/e2e
