// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Interrupted is the code of a process that was interrupted.
const Interrupted = 130

// sweeper removes the folder $1 when nobody can write to its input any more. What had
// files there may take a moment to end.
const sweeper = `trap '' HUP INT TERM
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do
	rm -rf -- "$1" && exit 0
	sleep 1
done`

// Orderly calls do so that nothing of this process stays, however it ends:
//
//   - do's context ends with SIGINT, SIGTERM or SIGHUP, and when nobody reads this
//     process's output any more, as when `go test` was killed. What comes after the first
//     of these changes nothing: do has time to clean up.
//   - TMPDIR names a new folder, for t.TempDir and other programs, too. It is removed at
//     the end, and by a process that stays for that where this one is killed or panics.
//
// It returns do's code, or 1 if the folder cannot be made or removed. name is that of the
// folder and begins what is printed.
func Orderly(name string, do func(context.Context) int) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer watch(name, cancel)()
	remove, err := ownTemporaryFolder(name)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: making a folder for temporary files: %v\n", name, err)
		return 1
	}
	code := do(ctx)
	if err := remove(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: removing temporary files: %v\n", name, err)
		code = max(code, 1)
	}
	return code
}

// watch calls interrupt when somebody wants this process to end, and keeps signals from
// ending it until stop is called.
func watch(name string, interrupt func()) (stop func()) {
	signals, pipes, stopped := make(chan os.Signal, 8), make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// Not signal.Ignore: what is started here would inherit it.
	signal.Notify(pipes, syscall.SIGPIPE)
	tick := time.NewTicker(time.Second)
	go func() {
		for {
			select {
			case s := <-signals:
				fmt.Fprintf(os.Stderr, "%s: interrupted (%v): cleaning up\n", name, s)
				interrupt()
			case <-tick.C:
				if unread(os.Stdout) || unread(os.Stderr) {
					interrupt()
				}
			case <-stopped:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		signal.Stop(pipes)
		tick.Stop()
		close(stopped)
	}
}

// unread tells a pipe that nobody reads from.
func unread(file *os.File) bool {
	state := []unix.PollFd{{Fd: int32(file.Fd())}}
	_, err := unix.Poll(state, 0)
	return err == nil && state[0].Revents&unix.POLLERR != 0
}

// ownTemporaryFolder makes a folder and sets TMPDIR to it, and returns what undoes that.
func ownTemporaryFolder(name string) (func() error, error) {
	before, was := os.LookupEnv("TMPDIR")
	folder, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return nil, err
	}
	command := exec.Command("/bin/sh", "-c", sweeper, "sweeper", folder)
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for others
	pipe, err := command.StdinPipe()
	if err == nil {
		err = command.Start()
	}
	if err == nil {
		err = os.Setenv("TMPDIR", folder)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return func() error {
		restored := os.Unsetenv("TMPDIR")
		if was {
			restored = os.Setenv("TMPDIR", before)
		}
		return errors.Join(restored, os.RemoveAll(folder), pipe.Close(), command.Wait())
	}, nil
}

// RunTests runs the tests of a TestMain within Orderly. Where ctx ends before them it
// waits until they have ended, but no longer than grace, and returns Interrupted: tests
// that look at ctx (see Until) end at once, and others are given up.
func RunTests(ctx context.Context, m interface{ Run() int }, grace time.Duration) int {
	code := make(chan int, 1)
	go func() { code <- m.Run() }()
	select {
	case c := <-code:
		return c
	case <-ctx.Done():
	}
	select {
	case <-code:
	case <-time.After(grace):
		fmt.Fprintf(os.Stderr, "the tests have not ended %s after the interrupt\n", grace)
	}
	return Interrupted
}

// Until returns a context that ends with the first of two, such as a test's and that of
// Orderly.
func Until(ctx, other context.Context) context.Context {
	both, cancel := context.WithCancelCause(ctx)
	context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return both
}

// NewLogs makes a folder for what explains a failure, build/NAME/logs-TIME of the
// repository.
func NewLogs(name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	above := filepath.Join(root, "build", name)
	if err := os.MkdirAll(above, 0o755); err != nil {
		return "", err
	}
	first := filepath.Join(above, time.Now().UTC().Format("logs-20060102-150405"))
	for i, logs := 2, first; ; i++ {
		if err := os.Mkdir(logs, 0o755); !errors.Is(err, os.ErrExist) {
			return logs, err
		}
		logs = fmt.Sprintf("%s-%d", first, i) // of another run that began at the same time
	}
}

// WithLogs calls do with such a folder, which it removes where do returns 0; else it tells
// where the logs are, and at first where they would be, for who sees no end.
func WithLogs(name string, do func(logs string) int) int {
	logs, err := NewLogs(name)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: making a folder for logs: %v\n", name, err)
		return 1
	}
	fmt.Fprintf(os.Stderr, "%s: the logs are in %s, and stay if something fails\n", name, logs)
	code := do(logs)
	if code != 0 {
		fmt.Fprintf(os.Stderr, "%s: it failed; the logs are in %s\n", name, logs)
		return code
	}
	if err := os.RemoveAll(logs); err != nil {
		fmt.Fprintf(os.Stderr, "%s: removing the logs: %v\n", name, err)
		return 1
	}
	return 0
}
