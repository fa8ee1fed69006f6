// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the operator as users get it, on real nodes: its image and chart
// of this tree, in a cluster of test/cluster. docs/testing.md tells how to run one
// part of it, and how to look around.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/helm"
)

// world is what all tests share.
type world struct {
	*cluster.Cluster
	client client.Client
	helm   *helm.Helm
	chart  string
	logs   string
	// scratch is a folder that goes at the end, also of tests that are interrupted;
	// then ctx ends.
	scratch string
	ctx     context.Context
	asked   *asked
	// patience is more than the usual where nodes are slow.
	patience time.Duration
}

var shared *world

var nodes = flag.Int("nodes", 3, "how many nodes the cluster has; at least 3")

func TestMain(m *testing.M) {
	flag.Parse()
	ctrllog.SetLogger(logr.Discard())
	os.Exit(run(m))
}

// run leaves the logs where something went wrong, and nothing else.
func run(m *testing.M) int {
	began := time.Now()
	logs, err := newLogs()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := 1
	home, err := os.MkdirTemp("", "e2e-")
	if err == nil {
		if shared, err = newWorld(ctx, logs, home); err == nil {
			code = runUnlessInterrupted(ctx, m)
			if code != 0 {
				err = shared.dump(context.Background())
			}
			err = errors.Join(err, shared.Stop())
		}
		err = errors.Join(err, os.RemoveAll(home))
	}
	if left, failed := cluster.Remains(); failed != nil || len(left) > 0 {
		err = errors.Join(err, failed, fmt.Errorf("left over: %s", strings.Join(left, ", ")))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	if code == 0 {
		if err := os.RemoveAll(logs); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			code = 1
		}
	} else {
		fmt.Fprintln(os.Stderr, "e2e: the logs are in", logs)
	}
	say("all of it took %s", time.Since(began).Round(100*time.Millisecond))
	return code
}

// runUnlessInterrupted gives up the tests where somebody interrupts them, so that
// what follows can clean up.
func runUnlessInterrupted(ctx context.Context, m *testing.M) int {
	code := make(chan int, 1)
	go func() { code <- m.Run() }()
	select {
	case c := <-code:
		return c
	case <-ctx.Done():
		say("interrupted")
		return 130
	}
}

func newLogs() (string, error) {
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	logs := filepath.Join(root, "build", "e2e", time.Now().UTC().Format("logs-20060102-150405"))
	return logs, os.MkdirAll(logs, 0o755)
}

func newWorld(ctx context.Context, logs, home string) (*world, error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	image := filepath.Join(root, "build", "cluster", "images", "podconfigmap-controller.tar")
	if _, err := os.Stat(image); err != nil {
		return nil, fmt.Errorf("looking for the operator's image: %w; build it by: make cluster-image", err)
	}
	w := &world{logs: logs, scratch: home, ctx: ctx, asked: &asked{}}
	w.Cluster, err = cluster.Start(ctx, cluster.Options{Nodes: *nodes, Images: []string{image}, Logs: logs, Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	if w.client, err = harness.NewClient(w.Config()); err == nil {
		w.helm, err = helm.New("helm", home, w.Kubeconfig())
	}
	if err == nil {
		w.chart, err = helm.Chart()
	}
	if err != nil {
		return nil, errors.Join(err, w.Stop())
	}
	return w, nil
}

// say tells what goes on to who waits.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "e2e: "+format+"\n", args...) }
