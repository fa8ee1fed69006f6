// SPDX-License-Identifier: Apache-2.0

// Package observed keeps what the operator sees of pods and of the ConfigMaps
// it generated: informers whose stores hold compact copies, a digest in place
// of a ConfigMap's data, so that a large cluster fits into little memory.
package observed
