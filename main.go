// SPDX-License-Identifier: Apache-2.0

// The command podconfigmap-controller runs the operator in one of its modes.
//
// cmd/main.go is a link to this file: operator-sdk wants to see it there.
package main

import (
	"fmt"
	"os"

	"github.com/podconfigmap/podconfigmap-controller/internal/command"
)

func main() {
	if err := command.New().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "podconfigmap-controller:", err)
		os.Exit(1)
	}
}
