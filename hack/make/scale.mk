# The operator with many pods, which kwok runs.

## Scale

# More flags, such as -scale.pods=1000.
SCALE_FLAGS ?=

.PHONY: test-scale
test-scale: controlplane bin/kwok ## Test the operator with 10,000 pods that come and go, on kwok's nodes (SCALE_FLAGS=).
	hack/orderly.sh go test -v -count=1 -timeout=60m $(TEST_FLAGS) ./test/scale $(SCALE_FLAGS)
