// SPDX-License-Identifier: Apache-2.0

// Command kernels runs the tests of the eBPF programs on real kernels of Debian, in
// QEMU without hardware support:
//
//	go run ./test/kernels [-kernels SERIES,…] [-only JOB[=TESTS]] [-append ARGUMENTS]
//		[-check FILE | -doc FILE] [-out DIR [-reuse]]
//
// Kernels come from the mirror that the machine's apt knows, and are kept in the
// user's cache. Each is booted with a file system in memory that holds the guest, the
// packages' test binaries and the modules for a network between pods; no root file
// system, no network of the host. Anything that is not as it must be on any kernel
// makes the command fail, and so does a page of results that says otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

type options struct {
	series                           []string
	only, arguments, check, doc, out string
	reuse                            bool
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var o options
	series := flag.String("kernels", strings.Join(allSeries, ","), "the series of kernels to test")
	flag.StringVar(&o.only, "only", "", "JOB or JOB=TESTS, a pattern: run only these, in the machine's log, and judge nothing")
	flag.StringVar(&o.arguments, "append", "", "more arguments for the kernel, such as preempt=full")
	flag.StringVar(&o.check, "check", "", "the table that must say what is found, in Markdown")
	flag.StringVar(&o.doc, "doc", "", "the table to write, in Markdown")
	flag.StringVar(&o.out, "out", "build/kernels", "the folder for results and logs")
	flag.BoolVar(&o.reuse, "reuse", false, "take what is in the folder of results where the same kernel has done the same well before")
	flag.Parse()
	o.series = strings.Split(*series, ",")
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// partial tells that the run is not the one that the page of results is about.
func (o *options) partial() bool {
	return !o.whole() || !slices.Equal(o.series, allSeries)
}

func run(ctx context.Context, o options) error {
	if o.partial() && (o.check != "" || o.doc != "") {
		return errors.New("the page of results is about all kernels and tests: leave out -check and -doc, or -kernels, -only and -append")
	}
	if _, err := exec.LookPath(vm.QEMU); err != nil {
		return fmt.Errorf("%w: apt-get install qemu-system-x86", err)
	}
	kernels, err := vm.Kernels(ctx, os.Stdout, o.series...)
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
			return fmt.Errorf("testing Linux %s: %w", k.Version, err)
		}
		results = append(results, r)
	}
	return report(o, results)
}

// compile makes the static programs that run in the machines.
func compile(ctx context.Context, work string) error {
	build := func(args ...string) error {
		_, err := vm.Output(ctx, "", "env", append([]string{"CGO_ENABLED=0", "GOARCH=amd64", "go"}, args...)...)
		return err
	}
	if err := build("build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(work, "guest"), "./test/kernels/guest"); err != nil {
		return err
	}
	for _, job := range jobOrder {
		if err := build("test", "-c", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(work, job), "./"+jobs[job]); err != nil {
			return err
		}
	}
	return nil
}

// testKernel boots a kernel and returns what became of everything.
func testKernel(ctx context.Context, k vm.Kernel, work string, o options) (*result, error) {
	var release [2]int
	if _, err := fmt.Sscanf(k.Version, "%d.%d", &release[0], &release[1]); err != nil {
		return nil, fmt.Errorf("reading the version %q: %w", k.Version, err)
	}
	todo := plan(release)
	if o.only != "" {
		todo = some(todo, o.only)
	}
	initrd := filepath.Join(work, "initramfs")
	if err := writeInitramfs(initrd, k, work, todo); err != nil {
		return nil, err
	}
	digest, err := digestOf(initrd, k.Image())
	if err != nil {
		return nil, err
	}
	name := filepath.Join(o.out, fmt.Sprintf("%d.%d", release[0], release[1]))
	if o.whole() && o.reuse {
		if r, err := reusable(name+".json", digest); r != nil || err != nil {
			return r, err
		}
	}
	r, err := o.boot(ctx, k, release, initrd, name)
	if err != nil {
		return nil, err
	}
	if o.whole() {
		r.Digest = digest
		r.judge(todo)
		err = r.save(name + ".json")
	}
	fmt.Println(r.line(time.Since(r.began)))
	return r, err
}

// whole tells that each kernel does all that there is, as it is.
func (o *options) whole() bool { return o.only == "" && o.arguments == "" }

// boot runs a kernel, and writes files whose names begin with name.
func (o *options) boot(ctx context.Context, k vm.Kernel, release [2]int, initrd, name string) (*result, error) {
	log, err := os.Create(name + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r := newResult(k, release, log)
	if err := boot(ctx, k, initrd, name+".console", o.arguments, r.receive); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.problem("%v (see %s.console)", err, name)
	}
	return r, nil
}

// writeInitramfs makes the machine's file system.
func writeInitramfs(path string, k vm.Kernel, work string, todo wire.Jobs) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(fillInitramfs(vm.NewInitramfs(file), k, work, todo), file.Close())
}

// report returns what is wrong with the results, or else writes or checks the page.
func report(o options, results []*result) (err error) {
	for _, r := range results {
		if len(r.Problems) > 0 {
			err = errors.Join(err, fmt.Errorf("linux %s: %d problems", r.number(), len(r.Problems)))
		}
	}
	switch {
	case err != nil:
		return err
	case o.check != "":
		return agree(o.check, results)
	case o.doc == "":
		return nil
	}
	file, err := os.Create(o.doc)
	if err != nil {
		return err
	}
	return errors.Join(document(file, results), file.Close())
}
