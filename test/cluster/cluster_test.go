// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/test/shipping/registry"
)

// A cluster of one node, and a pod on it, with all that a pod has of the kernel.
func TestOneNode(t *testing.T) {
	needsRoot(t)
	c, err := Start(t.Context(), Options{Nodes: 1, Logs: logsOf(t), Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		nothingRemains(t)
	})
	p := &podOf{T: t, c: c}
	p.create("web", "serve", "-tcp=8080", "-udp=8080", "-control=8081")
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"log", p.log},
		{"cgroup", p.cgroup},
		{"network", p.network},
		{"names", p.names},
		{"mirror", p.mirror},
		{"kwok", p.kwok},
		{"node rights", p.nodeRights},
		{"programs", p.programs},
		{"partition", p.partition},
		{"kill", p.kill},
		{"restart", p.restart},
	} {
		if !t.Run(step.name, step.do) {
			break // the next would wait in vain
		}
	}
}

// podOf is a pod and its cluster.
type podOf struct {
	*testing.T
	c   *Cluster
	pod *corev1.Pod
}

func (p *podOf) create(name string, command ...string) {
	p.Helper()
	p.createOf(WorkloadImage, name, command...)
}

func (p *podOf) createOf(image, name string, command ...string) {
	p.Helper()
	seconds := int64(1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &seconds,
			Containers:                    []corev1.Container{{Name: "c", Image: image, Args: command}},
		},
	}
	created, err := p.c.Clients().CoreV1().Pods("default").Create(p.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		p.Fatal(err)
	}
	p.pod = created
	p.awaitRunning(0)
}

// awaitRunning waits until the pod runs, after so many restarts.
func (p *podOf) awaitRunning(restarts int32) {
	p.Helper()
	err := await(context.Background(), func(ctx context.Context) error {
		pod, err := p.c.Clients().CoreV1().Pods("default").Get(ctx, p.pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		p.pod = pod
		for _, s := range pod.Status.ContainerStatuses {
			if s.State.Running != nil && s.Ready && s.RestartCount >= restarts {
				return nil
			}
		}
		return fmt.Errorf("the pod is %s: %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
	})
	if err != nil {
		p.Fatal(err)
	}
}

func (p *podOf) log(t *testing.T) {
	err := await(t.Context(), func(ctx context.Context) error {
		text, err := p.c.Clients().CoreV1().Pods("default").GetLogs(p.pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err == nil && !strings.Contains(string(text), "serving") {
			err = fmt.Errorf("the log is %q", text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// The same is among the cluster's logs.
	files, err := filepath.Glob(filepath.Join(p.c.Logs(), "node-1", "pods", "default_web_*", "c", "0.log"))
	if err != nil || len(files) != 1 {
		t.Errorf("logs of the pod: %v, %v", files, err)
	}
}

func (p *podOf) cgroup(t *testing.T) {
	node := p.c.Node("node-1")
	dir, err := node.Cgroup(string(p.pod.UID))
	if err != nil {
		t.Fatal(err)
	}
	// Of the pause container, and of its own.
	children, err := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
	if err != nil || len(children) != 2 {
		t.Errorf("cgroups of the pod's containers: %v, %v", children, err)
	}
	for _, file := range children {
		if text, err := os.ReadFile(file); err != nil || len(strings.Fields(string(text))) != 1 {
			t.Errorf("processes in %s: %q, %v", file, text, err)
		}
	}
	for _, path := range []string{cgroupRoot + "/kubepods/besteffort/pod" + string(p.pod.UID), "/sys/fs/bpf", "/sys/kernel/tracing/events"} {
		if _, err := os.Stat(node.Path(path)); err != nil {
			t.Error(err)
		}
	}
}

// network reaches the pod at both of its addresses, over both protocols.
func (p *podOf) network(t *testing.T) {
	if len(p.pod.Status.PodIPs) != 2 {
		t.Fatalf("the pod's addresses: %v", p.pod.Status.PodIPs)
	}
	for _, ip := range p.pod.Status.PodIPs {
		for _, network := range []string{"tcp", "udp"} {
			if answer, err := p.greet(t.Context(), network, ip.IP); err != nil || answer != p.pod.Name {
				t.Errorf("%s to %s: %q, %v", network, ip.IP, answer, err)
			}
		}
	}
}

func (p *podOf) greet(ctx context.Context, network, ip string) (string, error) {
	conn, err := p.c.Dial(ctx, network, net.JoinHostPort(ip, "8080"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// names has the pod reach itself by the name of a Service, over both protocols.
func (p *podOf) names(t *testing.T) {
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "greeter"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 8080}},
	}}
	if _, err := p.c.Clients().CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	web := &http.Client{Transport: &http.Transport{DialContext: p.c.Dial, DisableKeepAlives: true}}
	for _, name := range []string{"greeter", "greeter.default.svc", "greeter.default.svc.cluster.local."} {
		err := await(t.Context(), func(ctx context.Context) error {
			url := fmt.Sprintf("http://%s:8081/dial?timeout=5s&network=tcp&address=%s:8080", p.pod.Status.PodIP, name)
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			response, err := web.Do(request)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			if err == nil && !strings.Contains(string(text), `"reached":1`) {
				err = fmt.Errorf("the pod says %s", text)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// mirror has the node pull an image from a registry of this machine.
func (p *podOf) mirror(t *testing.T) {
	r, err := registry.Start(t.Context(), registry.Options{Folder: t.TempDir(), PlainHTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	// Not the one that the pod has: kubelet, which knows it from a registry then, would
	// ask that again before it used the same under its other name.
	if err := r.Push(t.Context(), filepath.Join(p.c.place.dir, "images", path.Base(pauseImage)+".tar"), "team/thing:2"); err != nil {
		t.Fatal(err)
	}
	end, err := p.c.Mirror(r.Host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Mirror(r.Host); err == nil {
		t.Error("a second mirror: no error")
	}
	pulled := podOf{T: t, c: p.c}
	pulled.createOf("registry.example/team/thing:2", "pulled", "sleep")
	for range 2 {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	// The node has no other way out.
	if out, err := p.c.Node("node-1").Run(t.Context(), "cat", etc+"certs.d/_default/hosts.toml"); err == nil {
		t.Errorf("the mirror is still named: %s", out)
	}
}

// kwok has pods that tolerate its taint be said to run, and lets them go.
func (p *podOf) kwok(t *testing.T) {
	if err := p.c.StartKwokNodes(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := p.c.StartKwokNodes(t.Context(), 1); err == nil {
		t.Error("a second kwok: no error")
	}
	pods := p.c.Clients().CoreV1().Pods("default")
	pretended := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pretended"}, Spec: corev1.PodSpec{
		NodeSelector: map[string]string{"type": "kwok"}, Tolerations: []corev1.Toleration{{Key: KwokKey, Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{Name: "c", Image: "images.example.com/none:1"}},
	}}
	if _, err := pods.Create(t.Context(), pretended, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err := await(t.Context(), func(ctx context.Context) error {
		pod, err := pods.Get(ctx, pretended.Name, metav1.GetOptions{})
		if err == nil && (pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" || !strings.HasPrefix(pod.Spec.NodeName, "kwok-")) {
			err = fmt.Errorf("on %q it is %+v", pod.Spec.NodeName, pod.Status)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := pods.Delete(t.Context(), pretended.Name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	err = await(t.Context(), func(ctx context.Context) error {
		_, err := pods.Get(ctx, pretended.Name, metav1.GetOptions{})
		if err == nil {
			return errors.New("the pod is still there")
		}
		return client.IgnoreNotFound(err)
	})
	if err != nil {
		t.Error(err)
	}
}

// A kwok that cannot serve says why.
func TestKwokFails(t *testing.T) {
	_, err := StartKwok(t.Context(), KwokOptions{Kubeconfig: filepath.Join(t.TempDir(), "none"), Log: filepath.Join(t.TempDir(), "log")})
	if err == nil || !strings.Contains(err.Error(), "waiting for kwok: it ended") || !strings.Contains(err.Error(), "none") {
		t.Errorf("the error is %v", err)
	}
}

// nodeRights: a node may change what is its own, and nothing of another node.
func (p *podOf) nodeRights(t *testing.T) {
	config := p.c.Config()
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:node-1", Groups: []string{"system:nodes", "system:authenticated"}}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"metadata":{"annotations":{"a":"b"}}}`)
	if _, err := clients.CoreV1().Nodes().Patch(t.Context(), "node-1", "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		t.Errorf("its own node: %v", err)
	}
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
	if _, err := p.c.Clients().CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := clients.CoreV1().Nodes().Patch(t.Context(), "other", "application/merge-patch+json", patch, metav1.PatchOptions{}); err == nil {
		t.Error("a node could change another one")
	}
	if err := p.c.Clients().CoreV1().Nodes().Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// programs are stopped, killed and started again, and the pod does not notice.
func (p *podOf) programs(t *testing.T) {
	node := p.c.Node("node-1")
	for _, name := range []string{Containerd, Kubelet} {
		for _, end := range []func(context.Context, string) error{node.StopProgram, node.KillProgram} {
			if err := end(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if err := node.StartProgram(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := node.StartProgram(t.Context(), Kubelet); err == nil {
		t.Error("a program that runs was started again")
	}
	before := p.pod.Status.ContainerStatuses[0].ContainerID
	p.awaitRunning(0)
	if after := p.pod.Status.ContainerStatuses[0]; after.ContainerID != before || after.RestartCount != 0 {
		t.Errorf("the pod was restarted: %+v", after)
	}
	if _, err := node.Run(t.Context(), "false"); err == nil {
		t.Error("a command that fails: no error")
	}
}

func (p *podOf) partition(t *testing.T) {
	node := p.c.Node("node-1")
	health := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return node.healthy(ctx)
	}
	if err := await(t.Context(), func(context.Context) error { return health() }); err != nil {
		t.Fatal(err)
	}
	if err := node.Partition(); err != nil {
		t.Fatal(err)
	}
	if err := health(); err == nil {
		t.Error("the API server reaches a node that is apart")
	}
	conn, err := node.Dial(t.Context(), "tcp", net.JoinHostPort(p.pod.Status.PodIPs[1].IP, "8080"))
	if err != nil {
		t.Errorf("a node that is apart does not reach its own pod: %v", err)
	} else if err := conn.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := node.Heal(); err != nil {
			t.Fatal(err)
		}
	}
	if err := await(t.Context(), func(context.Context) error { return health() }); err != nil {
		t.Error(err)
	}
}

// kill ends the container, but not what holds the pod's namespaces.
func (p *podOf) kill(t *testing.T) {
	node, ip := p.c.Node("node-1"), p.pod.Status.PodIP
	if err := node.KillPod(string(p.pod.UID)); err != nil {
		t.Fatal(err)
	}
	p.awaitRunning(1)
	if p.pod.Status.PodIP != ip {
		t.Errorf("the pod had the address %s, and has %s", ip, p.pod.Status.PodIP)
	}
	if err := node.KillPod("unknown"); err == nil {
		t.Error("a pod that is not there was killed")
	}
}

func (p *podOf) restart(t *testing.T) {
	node := p.c.Node("node-1")
	before := node.PID()
	if err := node.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if node.PID() == before {
		t.Error("it is the same machine")
	}
	p.awaitRunning(2)
	p.network(t)
}

func nothingRemains(t *testing.T) {
	t.Helper()
	found, err := Remains()
	if err != nil || len(found) > 0 {
		t.Errorf("left over: %v, %v", found, err)
	}
}

// A process that is killed with a cluster leaves nothing.
func TestKilled(t *testing.T) {
	needsRoot(t)
	if err := os.MkdirAll(logsOf(t), 0o755); err != nil {
		t.Fatal(err)
	}
	said := filepath.Join(logsOf(t), "said")
	holder := exec.Command("/proc/self/exe")
	holder.Env = append(os.Environ(), beKilled+"="+said, wholeCluster+"=true")
	holder.Stderr = os.Stderr
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	awaitTrue(t, "the cluster runs", func() bool {
		text, err := os.ReadFile(said)
		_, dir, _ = strings.Cut(string(text), "\n")
		return err == nil && dir != ""
	})
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	awaitTrue(t, "all of it is gone", func() bool {
		_, err := os.Lstat(dir)
		return err != nil
	})
	nothingRemains(t)
}

func TestOptionsAreChecked(t *testing.T) {
	for _, nodes := range []int{-1, 201} {
		if _, err := Start(t.Context(), Options{Nodes: nodes}); err == nil {
			t.Errorf("%d nodes: no error", nodes)
		}
	}
}

// A start that fails leaves nothing.
func TestFailedStart(t *testing.T) {
	needsRoot(t)
	_, err := Start(t.Context(), Options{Nodes: 1, Logs: logsOf(t), APIServerFlags: []string{"--no-such-flag"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("the error is %v", err)
	}
	nothingRemains(t)
}
