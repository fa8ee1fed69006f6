// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// patience is how long a session may take to get somewhere on a busy machine.
const patience = 4 * time.Minute

func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this starts control planes")
	}
}

// programs are this command and the operator.
func programs() (run, manager string, err error) {
	if run, err = harness.Program("./hack/run"); err != nil {
		return "", "", err
	}
	manager, err = harness.Program(".")
	return run, manager, err
}

// process is `make run` as a terminal runs it: in a process group of its own.
type process struct {
	*exec.Cmd
	tmp string

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start starts a session with variables on top of a bare environment.
func start(t *testing.T, environ []string, args ...string) *process {
	t.Helper()
	return startAs(t, nil, environ, args...)
}

// startAs is start with attributes of the process; nil: none.
func startAs(t *testing.T, as *syscall.SysProcAttr, environ []string, args ...string) *process {
	t.Helper()
	run, manager, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{tmp: t.TempDir()}
	log := filepath.Join(t.TempDir(), "manager.log")
	p.Cmd = exec.Command(run, append([]string{"-manager", manager, "-log", log}, args...)...)
	p.Dir = root
	// The tests with a real node are in node_test.go.
	p.Env = append([]string{"NODE=false", "HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + p.tmp}, environ...)
	p.Stdout, p.Stderr = p, p
	if p.SysProcAttr = as; as == nil {
		p.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.SysProcAttr.Setpgid = true
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			p.Process.Kill()
			p.Wait()
		}
	})
	return p
}

// awaitOutput waits until the session has printed the text.
func (p *process) awaitOutput(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if strings.Contains(p.output(), text) {
			return
		}
		if syscall.Kill(p.Process.Pid, 0) != nil {
			break
		}
	}
	t.Fatalf("never printed %q:\n%s", text, p.output())
}

// interrupt does what Ctrl-C does.
func (p *process) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-p.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
}

// end waits for the end, and checks its code and what it printed, and that nothing
// is left of it.
func (p *process) end(t *testing.T, code int, printed ...string) {
	t.Helper()
	kill := time.AfterFunc(patience, func() { p.Process.Kill() })
	defer kill.Stop()
	_ = p.Wait() // its error is the code
	if got := p.ProcessState.ExitCode(); got != code {
		t.Errorf("ended with code %d instead of %d:\n%s", got, code, p.output())
	}
	for _, text := range printed {
		if !strings.Contains(p.output(), text) {
			t.Errorf("did not print %q:\n%s", text, p.output())
		}
	}
	p.wantNothingLeft(t)
}

func (p *process) wantNothingLeft(t *testing.T) {
	t.Helper()
	if files, err := os.ReadDir(p.tmp); err != nil || len(files) > 0 {
		t.Errorf("left temporary files: %v, %v", files, err)
	}
	for _, pid := range regexp.MustCompile(`process (\d+),`).FindAllStringSubmatch(p.output(), -1) {
		if _, err := os.Stat("/proc/" + pid[1]); err == nil {
			t.Errorf("process %s still runs", pid[1])
		}
	}
	// The control plane's programs have their folder among their arguments.
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range lines {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(p.tmp)) {
			t.Errorf("%s still runs: %q", file, text)
		}
	}
}

func TestTourUntilInterrupted(t *testing.T) {
	skipShort(t)
	t.Parallel()
	p := start(t, nil)
	p.awaitOutput(t, "Ctrl-C stops everything")
	p.interrupt(t)
	p.end(t, 0,
		"No real node, so the API server alone, and pods that are pretended to run: NODE=false",
		"sets their status to Running",
		"summary                            Orders (backend) is running on demo-node",
		"bystander has none",
		"+ label_tier  canary",
		"pod-orders-from-shop-info-cfg was gone",
		"shop-info  True   1        1       0",
		"kubectl get pcmc,cm -n podconfigmap-demo",
	)
}

// A machine that cannot have a real node has the API server alone, and says why.
func TestFallsBack(t *testing.T) {
	skipShort(t)
	const fallsBack = "No real node, so the API server alone, and pods that are pretended to run: "
	t.Run("not as root", func(t *testing.T) {
		t.Parallel()
		p := startAs(t, notRoot(), []string{"NODE=", "ONCE=true"})
		p.end(t, 0, fallsBack, "this is user 1000, and namespaces, mounts and cgroups are root's; try sudo env PATH=",
			"sets their status to Running", "shop-info  True   1        1       0")
	})
	t.Run("without busybox", func(t *testing.T) {
		t.Parallel()
		goProgram, err := exec.LookPath("go")
		if err != nil {
			t.Fatal(err)
		}
		p := start(t, []string{"NODE=", "PATH=" + filepath.Dir(goProgram)})
		p.awaitOutput(t, "starting kube-apiserver")
		p.interrupt(t)
		p.end(t, 130, fallsBack, "there is no busybox: apt-get install busybox-static")
	})
}

// notRoot has a process be user 1000, with the files of the user that runs the tests.
func notRoot() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getegid(), Size: 1}},
	}
}

func TestOnceFailsWhereNothingAppears(t *testing.T) {
	skipShort(t)
	t.Parallel()
	p := start(t, []string{"ONCE=true", "WATCH_NAMESPACE=elsewhere"}, "-patience=15s")
	p.end(t, 1, "waiting until ConfigMap pod-storefront-from-shop-info-cfg is as it should be, for ", "manager.log) ends with")
}

func TestInterruptedStart(t *testing.T) {
	skipShort(t)
	t.Parallel()
	for _, text := range []string{"starting kube-apiserver", "binds them to demo-node"} {
		p := start(t, nil)
		p.awaitOutput(t, text)
		p.interrupt(t)
		p.end(t, 130, "run: interrupted")
	}
}

func TestBadOptions(t *testing.T) {
	skipShort(t)
	for _, tc := range []struct{ environ, message string }{
		{"ONCE=often", `reading ONCE="often": use true or false`},
		{"NODE=some", `reading NODE="some": use true or false`},
		{"CONTROLLER_POD_WORKERS=none", `CONTROLLER_POD_WORKERS="none": use a whole number`},
		{"EBPF_ENABLED=perhaps", `EBPF_ENABLED="perhaps": use true or false`},
		{"KUBECONFIG=/nowhere", `reading KUBECONFIG="/nowhere": there is no such file`},
	} {
		start(t, []string{tc.environ}).end(t, 1, tc.message)
	}
}
