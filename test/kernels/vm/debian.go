// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// metaPackage depends on the newest kernel of its suite. The cloud flavour is the
// same kernel with fewer drivers.
const metaPackage = "linux-image-cloud-amd64"

// suites are those that kernels come from.
var suites = []string{"bullseye", "bookworm", "bookworm-backports", "trixie-backports", "sid"}

// archive is an apt of its own, which knows these suites and has nothing to do with
// the machine's packages beyond its mirror and its keys.
type archive struct{ dir string }

// openArchive fetches what the mirror says it has.
func openArchive(ctx context.Context, dir string) (*archive, error) {
	mirror, err := mirrorOf(ctx)
	if err != nil {
		return nil, err
	}
	a := &archive{dir: dir}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	const keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
	var sources strings.Builder
	for _, suite := range suites {
		fmt.Fprintf(&sources, "deb [arch=amd64 signed-by=%s] %s %s main\n", keys, mirror, suite)
	}
	if err := os.WriteFile(a.sources(), []byte(sources.String()), 0o644); err != nil {
		return nil, err
	}
	_, err = a.apt(ctx, "", "apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
	return a, err
}

func (a *archive) sources() string { return filepath.Join(a.dir, "sources.list") }

// apt runs a program of apt in this archive, in a working directory.
func (a *archive) apt(ctx context.Context, dir, program string, args ...string) (string, error) {
	options := []string{
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"), "-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Dir::Etc::SourceList=" + a.sources(), "-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=root",
	}
	return Output(ctx, dir, program, append(options, args...)...)
}

// mirrorOf returns the address of the mirror that the machine's own sources name for
// its own release.
func mirrorOf(ctx context.Context) (string, error) {
	text, err := Output(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages", "Origin: Debian")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		// Not those of updates and security.
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[2] == "main" && !strings.Contains(fields[1], "-") {
			return fields[0], nil
		}
	}
	return "", errors.New("apt's sources name no mirror of Debian (see apt-get indextargets; apt-get update)")
}

// stanza is a package as apt-cache shows it.
type stanza struct{ name, version, depends string }

// show returns all versions of a package.
func (a *archive) show(ctx context.Context, name string) ([]stanza, error) {
	text, err := a.apt(ctx, "", "apt-cache", "show", name)
	return parseStanzas(text), err
}

func parseStanzas(text string) []stanza {
	var list []stanza
	for _, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		var s stanza
		for line := range strings.Lines(paragraph) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch key {
			case "Package":
				s.name = value
			case "Version":
				s.version = value
			case "Depends":
				s.depends = value
			}
		}
		if s.version != "" {
			list = append(list, s)
		}
	}
	return list
}

// newest returns the newest version of the kernel whose version has the prefix.
func (a *archive) newest(ctx context.Context, prefix string) (stanza, error) {
	list, err := a.show(ctx, metaPackage)
	if err != nil {
		return stanza{}, err
	}
	var best stanza
	for _, s := range list {
		if !strings.HasPrefix(s.version, prefix) {
			continue
		}
		if best.version == "" || exec.CommandContext(ctx, "dpkg", "--compare-versions", s.version, "gt", best.version).Run() == nil {
			best = s
		}
	}
	if best.version == "" {
		return best, fmt.Errorf("the mirror has no kernel %s", prefix)
	}
	return best, nil
}

// parts are the packages that a kernel is made of: one, or several from Linux 7 on.
var parts = regexp.MustCompile(`\blinux-(?:image|binary|modules)-[0-9][^ ,]*-cloud-amd64\b`)

// packages returns the names of all packages of a kernel, given its meta package.
func (a *archive) packages(ctx context.Context, meta stanza) ([]string, error) {
	var list []string
	for queue := parts.FindAllString(meta.depends, -1); len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if slices.Contains(list, name) {
			continue
		}
		list = append(list, name)
		found, err := a.show(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, s := range found {
			queue = append(queue, parts.FindAllString(s.depends, -1)...)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s %s depends on no kernel: %q", meta.name, meta.version, meta.depends)
	}
	return list, nil
}

// fetch downloads packages and unpacks them all below one directory.
func (a *archive) fetch(ctx context.Context, packages []string, dir string) error {
	downloads, err := os.MkdirTemp(a.dir, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(downloads)
	if _, err := a.apt(ctx, downloads, "apt-get", append([]string{"download", "-q"}, packages...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(downloads, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if _, err := Output(ctx, "", "dpkg-deb", "-x", file, dir); err != nil {
			return err
		}
	}
	return nil
}

// Output runs a program in a directory and returns what it wrote; an error has what
// it said.
func Output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}
