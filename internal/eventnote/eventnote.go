// SPDX-License-Identifier: Apache-2.0

// Package eventnote keeps messages within what the API accepts.
package eventnote

import "strings"

// MaxBytes is what fits into an Event's note. The API's limit is 1,024.
const MaxBytes = 1000

// Shorten cuts a message at the limit, in bytes, and marks the cut.
func Shorten(message string, limit int) string {
	const mark = "..."
	if len(message) <= limit {
		return message
	}
	return strings.ToValidUTF8(message[:limit-len(mark)], "") + mark
}
