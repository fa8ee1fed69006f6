// SPDX-License-Identifier: Apache-2.0

package harness

import "regexp"

// errorLine is a line of klog's text format that tells of an error or worse, or the
// first one of a panic.
var errorLine = regexp.MustCompile(`(?m)^(?:[EF]\d{4} |panic: |fatal error: ).*$`)

// ErrorLines are the lines of an operator's log, in klog's text format, that tell of
// errors.
func ErrorLines(log string) []string { return errorLine.FindAllString(log, -1) }
