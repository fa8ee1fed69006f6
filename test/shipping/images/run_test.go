// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// inside starts the image's program as a container would: in a root of its own
// that is read-only, as the image's user. $1 is that root; a file that can be
// written into it ends all with code 99.
const inside = `mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
if touch "$1/written" 2>/dev/null; then exit 99; fi
root=$1
shift
exec chroot --userspec=65532:65532 "$root" /podconfigmap-controller "$@"`

// unpacked is a folder with the files of the image for this machine.
func unpacked(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to change the root folder")
	}
	_, _, images := readLayout(t, mustBuild(t)[0].layout())
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	// Another user has to get there.
	for folder := root; folder != os.TempDir() && folder != "/"; folder = filepath.Dir(folder) {
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	i, ok := images[runtime.GOARCH]
	if !ok {
		t.Fatalf("no image for %s", runtime.GOARCH)
	}
	for _, h := range i.headers {
		if err := os.WriteFile(filepath.Join(root, h.Name), i.files[h.Name], os.FileMode(h.Mode)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func container(root string, args ...string) *exec.Cmd {
	return exec.Command("unshare", append([]string{"--mount", "sh", "-euc", inside, "sh", root}, args...)...)
}

func TestItTellsItsVersion(t *testing.T) {
	root, tree := unpacked(t), mustBuild(t)[0]
	for want, args := range map[string][]string{
		"version " + version + " (" + tree.commit + ")": {"--version"},
		"docs/settings.md": {"manager", "--help"},
	} {
		out, err := container(root, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%q says %q (%v), want %q in it", args, out, err, want)
		}
	}
}

// The manager of the image, with nothing of the machine but a kubeconfig, becomes
// ready and stops cleanly.
func TestTheManagerRunsOnAReadOnlyRoot(t *testing.T) {
	root := unpacked(t)
	cluster, err := harness.StartCluster(t.Context(), controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	}()
	kubeconfig, err := os.ReadFile(cluster.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "kubeconfig"), kubeconfig, 0o644); err != nil {
		t.Fatal(err)
	}
	probes := freeAddress(t)
	manager := container(root, "manager")
	manager.Env = []string{"PATH=" + os.Getenv("PATH"), "KUBECONFIG=/kubeconfig", "POD_NAMESPACE=default", "METRICS_ADDR=" + freeAddress(t), "HEALTH_PROBE_ADDR=" + probes}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	manager.Stdout, manager.Stderr = log, log
	if err := controlplane.StartChild(manager); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- manager.Wait() }()
	ready := waitReady(t.Context(), "http://"+probes+"/readyz", exited)
	stopped := stop(manager, exited)
	if err := errors.Join(ready, stopped); err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Errorf("%v\n%s", err, text)
	}
}

func waitReady(ctx context.Context, url string, exited chan error) error {
	for end := time.Now().Add(harness.Patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("it ended: %w", err)
		default:
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			continue
		}
		if response.Body.Close(); response.StatusCode == http.StatusOK {
			return nil
		}
	}
	return fmt.Errorf("it is not ready after %v", harness.Patience)
}

func stop(manager *exec.Cmd, exited chan error) error {
	if err := manager.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-exited:
		return err
	case <-time.After(harness.Patience):
		return errors.Join(errors.New("it does not stop"), manager.Process.Kill())
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String()
}
