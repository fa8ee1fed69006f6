// SPDX-License-Identifier: Apache-2.0

// Command cmd runs a cluster until interrupted:
//
//	cmd [-nodes N] [-logs DIR] [-image TAR]...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o := cluster.Options{Progress: os.Stderr}
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	flags.IntVar(&o.Nodes, "nodes", 3, "how many nodes")
	flags.StringVar(&o.Logs, "logs", "", "folder for the logs, which stays; by default they go with the cluster")
	flags.Func("image", "tar of an image that every node gets (repeatable)", func(tar string) error {
		o.Images = append(o.Images, tar)
		return nil
	})
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return errors.Join(err, surplus(flags.Args()))
	}
	c, err := cluster.Start(ctx, o)
	if err != nil {
		return err
	}
	show(c)
	<-ctx.Done()
	fmt.Fprintln(os.Stderr, "stopping")
	return c.Stop()
}

func surplus(args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("it takes no argument %q", args[0])
}

// show tells what one can do with the cluster.
func show(c *cluster.Cluster) {
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig())
	for _, n := range c.Nodes() {
		fmt.Printf("nsenter -a -t %d   # a shell on %s\n", n.PID(), n.Name)
	}
	fmt.Fprintf(os.Stderr, "logs are in %s; Ctrl-C stops the cluster\n", c.Logs())
}
