// SPDX-License-Identifier: Apache-2.0

// Command run is `make run`: it runs the operator for somebody who wants to see
// it work.
//
// Without KUBECONFIG it starts a cluster with one real node, or where the machine
// does not allow that a control plane alone, applies the sample, and shows how
// ConfigMaps follow pods; with EBPF_ENABLED=true also what the node agent's programs
// do, in this machine's kernel. With KUBECONFIG it runs the operator against that
// cluster, and on exit removes what it created there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

// options are what the user chooses.
type options struct {
	kubeconfig string
	once       bool // end after the tour
	node       string
	image      string // tar of the operator's, for a real node
	sample     bool   // apply the sample to the cluster of kubeconfig
	binary     string
	samples    string // folder
	log        string // of the manager
	patience   time.Duration
}

const usage = `usage: make run [ONCE=true] [NODE=false] [EBPF_ENABLED=true] [KUBECONFIG=FILE [SAMPLE=true]]

The environment:
  KUBECONFIG    the cluster to work on; without it, one on this machine
  NODE          false: there is no real node in it, and its pods are pretended to run;
                true: there is one, or an error; by default, where the machine can
  ONCE          true: end after the tour, with an error if anything did not appear
  SAMPLE        true: apply config/samples to the cluster of KUBECONFIG
  EBPF_ENABLED  true: run the node agent, too: as root, on the real node, or without
                one for pods that are processes of this machine; with KUBECONFIG,
                the manager deploys agents to that cluster's nodes
and every variable of docs/settings.md, for the manager.

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// From the first signal on, the next one ends this program as usual.
	context.AfterFunc(ctx, stop)
	ctrl.SetLogger(logr.Discard())
	err := realMain(ctx)
	switch {
	case err == nil:
	case errors.Is(err, errInterrupted):
		fmt.Fprintln(os.Stderr, "run: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

func realMain(ctx context.Context) error {
	o, err := readOptions(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return run(ctx, o, newConsole(os.Stdout))
}

func readOptions(args []string, getenv func(string) string) (*options, error) {
	o := &options{kubeconfig: getenv("KUBECONFIG")}
	for name, value := range map[string]*bool{"ONCE": &o.once, "SAMPLE": &o.sample} {
		text := getenv(name)
		if text == "" {
			continue
		}
		var err error
		if *value, err = strconv.ParseBool(text); err != nil {
			return nil, fmt.Errorf("reading %s=%q: use true or false", name, text)
		}
	}
	if err := o.readNode(getenv("NODE")); err != nil {
		return nil, err
	}
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.binary, "manager", "bin/podconfigmap-controller", "the operator's program")
	flags.StringVar(&o.image, "image", "", "tar of the operator's image for a real node; by default it is built")
	flags.StringVar(&o.samples, "samples", "config/samples", "folder of the sample, with a kustomization.yaml")
	flags.StringVar(&o.log, "log", "build/run/manager.log", "file for the manager's log")
	flags.DurationVar(&o.patience, "patience", 2*time.Minute, "how long anything may take to appear")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("reading the arguments: %q is not expected", flags.Arg(0))
	}
	return o, nil
}

// What NODE says.
const (
	nodeMaybe  = ""
	nodeNever  = "false"
	nodeAlways = "true"
)

func (o *options) readNode(text string) error {
	if text == "" {
		o.node = nodeMaybe
		return nil
	}
	wanted, err := strconv.ParseBool(text)
	if err != nil {
		return fmt.Errorf("reading NODE=%q: use true or false", text)
	}
	o.node = nodeNever
	if wanted {
		o.node = nodeAlways
	}
	return nil
}
