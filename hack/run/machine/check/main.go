// SPDX-License-Identifier: Apache-2.0

// Command check fails, and says why, where the machine cannot run the eBPF part of
// the demo.
package main

import (
	"fmt"
	"os"

	"github.com/podconfigmap/podconfigmap-controller/hack/run/machine"
)

func main() {
	if _, err := machine.Look(); err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}
