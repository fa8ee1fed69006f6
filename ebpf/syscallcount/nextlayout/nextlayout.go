// SPDX-License-Identifier: Apache-2.0

// Package nextlayout is the counter's programs with larger structs in their maps.
// Tests upgrade to it and back; the build tag nextlayout makes an agent of it.
package nextlayout

import "github.com/cilium/ebpf"

// Version is that of the layout.
const Version = 2

// Row is what a CPU counts for a pod.
type Row = nextlayoutRow

// Load returns the programs.
func Load() (*ebpf.CollectionSpec, error) { return loadNextlayout() }
