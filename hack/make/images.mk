# Images without Docker, and releases (docs/release.md).

## Images and releases

# The platforms of the images that are built without Docker.
IMAGE_PLATFORMS ?= linux/amd64,linux/arm64
# When the commit was made: the only time in an image or a release.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

image_name = $(notdir $(IMAGE_REPOSITORY))
source_url = https://github.com/podconfigmap/podconfigmap-controller
images = build/images

# What every image is labelled with, whether Docker builds it or bin/image. The
# time of creation goes by itself.
image_labels = \
	org.opencontainers.image.version=$(VERSION) \
	org.opencontainers.image.revision=$(COMMIT) \
	org.opencontainers.image.source=$(source_url) \
	org.opencontainers.image.url=$(source_url) \
	org.opencontainers.image.licenses=Apache-2.0

# One command for all images: what goes in, and what it is called, is added to it.
BUILD_IMAGE = bin/image build -created $(SOURCE_DATE_EPOCH) -platform $(IMAGE_PLATFORMS) $(addprefix -label ,$(image_labels))
# $(1): the image's name without the repository's path, $(2): its reference. Both
# a layout, to push from, and a tar, to import.
write_image = -layout $(images)/$(1) -tar $(images)/$(1).tar -name $(2)

bin/image: $(wildcard hack/tools/image/*.go) hack/tools/image/go.sum
bin/registry: $(wildcard hack/tools/registry/*.go) hack/tools/registry/go.sum
bin/sbom: $(wildcard hack/tools/sbom/*.go) hack/tools/sbom/go.sum

# Go's own settings are fixed, so that those of the machine do not show.
go_build = CGO_ENABLED=0 GOFLAGS= GOEXPERIMENT= GOAMD64=v1 GOARM64=v8.0 GOFIPS140=off GOWORK=off go build -trimpath -buildvcs=false

.PHONY: image-binaries
image-binaries:
	@for platform in $(subst $(comma), ,$(IMAGE_PLATFORMS)); do \
		echo "building for $$platform"; \
		GOOS=$${platform%/*} GOARCH=$${platform#*/} $(go_build) -ldflags '$(LDFLAGS)' -o $(images)/bin/$$platform/podconfigmap-controller .; \
	done

.PHONY: image
image: bin/image image-binaries ## Build the image for all platforms without Docker (build/images).
	@$(BUILD_IMAGE) $(call write_image,$(image_name),$(IMG)) \
		-label 'org.opencontainers.image.title=PodConfigMapController' \
		-label 'org.opencontainers.image.description=$(image_description)' \
		-add '/podconfigmap-controller=$(images)/bin/{os}/{arch}/podconfigmap-controller' \
		-entrypoint /podconfigmap-controller -cmd manager

image_description = Keeps a ConfigMap with the metadata of every pod that a PodConfigMapConfig selects

.PHONY: image-push
image-push: bin/image ## Push what `make image` built as IMG=.
	@bin/image push -from $(images)/$(image_name) $(IMG)

.PHONY: docker-build
docker-build: ## Build the image IMG= with Docker, for PLATFORM= (such as linux/amd64,linux/arm64).
	docker build $(if $(PLATFORM),--platform $(PLATFORM)) \
		--build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) \
		--build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) --build-arg CREATED=$(image_created) -t $(IMG) .

# The same time as OCI wants it in a label.
image_created = $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)

.PHONY: docker-push
docker-push: ## Push the image IMG= with Docker.
	docker push $(IMG)

# A bundle is content for the package manager: nothing in it runs.
.PHONY: bundle-image
bundle-image: bin/image ## Build the image of bundle/, as `make bundle` left it.
	@$(BUILD_IMAGE) $(call write_image,$(image_name)-bundle,$(BUNDLE_IMG)) \
		-label 'org.opencontainers.image.title=PodConfigMapController bundle' \
		-label 'org.opencontainers.image.description=What the Operator Lifecycle Manager installs PodConfigMapController from' \
		-labels-from bundle/metadata/annotations.yaml -user '' \
		$(foreach part,manifests metadata tests,-add /$(part)=$(bundle_folder)/$(part))

# Content, too: the cluster's own opm serves it (docs/decisions/0026-catalog-image.md).
.PHONY: catalog-image
catalog-image: bin/image catalog ## Build the image of the catalog.
	@$(BUILD_IMAGE) $(call write_image,$(image_name)-catalog,$(CATALOG_IMG)) \
		-label 'org.opencontainers.image.title=PodConfigMapController catalog' \
		-label 'org.opencontainers.image.description=Where the Operator Lifecycle Manager finds PodConfigMapController' \
		-label operators.operatorframework.io.index.configs.v1=/configs -user '' -add /configs=$(catalog_folder)

# A bill for each platform: an architecture may link other modules. The bill takes
# the platform from the environment.
.PHONY: sbom
sbom: bin/sbom image-binaries ## Write the image's bills of materials (build/sbom).
	@mkdir -p build/sbom
	@for platform in $(subst $(comma), ,$(IMAGE_PLATFORMS)); do \
		GOOS=$${platform%/*} GOARCH=$${platform#*/} bin/sbom -program $(images)/bin/$$platform/podconfigmap-controller -version v$(VERSION) -license Apache-2.0 \
			-created $(SOURCE_DATE_EPOCH) -out build/sbom/$(image_name)-v$(VERSION)-$${platform/\//-}.cdx.json; \
	done

# It runs on the nodes of a cluster that is looked at with operator-sdk scorecard.
.PHONY: scorecard-image
scorecard-image: bin/image ## Build the image of our own scorecard tests.
	@for platform in $(subst $(comma), ,$(IMAGE_PLATFORMS)); do \
		GOOS=$${platform%/*} GOARCH=$${platform#*/} $(go_build) -ldflags '-s -w' -o $(images)/bin/$$platform/scorecard ./test/scorecard; \
	done
	@$(BUILD_IMAGE) $(call write_image,$(image_name)-scorecard,$(SCORECARD_IMG)) \
		-label 'org.opencontainers.image.title=PodConfigMapController scorecard' \
		-label 'org.opencontainers.image.description=Tests of the PodConfigMapController bundle for operator-sdk scorecard' \
		-add '/usr/local/bin/scorecard=$(images)/bin/{os}/{arch}/scorecard' -entrypoint /usr/local/bin/scorecard

.PHONY: release
release: bin/image bin/sbom bin/operator-sdk bin/opm ## Make a release of the commit in dist/: images, manifests, chart, bundle, catalog, SBOMs, checksums (VERSION=).
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' SOURCE_DATE_EPOCH='$(SOURCE_DATE_EPOCH)' IMAGE_REPOSITORY='$(IMAGE_REPOSITORY)' hack/release.sh

.PHONY: test-images
test-images: controlplane bin/image bin/registry bin/sbom bin/operator-sdk bin/opm ## Test the images, their SBOMs, the Dockerfile and the release.
	go -C hack/tools/image test $(GOTEST_FLAGS) $(TEST_FLAGS) .
	$(GOTESTSUM) $(GOTEST_FLAGS) $(TEST_FLAGS) ./test/shipping/registry ./test/shipping/images
