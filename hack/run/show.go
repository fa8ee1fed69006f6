// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// entry is one data key as it is shown.
func entry(key, value string, width int) string {
	value = strings.TrimRight(value, "\n")
	indent := "\n" + strings.Repeat(" ", width+2)
	return fmt.Sprintf("%-*s  %s", width, key, strings.ReplaceAll(value, "\n", indent))
}

func widest(keys []string) int {
	width := 0
	for _, key := range keys {
		width = max(width, len(key))
	}
	return width
}

// showConfigMap prints a ConfigMap's name and data.
func (c *console) showConfigMap(name string, data map[string]string) {
	c.print(bold, name)
	keys := slices.Sorted(maps.Keys(data))
	width := widest(keys)
	for _, key := range keys {
		c.print("", indented("  ", entry(key, data[key], width)))
	}
}

// change is one key whose value is another than before.
type change struct {
	key           string
	before, after *string // nil where there is none
}

// changes lists what differs, by key.
func changes(before, after map[string]string) []change {
	var all []change
	keys := slices.Collect(maps.Keys(before))
	keys = slices.AppendSeq(keys, maps.Keys(after))
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		b, had := before[key]
		a, has := after[key]
		c := change{key: key}
		if had {
			c.before = &b
		}
		if has {
			c.after = &a
		}
		if had != has || a != b {
			all = append(all, c)
		}
	}
	return all
}

// showChanges prints what differs, old values above new ones.
func (c *console) showChanges(all []change) {
	var keys []string
	for _, change := range all {
		keys = append(keys, change.key)
	}
	width := widest(keys)
	for _, change := range all {
		if change.before != nil {
			c.print(red, indented("  - ", entry(change.key, *change.before, width)))
		}
		if change.after != nil {
			c.print(green, indented("  + ", entry(change.key, *change.after, width)))
		}
	}
}

// indented puts the prefix before the first line, and spaces before the others.
func indented(prefix, text string) string {
	return prefix + strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", len(prefix)))
}
