// SPDX-License-Identifier: Apache-2.0

// Command cmd builds the local control plane, or runs it until interrupted:
//
//	go run ./test/controlplane/cmd build [PROGRAM…]
//	go run ./test/controlplane/cmd build-runtime
//	go run ./test/controlplane/cmd build-dns
//	go run ./test/controlplane/cmd up [-dir DIR] [-- API-SERVER-FLAGS]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

const usage = `usage:
  build [PROGRAM...]               build what is missing; PROGRAM: kube-scheduler, kubelet, kube-proxy
  build-runtime                    the same for containerd, runc and network plugins
  build-dns                        the same for CoreDNS
  up [-dir DIR] [-- APISERVER-FLAGS]  run a control plane until interrupted
`

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("reading the arguments: no command\n%s", usage)
	}
	switch args[0] {
	case "build":
		return build(func() (string, error) { return controlplane.Build(ctx, os.Stderr, args[1:]...) })
	case "build-runtime":
		return build(func() (string, error) { return controlplane.BuildRuntime(ctx, os.Stderr) })
	case "build-dns":
		return build(func() (string, error) { return controlplane.BuildDNS(ctx, os.Stderr) })
	case "up":
		return up(ctx, args[1:])
	}
	return fmt.Errorf("reading the arguments: unknown command %q\n%s", args[0], usage)
}

// build prints the folder of the programs on standard output, and all else on
// standard error.
func build(programs func() (string, error)) error {
	folder, err := programs()
	if err != nil {
		return err
	}
	fmt.Println(folder)
	return nil
}

func up(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	dir := flags.String("dir", "", "folder of data, credentials and logs, kept; a temporary one if empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := controlplane.Start(ctx, controlplane.Options{
		Dir:               *dir,
		ControllerManager: true,
		APIServerFlags:    flags.Args(),
		Progress:          os.Stderr,
	})
	if err != nil {
		return err
	}
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig())
	fmt.Fprintf(os.Stderr, "logs are in %s; Ctrl-C stops it\n", c.Logs())
	<-ctx.Done()
	fmt.Fprintln(os.Stderr, "stopping")
	return c.Stop()
}
