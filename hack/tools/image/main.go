// SPDX-License-Identifier: Apache-2.0

// Command image makes OCI images from files, without Docker, and brings them to
// registries and back. Whoever builds the same files gets the same digest.
//
//	image build [flags]       make an image from files and folders
//	image push [flags] REF... push a layout, or a tar of one, to registries
//	image pull [flags] REF    fetch an image into a layout or a tar
//
// Each prints the image's digest. `image COMMAND -h` lists a command's flags; it
// is documented in docs/release.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	commands := map[string]func(context.Context, []string) (v1.ImageIndex, error){
		"build": runBuild,
		"push":  runPush,
		"pull":  runPull,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		return errors.New("name a command: build, push or pull")
	}
	index, err := commands[args[0]](ctx, args[1:])
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return fmt.Errorf("reading the image's digest: %w", err)
	}
	_, err = fmt.Fprintln(out, digest)
	return err
}

func runBuild(ctx context.Context, args []string) (v1.ImageIndex, error) {
	var (
		flags    = newFlags("build", "")
		r        recipe
		target   target
		labels   []string
		platform []string
		created  string
	)
	flags.Func("add", "DEST=SOURCE: put a file, or what a folder holds, at DEST; {os} and {arch} in SOURCE stand for the platform's (repeatable)", r.add)
	flags.Func("platform", "OS/ARCH[,OS/ARCH]: the platforms (default linux/amd64,linux/arm64)", list(&platform))
	flags.Func("label", "KEY=VALUE: a label; org.opencontainers.image.* become annotations, too (repeatable)", each(&labels))
	flags.StringVar(&r.labelsFrom, "labels-from", "", "a YAML file whose map \"annotations\" becomes labels, such as a bundle's metadata/annotations.yaml")
	flags.Func("entrypoint", "a word of the command to run (repeatable)", each(&r.config.Entrypoint))
	flags.Func("cmd", "a default argument of it (repeatable)", each(&r.config.Cmd))
	flags.Func("env", "NAME=VALUE: an environment variable (repeatable)", each(&r.config.Env))
	flags.StringVar(&r.config.User, "user", "65532:65532", "UID:GID that runs it")
	flags.StringVar(&r.config.WorkingDir, "workdir", "", "the working directory")
	flags.StringVar(&created, "created", os.Getenv("SOURCE_DATE_EPOCH"), "when it was made, in seconds since 1970; every file in it gets this time (default $SOURCE_DATE_EPOCH, or 0)")
	target.register(flags)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("build takes no argument %q", flags.Arg(0))
	}
	if target.empty() {
		return nil, errors.New("say where the image goes: -layout, -tar or -push")
	}
	if err := errors.Join(r.setCreated(created), r.setPlatforms(platform), r.setLabels(labels)); err != nil {
		return nil, err
	}
	index, err := r.build()
	if err != nil {
		return nil, err
	}
	return index, target.deliver(ctx, index)
}

func runPush(ctx context.Context, args []string) (v1.ImageIndex, error) {
	var (
		flags  = newFlags("push", "REF...")
		from   string
		target target
	)
	flags.StringVar(&from, "from", "", "the layout, or the tar of one, that holds the image")
	target.registerRemote(flags)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if from == "" || flags.NArg() == 0 {
		return nil, errors.New("push wants -from and at least one reference to push to")
	}
	index, clean, err := load(from)
	if err != nil {
		return nil, err
	}
	defer clean()
	target.references = flags.Args()
	return index, target.deliver(ctx, index)
}

func runPull(ctx context.Context, args []string) (v1.ImageIndex, error) {
	var (
		flags  = newFlags("pull", "REF")
		target target
	)
	target.register(flags)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() != 1 || target.empty() {
		return nil, errors.New("pull wants one reference, and -layout, -tar or -push for what it fetches")
	}
	// A reference by digest names nothing that an import could be called.
	if tag, err := name.NewTag(flags.Arg(0)); err == nil && target.name == "" {
		target.name = tag.Name()
	}
	index, err := target.fetch(ctx, flags.Arg(0))
	if err != nil {
		return nil, err
	}
	return index, target.deliver(ctx, index)
}

func newFlags(command, arguments string) *flag.FlagSet {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "Usage: image %s [flags] %s\n", command, arguments)
		flags.PrintDefaults()
	}
	return flags
}

// each collects the values of a flag that may be given several times.
func each(values *[]string) func(string) error {
	return func(value string) error {
		*values = append(*values, value)
		return nil
	}
}

// list collects the values of a flag that takes several, with commas between.
func list(values *[]string) func(string) error {
	return func(value string) error {
		*values = append(*values, strings.Split(value, ",")...)
		return nil
	}
}

func (r *recipe) setCreated(seconds string) error {
	if seconds == "" {
		seconds = "0"
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("-created (or SOURCE_DATE_EPOCH) is %q: give whole seconds since 1970", seconds)
	}
	r.created = time.Unix(n, 0).UTC()
	return nil
}
