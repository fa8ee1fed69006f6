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
	"path/filepath"
	"strings"
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
	// scratch is the folder of temporary files. ctx ends when the tests are interrupted.
	scratch string
	ctx     context.Context
	asked   *asked
	// patience is more than the usual where nodes are slow.
	patience time.Duration
}

var shared *world

var nodes = flag.Int("nodes", 3, "how many nodes the cluster has: 3 or more, but for TestVirtualNode, which takes 1")

// grace is how long tests may take to end after an interrupt, and to clean up.
const grace = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	ctrllog.SetLogger(logr.Discard())
	os.Exit(harness.Orderly("e2e", func(ctx context.Context) int {
		began := time.Now()
		defer func() { say("all of it took %s", time.Since(began).Round(100*time.Millisecond)) }()
		return harness.WithLogs("e2e", func(logs string) int { return run(ctx, m, logs) })
	}))
}

// run leaves the logs, and nothing else.
func run(ctx context.Context, m *testing.M, logs string) int {
	code, err := runTests(ctx, m, logs)
	if left, failed := cluster.Remains(); failed != nil || len(left) > 0 {
		err = errors.Join(err, failed, fmt.Errorf("left over: %s", strings.Join(left, ", ")))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	switch {
	case ctx.Err() != nil:
		return harness.Interrupted
	case err != nil:
		return max(code, 1)
	}
	return code
}

// runTests runs the tests on a cluster. Where they fail it adds to the logs what only the
// running cluster can tell.
func runTests(ctx context.Context, m *testing.M, logs string) (int, error) {
	w, err := newWorld(ctx, logs, os.TempDir())
	if err != nil {
		return 1, err
	}
	shared = w
	code := harness.RunTests(ctx, m, grace)
	if code != 0 {
		err = errors.Join(shared.dump(context.Background()), shared.keepPodLogs(context.Background()))
	}
	return code, errors.Join(err, shared.Stop())
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
