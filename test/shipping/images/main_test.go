// SPDX-License-Identifier: Apache-2.0

// Package images looks at the images and the release as their users get them.
package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// Not those of the tree, so that those would be noticed.
const (
	version    = "9.8.7-test.1"
	repository = "registry.example.com/team/operator"
)

// tree is a copy of the working tree, committed in a repository of its own.
type tree struct {
	root   string
	commit string
}

// trees are two copies of one commit in folders of different depth.
var trees = sync.OnceValues(func() ([]tree, error) {
	top, err := os.MkdirTemp("", "images-")
	if err != nil {
		return nil, err
	}
	var all []tree
	for _, folder := range []string{"one", "another/below/it"} {
		t := tree{root: filepath.Join(top, folder)}
		if err := t.fill(); err != nil {
			return nil, fmt.Errorf("copying the tree: %w", err)
		}
		all = append(all, t)
	}
	return all, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if all, err := trees(); err == nil {
		if err := os.RemoveAll(filepath.Dir(all[0].root)); err != nil {
			fmt.Fprintln(os.Stderr, "removing the copies of the tree:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// fill copies what git would commit now, with the times of the files, so that
// make finds the tools in bin/ as new as they are.
func (t *tree) fill() error {
	root, err := harness.Root()
	if err != nil {
		return err
	}
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	names, err := list.Output()
	if err != nil {
		return fmt.Errorf("listing the tree's files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if err := copyFile(filepath.Join(root, name), filepath.Join(t.root, name)); err != nil {
			return err
		}
	}
	if err := os.Symlink(filepath.Join(root, "bin"), filepath.Join(t.root, "bin")); err != nil {
		return err
	}
	if _, err := t.run("git", "init", "-q"); err != nil {
		return err
	}
	// .gitignore knows it as a folder.
	if err := os.WriteFile(filepath.Join(t.root, ".git", "info", "exclude"), []byte("/bin\n"), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-qm", "All"}} {
		if _, err := t.run("git", args...); err != nil {
			return err
		}
	}
	out, err := t.run("git", "rev-parse", "HEAD")
	t.commit = strings.TrimSpace(out)
	return err
}

func copyFile(from, to string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted, and that is not committed yet
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, text, info.Mode().Perm()); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// run runs a program in the tree, as somebody with settings of their own. The
// commit is the same in every copy: who made it, and when, are fixed.
func (t *tree) run(program string, args ...string) (string, error) {
	command := exec.Command(program, args...)
	command.Dir = t.root
	command.Env = append(os.Environ(),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@example.com", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z",
		"GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@example.com", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z",
		"MAKEFLAGS=", "TZ=Pacific/Chatham", "LC_ALL=C")
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s in %s: %w\n%s", program, strings.Join(args, " "), t.root, err, out)
	}
	return string(out), nil
}

func (t *tree) make(targets ...string) error {
	_, err := t.run("make", append(targets, "VERSION="+version, "IMAGE_REPOSITORY="+repository)...)
	return err
}

// built are the two trees with their images and SBOMs, each made by its own
// Makefile.
var built = sync.OnceValues(func() ([]tree, error) {
	all, err := trees()
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if err := t.make("image", "sbom"); err != nil {
			return nil, err
		}
	}
	return all, nil
})

// layout is where the image of a tree is.
func (t *tree) layout() string { return filepath.Join(t.root, "build", "images", "operator") }

func mustBuild(t *testing.T) []tree {
	t.Helper()
	for _, name := range []string{"image", "sbom"} {
		if _, err := os.Stat(tool(t, name)); err != nil {
			t.Fatalf("a tool is not built, run `make bin/%s`: %v", name, err)
		}
	}
	all, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func tool(t *testing.T, name string) string {
	t.Helper()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "bin", name)
}
