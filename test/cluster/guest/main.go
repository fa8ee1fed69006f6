// SPDX-License-Identifier: Apache-2.0

// Command guest is the first process of a cluster's virtual machines.
//
//	guest            as process 1: furnish the machine, and serve orders
//	guest objects    tell what BPF objects the kernel has, as JSON
package main

import (
	"fmt"
	"os"

	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
)

func main() {
	if err := cluster.BeGuest(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}
