// SPDX-License-Identifier: Apache-2.0

// Package nextlayout is the firewall's programs with larger structs in their maps.
// Tests upgrade to it and back; the build tag nextlayout makes an agent of it.
package nextlayout

import "github.com/cilium/ebpf"

// Load returns the programs.
func Load() (*ebpf.CollectionSpec, error) { return loadNextlayout() }
