// SPDX-License-Identifier: Apache-2.0

//go:build !nextlayout

package syscallcount

// row is what a CPU counts for a slot.
type row = syscallcountRow

// current is the layout of this build.
var current = first

// known are the layouts that this build knows; of later ones see later.
var known = []layout{first}
