// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// orderlyVariable makes this test binary, started again, a process within Orderly.
const orderlyVariable = "HARNESS_TEST_ORDERLY"

func TestMain(m *testing.M) {
	if how := os.Getenv(orderlyVariable); how != "" {
		os.Exit(Orderly("orderly", func(ctx context.Context) int { return orderlyProcess(ctx, how) }))
	}
	os.Exit(m.Run())
}

// orderlyProcess tells of its folder, and when it is interrupted; it ends some time after
// that, when a line comes.
func orderlyProcess(ctx context.Context, how string) int {
	file, err := os.CreateTemp("", "some-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(file.Name())
	switch how {
	case "end":
		return 7
	case "panic":
		go panic("as asked")
	}
	<-ctx.Done()
	fmt.Println("interrupted")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		fmt.Println(err)
		return 1
	}
	if _, err := os.Stat(file.Name()); err != nil {
		fmt.Println(err)
		return 1
	}
	return 5
}

// orderly is such a process.
type orderly struct {
	*exec.Cmd
	t      *testing.T
	in     io.WriteCloser
	out    *os.File
	lines  *bufio.Reader
	folder string
}

func startOrderly(t *testing.T, how string) *orderly {
	t.Helper()
	o := &orderly{t: t, Cmd: exec.Command("/proc/self/exe")}
	o.Env = append(os.Environ(), orderlyVariable+"="+how)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o.out, o.lines, o.Stdout = r, bufio.NewReader(r), w
	if o.in, err = o.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); _ = o.Process.Kill() })
	o.folder = filepath.Dir(o.line())
	if !strings.HasPrefix(filepath.Base(o.folder), "orderly-") {
		t.Fatalf("its folder is %q", o.folder)
	}
	return o
}

func (o *orderly) line() string {
	o.t.Helper()
	line, err := o.lines.ReadString('\n')
	if err != nil {
		o.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func (o *orderly) signal(s syscall.Signal) {
	o.t.Helper()
	if err := o.Process.Signal(s); err != nil {
		o.t.Fatal(err)
	}
}

// goOn sends the line, for the end.
func (o *orderly) goOn() {
	o.t.Helper()
	if _, err := fmt.Fprintln(o.in); err != nil {
		o.t.Fatal(err)
	}
}

// ends waits for the end, and for that of the folder.
func (o *orderly) ends(code int) {
	o.t.Helper()
	_ = o.Wait() // its error is the code
	if got := o.ProcessState.ExitCode(); got != code {
		o.t.Errorf("it ended with %v", o.ProcessState)
	}
	for end := time.Now().Add(Patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Lstat(o.folder); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(end) {
			o.t.Fatalf("%s is left", o.folder)
		}
	}
}

// Signals interrupt, and what follows the first changes nothing.
func TestOrderlyAfterSignals(t *testing.T) {
	for _, first := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		o := startOrderly(t, "wait")
		o.signal(first)
		if said := o.line(); said != "interrupted" {
			t.Fatalf("after %v it said %q", first, said)
		}
		for _, next := range []syscall.Signal{first, syscall.SIGTERM, syscall.SIGPIPE} {
			o.signal(next)
		}
		o.goOn()
		o.ends(5)
	}
}

// A process whose output nobody reads has time to clean up.
func TestOrderlyWithoutReader(t *testing.T) {
	o := startOrderly(t, "wait")
	if err := o.out.Close(); err != nil {
		t.Fatal(err)
	}
	o.goOn() // it waits for that only once it was interrupted
	o.ends(5)
}

func TestOrderlyEnds(t *testing.T) {
	startOrderly(t, "end").ends(7)
	startOrderly(t, "panic").ends(2)
	o := startOrderly(t, "wait")
	o.signal(syscall.SIGKILL)
	o.ends(-1)
}

func TestOrderlyWithoutFolder(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	if code := Orderly("orderly", func(context.Context) int { t.Error("it went on"); return 0 }); code != 1 {
		t.Errorf("code %d", code)
	}
}

// tests are some that end with a code when they are told to.
type tests chan int

func (t tests) Run() int { return <-t }

func TestRunTests(t *testing.T) {
	run := make(tests, 1)
	run <- 3
	if code := RunTests(t.Context(), run, time.Hour); code != 3 {
		t.Errorf("code %d", code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code := RunTests(ctx, make(tests), time.Millisecond); code != Interrupted {
		t.Errorf("tests that do not end: code %d", code)
	}
	cleaning := make(tests)
	ended := make(chan int)
	go func() { ended <- RunTests(ctx, cleaning, time.Hour) }()
	select {
	case code := <-ended:
		t.Errorf("code %d before the tests had ended", code)
	case cleaning <- 1:
	}
	if code := <-ended; code != Interrupted {
		t.Errorf("tests that end: code %d", code)
	}
}

func TestUntil(t *testing.T) {
	for _, first := range []bool{true, false} {
		one, endOne := context.WithCancel(t.Context())
		other, endOther := context.WithCancel(t.Context())
		both := Until(one, other)
		if both.Err() != nil {
			t.Error("it has ended before")
		}
		if first {
			endOne()
		} else {
			endOther()
		}
		<-both.Done()
		endOne()
		endOther()
	}
}

// Logs stay with a failure only.
func TestWithLogs(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	above := filepath.Join(root, "build", "harness-test")
	t.Cleanup(func() {
		if err := os.RemoveAll(above); err != nil {
			t.Error(err)
		}
	})
	var folders []string
	for _, code := range []int{1, 1, 0} {
		got := WithLogs("harness-test", func(logs string) int {
			folders = append(folders, logs)
			if err := os.WriteFile(filepath.Join(logs, "log"), []byte("said"), 0o600); err != nil {
				t.Error(err)
			}
			return code
		})
		if got != code {
			t.Errorf("code %d, not %d", got, code)
		}
	}
	kept, err := filepath.Glob(filepath.Join(above, "logs-*", "log"))
	if err != nil || len(kept) != 2 || folders[0] == folders[1] {
		t.Errorf("kept %v of %v: %v", kept, folders, err)
	}
}
