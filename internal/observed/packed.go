// SPDX-License-Identifier: Apache-2.0

package observed

import "strings"

// pack moves strings into one piece of memory. What stays for long then lies in
// few large objects: thousands of small ones among the garbage of a first list
// would keep several times their size from being given back.
func pack(all ...*string) {
	size := 0
	for _, s := range all {
		size += len(*s)
	}
	var b strings.Builder
	b.Grow(size)
	for _, s := range all {
		b.WriteString(*s)
	}
	rest := b.String()
	for _, s := range all {
		n := len(*s)
		*s, rest = rest[:n], rest[n:]
	}
}
