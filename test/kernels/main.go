// SPDX-License-Identifier: Apache-2.0

// Command kernels runs the tests of the eBPF programs on real kernels of Debian, in
// QEMU without hardware support:
//
//	go run ./test/kernels [-kernels SERIES,…] [-only JOB[=TESTS]] [-doc FILE] [-out DIR]
//
// Kernels come from the mirror that the machine's apt knows, and are kept in the
// user's cache. Each is booted with a file system in memory that holds the guest, the
// packages' test binaries and the modules for a network between pods; no root file
// system, no network of the host. Anything that is not as it must be on any kernel
// makes the command fail.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

type options struct {
	series         []string
	doc, out, only string
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var o options
	series := flag.String("kernels", strings.Join(allSeries, ","), "the series of kernels to test")
	flag.StringVar(&o.only, "only", "", "JOB or JOB=TESTS, a pattern: run only these, in the machine's log, and judge nothing")
	flag.StringVar(&o.doc, "doc", "", "the table to write, in Markdown")
	flag.StringVar(&o.out, "out", "build/kernels", "the folder for results and logs")
	flag.Parse()
	o.series = strings.Split(*series, ",")
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	kernels, err := getKernels(ctx, o.series)
	if err != nil {
		return fmt.Errorf("getting kernels: %w", err)
	}
	work, err := os.MkdirTemp("", "kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := compile(ctx, work); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	var results []*result
	for _, k := range kernels {
		r, err := testKernel(ctx, k, work, o)
		if err != nil {
			return fmt.Errorf("testing Linux %s: %w", k.version, err)
		}
		results = append(results, r)
	}
	return report(o, results)
}

func getKernels(ctx context.Context, series []string) ([]kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "podconfigmap-controller", "kernels")
	a, err := openArchive(ctx, filepath.Join(cache, "apt"))
	if err != nil {
		return nil, err
	}
	var kernels []kernel
	for _, s := range series {
		began := time.Now()
		k, err := getKernel(ctx, a, cache, s)
		if err != nil {
			return nil, err
		}
		fmt.Printf("%-7s Linux %s (%.1f s)\n", s, k.version, time.Since(began).Seconds())
		kernels = append(kernels, k)
	}
	return kernels, nil
}

// compile makes the static programs that run in the machines.
func compile(ctx context.Context, work string) error {
	build := func(args ...string) error {
		_, err := output(ctx, "", "env", append([]string{"CGO_ENABLED=0", "GOARCH=amd64", "go"}, args...)...)
		return err
	}
	if err := build("build", "-ldflags=-s -w", "-o", filepath.Join(work, "guest"), "./test/kernels/guest"); err != nil {
		return err
	}
	for _, job := range jobOrder {
		if err := build("test", "-c", "-ldflags=-s -w", "-o", filepath.Join(work, job), "./"+jobs[job]); err != nil {
			return err
		}
	}
	return nil
}

// testKernel boots a kernel and returns what became of everything.
func testKernel(ctx context.Context, k kernel, work string, o options) (*result, error) {
	var release [2]int
	if _, err := fmt.Sscanf(k.version, "%d.%d", &release[0], &release[1]); err != nil {
		return nil, fmt.Errorf("reading the version %q: %w", k.version, err)
	}
	todo := plan(release)
	if o.only != "" {
		todo = some(todo, o.only)
	}
	initrd := filepath.Join(work, "initramfs")
	if err := writeInitramfs(initrd, k, work, todo); err != nil {
		return nil, err
	}
	name := filepath.Join(o.out, fmt.Sprintf("%d.%d", release[0], release[1]))
	log, err := os.Create(name + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r := newResult(k, log)
	if err := boot(ctx, k, initrd, name+".console", r.receive); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.problem("%v (see %s.console)", err, name)
	}
	if o.only == "" {
		r.judge(todo)
	}
	state := "ok"
	if len(r.Problems) > 0 {
		state = "FAILED\n  " + strings.Join(r.Problems, "\n  ")
	}
	fmt.Printf("%-12s %d tests, %d trials, %.0f s: %s\n", r.number(), len(r.Tests), len(r.Trials), time.Since(r.began).Seconds(), state)
	return r, nil
}

// writeInitramfs makes the machine's file system.
func writeInitramfs(path string, k kernel, work string, todo wire.Jobs) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(fillInitramfs(newInitramfs(file), k, work, todo), file.Close())
}

func report(o options, results []*result) error {
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.out, "results.json"), text, 0o644); err != nil {
		return err
	}
	for _, r := range results {
		if len(r.Problems) > 0 {
			err = errors.Join(err, fmt.Errorf("linux %s: %d problems", r.number(), len(r.Problems)))
		}
	}
	if err != nil || o.doc == "" {
		return err
	}
	file, err := os.Create(o.doc)
	if err != nil {
		return err
	}
	return errors.Join(document(file, results), file.Close())
}
