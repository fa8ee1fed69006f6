// SPDX-License-Identifier: Apache-2.0

// Package kernelfeature says what a node's kernel, or the rights of the process
// on it, cannot serve.
package kernelfeature

import "fmt"

// The features of a node, as EBPFNode's status.features names them.
const (
	SyscallCounter = "SyscallCounter"
	L4Firewall     = "L4Firewall"
	ConnectDenied  = "ConnectDenied"
)

// Unsupported is the error of a feature that this node cannot serve. It lasts as
// long as the kernel and the process's rights: there is no use in trying again.
type Unsupported struct {
	// Feature is one of the names above.
	Feature string
	// Reason says what is missing, Remedy what to do about it. Both are parts
	// of a sentence, without a full stop.
	Reason, Remedy string
}

// Error returns one line: the feature, the reason and, where there is one, the
// remedy.
func (u *Unsupported) Error() string {
	text := fmt.Sprintf("%s is not supported on this node: %s", u.Feature, u.Reason)
	if u.Remedy != "" {
		text += "; " + u.Remedy
	}
	return text
}
