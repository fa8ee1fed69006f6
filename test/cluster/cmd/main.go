// SPDX-License-Identifier: Apache-2.0

// Command cmd runs a cluster until interrupted:
//
//	cmd [-nodes N] [-virtual SERIES] [-kwok N] [-logs DIR] [-image TAR]...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// options are what the user chooses.
type options struct {
	cluster.Options
	keep    bool   // the logs
	virtual string // series of a virtual node's kernel; empty: no such node
	kwok    int    // how many nodes kwok keeps
}

func main() { os.Exit(realMain(os.Args[1:])) }

// realMain returns 0 after an interrupt, too, where nothing is left.
func realMain(args []string) int {
	o, err := read(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 2
	}
	return harness.Orderly("cluster", func(ctx context.Context) int {
		if o.keep {
			return code(run(ctx, o))
		}
		return harness.WithLogs("cluster", func(logs string) int {
			o.Logs = logs
			return code(run(ctx, o))
		})
	})
}

func code(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	return 0
}

func read(args []string) (*options, error) {
	o := &options{Options: cluster.Options{Progress: os.Stderr}}
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	flags.IntVar(&o.Nodes, "nodes", 3, "how many nodes")
	flags.StringVar(&o.virtual, "virtual", "", "series of Debian's kernel, such as 6.1, that one more node has, in QEMU")
	flags.IntVar(&o.kwok, "kwok", 0, "how many nodes more there are on which kwok pretends that pods run")
	flags.StringVar(&o.Logs, "logs", "", "folder for the logs, which stays; by default one in build/cluster, which goes with the cluster")
	flags.Func("image", "tar of an image that every node gets (repeatable)", func(tar string) error {
		o.Images = append(o.Images, tar)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("it takes no argument %q", flags.Arg(0))
	}
	if o.kwok < 0 {
		return nil, fmt.Errorf("-kwok=%d: give 0 or more", o.kwok)
	}
	o.keep = o.Logs != ""
	return o, nil
}

func run(ctx context.Context, o *options) error {
	c, err := cluster.Start(ctx, o.Options)
	if err != nil {
		return err
	}
	if err := addNodes(ctx, c, o); err != nil {
		if ctx.Err() != nil {
			return c.Stop() // it was interrupted
		}
		return errors.Join(err, c.Stop())
	}
	fmt.Fprintf(os.Stderr, "the logs are in %s, and %s; Ctrl-C stops the cluster\n", c.Logs(), o.fate())
	<-ctx.Done()
	return c.Stop()
}

// fate is that of the logs.
func (o *options) fate() string {
	if o.keep {
		return "stay"
	}
	return "go with the cluster (LOGS= keeps them)"
}

// addNodes tells what one can do with the cluster, and adds what comes to it beside real
// nodes, of which a virtual one takes minutes.
func addNodes(ctx context.Context, c *cluster.Cluster, o *options) error {
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig())
	for _, n := range c.Nodes() {
		fmt.Printf("nsenter -a -t %d   # a shell on %s\n", n.PID(), n.Name)
	}
	if o.kwok > 0 {
		if err := c.StartKwokNodes(ctx, o.kwok); err != nil {
			return err
		}
		fmt.Printf("# for pods on kwok's nodes: tolerations: [{key: %s, operator: Exists}], nodeSelector: {type: kwok}\n", cluster.KwokKey)
	}
	if o.virtual == "" {
		return nil
	}
	n, err := c.StartVirtualNode(ctx, o.virtual)
	if err != nil {
		return err
	}
	fmt.Printf("# for pods on %s: tolerations: [{key: %s, operator: Exists}], nodeName: %s\n", n.Name, cluster.VirtualTaint, n.Name)
	return nil
}
