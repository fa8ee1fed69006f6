// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// programs are those that this process has built, by their names.
var programs struct {
	sync.Mutex
	byName map[string]func() (string, error)
}

// Program builds the program of a package, whose path is relative to the repository's
// root, and returns where it is. It stays there: while its sources stay as they are, no
// other process links it again. The error has what the compiler said.
func Program(pkg string) (path string, err error) {
	return buildOnce(programName(pkg), pkg)
}

// operator is the operator with these build tags (separated by commas; empty: as it
// ships). It follows RACE=true of the environment, so that the race detector can watch
// the operator, too, and COVER_PACKAGES, so that what it runs counts as covered.
func operator(tags string) (path string, err error) {
	name, flags := programName("."), []string(nil)
	if tags != "" {
		name += "-" + strings.ReplaceAll(tags, ",", "-")
		flags = append(flags, "-tags", tags)
	}
	if os.Getenv("RACE") == "true" {
		name += "-race"
		flags = append(flags, "-race")
	}
	if covered := os.Getenv("COVER_PACKAGES"); covered != "" {
		name += "-cover"
		flags = append(flags, "-cover", "-coverpkg="+covered)
	}
	return buildOnce(name, ".", flags...)
}

func programName(pkg string) string {
	if pkg == "." {
		return "podconfigmap-controller"
	}
	return filepath.Base(pkg)
}

func buildOnce(name, pkg string, flags ...string) (path string, err error) {
	programs.Lock()
	if programs.byName == nil {
		programs.byName = map[string]func() (string, error){}
	}
	if programs.byName[name] == nil {
		programs.byName[name] = sync.OnceValues(func() (string, error) { return build(name, pkg, flags) })
	}
	built := programs.byName[name]
	programs.Unlock()
	return built()
}

func build(name, pkg string, flags []string) (path string, err error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(root, "bin", "test")
	unlock, err := lock(folder)
	if err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	path = filepath.Join(folder, name)
	command := exec.Command("go", append(append([]string{"build", "-buildvcs=false", "-ldflags=-w"}, flags...), "-o", path, pkg)...)
	command.Dir = root
	if said, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, said)
	}
	return path, nil
}

// lock waits until no other process builds into the folder.
func lock(folder string) (unlock func() error, err error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", file.Name(), err), file.Close())
	}
	return file.Close, nil
}
