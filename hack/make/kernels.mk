# The eBPF programs on other kernels than this machine's: test/kernels boots Debian's
# in QEMU. Debian: qemu-system-x86 xz-utils.

## Kernels

# Some series, such as 6.1,newest; and one job, such as syscallcount=TestExact: then
# the results are not held against docs/kernels.md.
KERNELS ?=
KERNELS_ONLY ?=
# More flags, such as -reuse: what the same kernel has done well before stands.
KERNELS_FLAGS ?=

.PHONY: test-kernels
test-kernels: ## Test the eBPF programs on Debian's kernels, in QEMU (KERNELS=, KERNELS_ONLY=; results in build/kernels).
	go run ./test/kernels $(KERNELS_FLAGS) $(if $(KERNELS)$(KERNELS_ONLY),$(if $(KERNELS),-kernels $(KERNELS)) $(if $(KERNELS_ONLY),-only '$(KERNELS_ONLY)'),$(if $(wildcard docs/kernels.md),-check docs/kernels.md))

.PHONY: docs-kernels
docs-kernels: ## The same, and write docs/kernels.md.
	go run ./test/kernels $(KERNELS_FLAGS) -doc docs/kernels.md
