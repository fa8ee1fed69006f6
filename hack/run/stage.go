// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

// stage is where the pods of the eBPF sample run, and who makes them do things.
type stage interface {
	// enter takes the two pods, which run.
	enter(server, other *corev1.Pod) error
	// listens tells whether the server has opened a port.
	listens(ctx context.Context, port int32) (bool, error)
	// about tells what these pods are, in a few lines.
	about() []string
	// describe tells where a pod is.
	describe(pod *corev1.Pod) []string
	// dial has the client connect to a port of the server.
	dial(ctx context.Context, port int32, limit time.Duration) error
	// dialOutside has somebody do so who is no pod, and outside names him.
	dialOutside(ctx context.Context, port int32, limit time.Duration) error
	outside() string
	// call has the client make a system call at least knownCalls times.
	call(ctx context.Context) error
	// called is that system call; exact: the client makes no other of its name. The
	// note tells how it was made.
	called() (name string, exact bool, note string)
	// explore prints what the user may try.
	explore(s *session, sc *scene)
}

// nodeStage is the session's real node.
type nodeStage struct {
	*realNode
	server, other *corev1.Pod
	execs         int
}

var _ stage = (*nodeStage)(nil)

var listEverything = metav1.ListOptions{}

// showOnNode waits for the agent's pod, and shows what its programs do.
func (s *session) showOnNode(ctx context.Context, sc *scene) error {
	s.step("The node agent")
	pod, err := s.agentPod(ctx)
	if err != nil {
		return err
	}
	s.say("The manager has made a DaemonSet, which has pod %s/%s on %s.", pod.Namespace, pod.Name, s.nodeName)
	took, err := s.await(ctx, "the agent is ready", func(ctx context.Context) (bool, error) {
		if pod, err = s.agentPod(ctx); err != nil {
			return false, err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return true, nil
			}
		}
		return false, fmt.Errorf("pod %s is %s", pod.Name, pod.Status.Phase)
	})
	if err != nil {
		return err
	}
	s.say("ready after %s", seconds(took))
	address := net.JoinHostPort(pod.Status.PodIP, "8080")
	s.agentMetrics = agentMetrics{address: address, dial: s.cluster.Dial,
		command: fmt.Sprintf("kubectl get --raw /api/v1/namespaces/%s/pods/%s:8080/proxy/metrics", pod.Namespace, pod.Name)}
	return s.show(ctx, sc, &nodeStage{realNode: s.cluster})
}

func (n *nodeStage) enter(server, other *corev1.Pod) error {
	for _, pod := range []*corev1.Pod{server, other} {
		if len(pod.Status.ContainerStatuses) == 0 || pod.Status.PodIP == "" {
			return fmt.Errorf("pod %s runs without container or address: %+v", pod.Name, pod.Status)
		}
	}
	n.server, n.other = server, other
	return nil
}

func (n *nodeStage) about() []string {
	return []string{
		"The scheduler, kubelet, containerd and runc of this cluster run these two pods, each with a",
		"cgroup and a network of its own. (" + busyboxImage + " was made of this machine's busybox.)",
	}
}

func (n *nodeStage) describe(pod *corev1.Pod) []string {
	var addresses []string
	for _, ip := range pod.Status.PodIPs {
		addresses = append(addresses, ip.IP)
	}
	lines := []string{fmt.Sprintf("on %s, addresses %s", pod.Spec.NodeName, strings.Join(addresses, " and "))}
	if cgroup, err := n.node.Cgroup(string(pod.UID)); err == nil {
		lines = append(lines, "cgroup "+cgroup)
	}
	return lines
}

// listens looks into the kernel's tables of the server's network: to try would count.
func (n *nodeStage) listens(ctx context.Context, port int32) (bool, error) {
	said, err := n.runIn(ctx, n.server, "cat", "/proc/net/tcp", "/proc/net/tcp6")
	for line := range strings.Lines(said) {
		fields := strings.Fields(line)
		const listen = "0A"
		if len(fields) > 3 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) && fields[3] == listen {
			return true, err
		}
	}
	return false, err
}

// run runs a command in the client's container, and returns the last line that it
// wrote.
func (n *nodeStage) run(ctx context.Context, argv ...string) (string, error) {
	said, err := n.runIn(ctx, n.other, argv...)
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return lines[len(lines)-1], err
}

// runIn runs a command in a pod's container, as kubectl exec does, and returns what it
// wrote.
func (n *nodeStage) runIn(ctx context.Context, pod *corev1.Pod, argv ...string) (string, error) {
	n.execs++
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	return n.node.Run(ctx, append([]string{controlplane.Ctr, "--namespace=k8s.io", "tasks", "exec", "--exec-id", fmt.Sprintf("run-%d", n.execs), id}, argv...)...)
}

// said is an error as a program has worded it.
type said struct {
	message string
	cause   error
}

func (e *said) Error() string { return e.message }
func (e *said) Unwrap() error { return e.cause }

func (n *nodeStage) dial(ctx context.Context, port int32, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	line, err := n.run(ctx, "timeout", fmt.Sprint(int(limit.Seconds())), "wget", "-qO-", n.url(port))
	switch {
	case err == nil:
		return nil
	case strings.Contains(line, "Operation not permitted"):
		return &said{line, syscall.EPERM}
	case line != "":
		return &said{line, err}
	}
	return err
}

func (n *nodeStage) url(port int32) string {
	return fmt.Sprintf("http://%s", net.JoinHostPort(n.server.Status.PodIP, fmt.Sprint(port)))
}

func (n *nodeStage) outside() string { return "another machine" }

func (n *nodeStage) dialOutside(ctx context.Context, port int32, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := n.Dial(ctx, "tcp", net.JoinHostPort(n.server.Status.PodIP, fmt.Sprint(port)))
	if err == nil {
		return conn.Close()
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return &said{err.Error(), os.ErrDeadlineExceeded}
	}
	return err
}

func (n *nodeStage) command() []string {
	return []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=1", fmt.Sprintf("count=%d", knownCalls)}
}

func (n *nodeStage) call(ctx context.Context) error {
	_, err := n.run(ctx, n.command()...)
	return err
}

func (n *nodeStage) called() (string, bool, string) {
	return "write", false, fmt.Sprintf("(%s ran \"%s\"; the rest are runc's, the shell's and wget's.)", n.other.Name, strings.Join(n.command(), " "))
}

func (n *nodeStage) explore(s *session, sc *scene) {
	exec := fmt.Sprintf("kubectl exec -n %s %s --", sc.namespace(), n.other.Name)
	s.say("%s | grep _ebpf_", s.agentMetrics.command)
	s.say("%s timeout 3 wget -qO- %s", exec, n.url(sc.allowed))
	s.say("%s timeout 3 wget -qO- %s", exec, n.url(sc.blocked))
}

// exploreNode prints how the user gets to see more of the cluster.
func (s *session) exploreNode() {
	s.say("")
	s.say("The operator and its node:")
	s.say("kubectl get pods -A -o wide")
	s.say("kubectl logs -n %s deployment/%s", operatorNamespace, managerName)
	s.say("nsenter -a -t %d   # a shell on %s", s.cluster.node.PID(), s.nodeName)
}

// agentMetrics is where the agent's metrics are.
type agentMetrics struct {
	address string
	dial    func(ctx context.Context, network, address string) (net.Conn, error) // nil: as usual
	command string                                                               // that prints them
}
