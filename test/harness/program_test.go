// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// small is a program that is soon built.
const small = "./hack/run/machine/check"

func TestProgramIsBuiltOnce(t *testing.T) {
	path, err := Program(small)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(path) != "check" {
		t.Errorf("it is %s", path)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// As another process does.
	if again, err := build("check", small, nil); err != nil || again != path {
		t.Fatalf("built again it is %q: %v", again, err)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || before.Size() != after.Size() {
		t.Error("it was written again")
	}
	// What it says of this machine is not the question.
	exit := (*exec.ExitError)(nil)
	if err := exec.Command(path).Run(); err != nil && !errors.As(err, &exit) {
		t.Errorf("it cannot be run: %v", err)
	}
}

func TestProgramThatIsNone(t *testing.T) {
	_, err := Program("./no/such/package")
	if err == nil || !strings.Contains(err.Error(), "building package: exit status 1\n") || !strings.Contains(err.Error(), "no/such/package") {
		t.Errorf("the error is %v", err)
	}
}

func TestOneBuildAtATime(t *testing.T) {
	folder := t.TempDir()
	unlock, err := lock(folder)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		unlock, err := lock(folder)
		if err == nil {
			err = unlock()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("a second build did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
	if _, err := lock(filepath.Join(folder, ".lock")); err == nil {
		t.Error("a file was locked as a folder")
	}
}
