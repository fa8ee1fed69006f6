// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// roleVariable tells a process that this package started what it is.
const roleVariable = "PODCONFIGMAP_SANDBOX_ROLE"

const (
	rolePeer    = "peer"
	roleJanitor = "janitor"
)

// init turns a process that this package started into what it was started for,
// before any other code of the test binary.
func init() {
	switch os.Getenv(roleVariable) {
	case rolePeer:
		servePeer()
	case roleJanitor:
		clean(os.Stdin)
	default:
		return
	}
	os.Exit(0)
}

// janitor is a process that removes what was registered once this one has ended,
// however it ended.
var janitor struct {
	sync.Mutex
	pipe *os.File
}

// register tells the janitor about something before it is made. kind is cgroup or
// mount.
func register(kind, path string) error {
	janitor.Lock()
	defer janitor.Unlock()
	if janitor.pipe == nil {
		pipe, err := startJanitor()
		if err != nil {
			return err
		}
		janitor.pipe = pipe
	}
	_, err := fmt.Fprintf(janitor.pipe, "%s %s\n", kind, path)
	return err
}

func startJanitor() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd, err := again(roleJanitor)
	if err != nil {
		return nil, err
	}
	cmd.Stdin = r
	// A session of its own: Ctrl-C is for the tests. No output: `go test` waits
	// until nobody holds it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return w, cmd.Process.Release()
}

// clean is the janitor: it reads what there will be until its parent is gone,
// and removes what is still there.
func clean(from *os.File) {
	var registered []string
	for lines := bufio.NewScanner(from); lines.Scan(); {
		registered = append(registered, lines.Text())
	}
	for _, line := range slices.Backward(registered) {
		switch kind, path, _ := strings.Cut(line, " "); kind {
		case "cgroup":
			_ = removeCgroup(path)
		case "mount":
			_ = removeMount(path)
		}
	}
}

// again is this program, to be started in a role.
func again(role string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Args = []string{"sandbox-" + role} // for who looks at the list of processes
	cmd.Env = []string{roleVariable + "=" + role, "GOTRACEBACK=all", "PATH=/"}
	return cmd, nil
}
