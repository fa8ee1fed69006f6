// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const namespace = "garden"

func TestLife(t *testing.T) {
	skipShort(t)
	c := started(t, Options{ControllerManager: true})
	clients := clientsOf(t, c.Config())
	if v, err := clients.Discovery().ServerVersion(); err != nil || v.Major != "1" || v.Minor == "" {
		t.Fatalf("version of the server: %v, %v", v, err)
	}
	create(t, clients, nil)

	// One after another: each starts from what the one before left.
	t.Run("kubeconfig", func(t *testing.T) { checkKubeconfig(t, c) })
	t.Run("garbage collection", func(t *testing.T) { checkGarbageCollection(t, clients) })
	t.Run("ServiceAccount", func(t *testing.T) { checkServiceAccount(t, c) })
	t.Run("restart of the API server", func(t *testing.T) { checkRestart(t, c, clients) })
	t.Run("stop", func(t *testing.T) { checkStop(t, c) })
}

func checkKubeconfig(t *testing.T, c *ControlPlane) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clientsOf(t, config).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

func checkGarbageCollection(t *testing.T, clients kubernetes.Interface) {
	maps := clients.CoreV1().ConfigMaps(namespace)
	owner, err := maps.Create(t.Context(), configMap("owner"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owned := configMap("owned")
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}}
	if _, err := maps.Create(t.Context(), owned, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(t.Context(), owner.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the owned ConfigMap is collected", func(ctx context.Context) bool {
		_, err := maps.Get(ctx, owned.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

func checkServiceAccount(t *testing.T, c *ControlPlane) {
	for range 2 { // absent, then present
		config, err := c.ServiceAccountConfig(t.Context(), namespace, "gardener")
		if err != nil {
			t.Fatal(err)
		}
		_, err = clientsOf(t, config).CoreV1().ConfigMaps(namespace).List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "system:serviceaccount:garden:gardener") {
			t.Errorf("listing without permission: %v", err)
		}
	}
}

func checkRestart(t *testing.T, c *ControlPlane, clients kubernetes.Interface) {
	kept, err := clients.CoreV1().ConfigMaps(namespace).Create(t.Context(), configMap("kept"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StartAPIServer(t.Context()); err == nil {
		t.Error("a second API server was started")
	}
	if err := c.KillAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := clients.Discovery().ServerVersion(); err == nil {
		t.Error("a killed API server answers")
	}
	if err := c.KillAPIServer(); err == nil {
		t.Error("the API server was killed twice")
	}
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := clients.CoreV1().ConfigMaps(namespace).Get(t.Context(), kept.Name, metav1.GetOptions{})
	if err != nil || again.UID != kept.UID {
		t.Errorf("after the restart: UID %q, want %q; %v", again.UID, kept.UID, err)
	}
}

func checkStop(t *testing.T, c *ControlPlane) {
	if n := len(processesOf(t, c.dir)); n != 3 {
		t.Errorf("%d processes before Stop, want 3", n)
	}
	for range 2 {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}
	if left := processesOf(t, c.dir); len(left) > 0 {
		t.Errorf("processes after Stop: %q", left)
	}
	if _, err := os.Stat(c.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder after Stop: %v", err)
	}
}

// A folder of the caller is kept, and holds all that a second start needs. The
// server of this test has no controller manager, and yet takes Pods.
func TestStartAgainInSameFolder(t *testing.T) {
	skipShort(t)
	dir := t.TempDir()
	audit := filepath.Join(dir, "audit.log")
	c := started(t, Options{Dir: dir, APIServerFlags: []string{"--audit-policy-file=" + auditPolicy(t), "--audit-log-path=" + audit}})
	uid := create(t, clientsOf(t, c.Config()), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "rose"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	})
	token := c.Config().BearerToken
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(audit); err != nil || !bytes.Contains(text, []byte(`"resource":"pods"`)) {
		t.Errorf("the audit log has no pods: %v", err)
	}

	logs := t.TempDir()
	c = started(t, Options{Dir: dir, Logs: logs})
	if c.Config().BearerToken != token {
		t.Error("the second start has another token")
	}
	for _, name := range []string{etcd, apiServer} {
		if text, err := os.ReadFile(filepath.Join(logs, name+".log")); err != nil || len(text) == 0 {
			t.Errorf("the log of %s in a folder of its own: %q, %v", name, text, err)
		}
	}
	pod, err := clientsOf(t, c.Config()).CoreV1().Pods(namespace).Get(t.Context(), "rose", metav1.GetOptions{})
	if err != nil || pod.UID != uid {
		t.Errorf("the Pod after the second start: UID %q, want %q; %v", pod.UID, uid, err)
	}
}

func TestBadFlag(t *testing.T) {
	skipShort(t)
	bad := []string{"--no-such-flag"}
	for program, o := range map[string]Options{apiServer: {APIServerFlags: bad}, controllerManager: {ControllerManager: true, ControllerManagerFlags: bad}} {
		o.Dir = t.TempDir()
		c, err := Start(t.Context(), o)
		if err == nil {
			t.Fatal("started", c.Stop())
		}
		if !strings.Contains(err.Error(), program) || !strings.Contains(err.Error(), "unknown flag: --no-such-flag") {
			t.Errorf("the error lacks the last lines of the log of %s: %v", program, err)
		}
		if left := processesOf(t, o.Dir); len(left) > 0 {
			t.Errorf("processes after a failed Start: %q", left)
		}
	}
}

func TestStartIsCancelled(t *testing.T) {
	skipShort(t)
	if _, err := Build(t.Context(), os.Stderr); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := Start(ctx, Options{Dir: dir}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start with a deadline of a second: %v", err)
	}
	if left := processesOf(t, dir); len(left) > 0 {
		t.Errorf("processes after a cancelled Start: %q", left)
	}
}

// TestEndOfParent runs the command and ends it both ways.
func TestEndOfParent(t *testing.T) {
	skipShort(t)
	command := filepath.Join(t.TempDir(), "command")
	if said, err := exec.Command("go", "build", "-o", command, "./cmd").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for name, tc := range map[string]struct {
		signal  syscall.Signal
		stopped bool
	}{
		"interrupted": {syscall.SIGINT, true},
		"killed":      {syscall.SIGKILL, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(command, "up", "-dir", dir)
			cmd.Stderr = t.Output()
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if want := "export KUBECONFIG=" + filepath.Join(dir, "kubeconfig") + "\n"; err != nil || line != want {
				t.Errorf("printed %q (%v), want %q", line, err, want)
			}
			// To the whole group, as a terminal does.
			if err := syscall.Kill(-cmd.Process.Pid, tc.signal); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); (err == nil) != tc.stopped {
				t.Errorf("the command ended with %v", err)
			}
			eventually(t, "no process is left", func(context.Context) bool { return len(processesOf(t, dir)) == 0 })
		})
	}
}

func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a control plane")
	}
}

func started(t *testing.T, o Options) *ControlPlane {
	t.Helper()
	o.Progress = os.Stderr // at once: a build takes minutes
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func clientsOf(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// create makes the namespace and, if not nil, the Pod, whose UID it returns.
func create(t *testing.T, clients kubernetes.Interface, pod *corev1.Pod) types.UID {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if _, err := clients.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if pod == nil {
		return ""
	}
	made, err := clients.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.UID
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func auditPolicy(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	text := "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func eventually(t *testing.T, what string, holds func(context.Context) bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if holds(t.Context()) {
			return
		}
	}
	t.Errorf("after a minute it is still not so that %s", what)
}

// processesOf returns the command lines, among all processes, of those of the
// control plane in dir.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && bytes.Contains(line, []byte(dir+"/")) { // or it has ended
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	return found
}
