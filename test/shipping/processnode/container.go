// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

// container is one of a pod: a process, and the next one when that has ended.
type container struct {
	pod   *pod
	of    *corev1.Pod
	spec  *corev1.Container
	image Image
	root  string // of its chroot; empty outside of one
	log   string

	command  *exec.Cmd
	exited   chan struct{}
	started  metav1.Time
	endedAt  time.Time
	code     int32
	restarts int32
	finished bool // for good
	ready    bool
}

func newContainer(p *pod, of *corev1.Pod, spec *corev1.Container, roots string) *container {
	c := &container{pod: p, of: of, spec: spec, image: p.node.options.Images[spec.Image], log: p.node.logFile(of.Namespace, of.Name, spec.Name)}
	if roots != "" {
		c.root = filepath.Join(roots, spec.Name)
	}
	return c
}

func (c *container) succeeded() bool { return c.finished && c.code == 0 }

func (c *container) running() bool { return c.command != nil && c.endedAt.IsZero() }

// run starts the process where none runs, and notices when it has ended. An init
// container that succeeded, and one that is never restarted, are finished then.
func (c *container) run(once bool) error {
	if c.finished {
		return nil
	}
	if c.command == nil {
		return c.start()
	}
	select {
	case <-c.exited:
	default:
		return nil
	}
	if c.endedAt.IsZero() {
		c.endedAt, c.ready = time.Now(), false
		c.code = int32(c.command.ProcessState.ExitCode())
		isInit := slices.ContainsFunc(c.of.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == c.spec.Name })
		c.finished = once || isInit && c.code == 0
		if isInit && c.code == 0 && c.root != "" {
			return c.giveBack()
		}
		return nil
	}
	if time.Since(c.endedAt) < restartPause {
		return nil
	}
	c.restarts++
	return c.start()
}

func (c *container) start() error {
	line := append(slices.Clone(c.spec.Command), c.spec.Args...)
	if len(c.spec.Command) == 0 {
		line = append([]string{c.image.Path}, c.spec.Args...)
	}
	// An image's PATH holds its program only.
	if !strings.Contains(line[0], "/") {
		line[0] = filepath.Join(filepath.Dir(c.image.Path), line[0])
	}
	if c.root != "" {
		if err := c.furnish(); err != nil {
			return fmt.Errorf("making the root of container %q: %w", c.spec.Name, err)
		}
	}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of a container: %w", err)
	}
	defer log.Close() // the child has its own copy
	command := &exec.Cmd{Path: line[0], Args: line, Stdout: log, Stderr: log, Env: c.environment()}
	if c.root == "" {
		command.Path = c.image.Program
	} else {
		command.Dir = "/"
		command.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root, Credential: &syscall.Credential{Uid: user, Gid: user}}
	}
	if err := controlplane.StartChild(command); err != nil {
		return fmt.Errorf("starting container %q as %q: %w", c.spec.Name, line, err)
	}
	exited := make(chan struct{})
	go func() {
		// How it ended stands in its ProcessState; an error of the copying of its
		// output there cannot be.
		_ = command.Wait()
		close(exited)
	}()
	c.command, c.exited, c.started, c.endedAt = command, exited, metav1.Now(), time.Time{}
	return nil
}

// environment is what kubelet makes of the container's variables, and what the
// image adds to run here.
func (c *container) environment() []string {
	all := map[string]string{
		"KUBERNETES_SERVICE_HOST": c.pod.node.server.Hostname(), "KUBERNETES_SERVICE_PORT": c.pod.node.server.Port(),
		"HTTP_PROXY": c.pod.node.gateway.url,
	}
	if c.root == "" {
		all["KUBECONFIG"] = filepath.Join(c.pod.dir, kubeconfigFile)
	}
	for _, v := range c.spec.Env {
		all[v.Name] = v.Value
		if v.ValueFrom != nil && v.ValueFrom.FieldRef != nil {
			all[v.Name] = c.field(v.ValueFrom.FieldRef.FieldPath)
		}
	}
	if c.image.Env != nil {
		maps.Copy(all, c.image.Env(c.of, c.pod.ip))
	}
	var env []string
	for name, value := range all {
		env = append(env, name+"="+value)
	}
	return env
}

// field reads one of the fields that the downward API offers.
func (c *container) field(path string) string {
	switch path {
	case "metadata.name":
		return c.of.Name
	case "metadata.namespace":
		return c.of.Namespace
	case "metadata.uid":
		return string(c.of.UID)
	case "spec.nodeName":
		return c.of.Spec.NodeName
	case "status.podIP":
		return c.pod.ip
	}
	if key, ok := strings.CutPrefix(path, "metadata.annotations['"); ok {
		return c.of.Annotations[strings.TrimSuffix(key, "']")]
	}
	key, _ := strings.CutPrefix(path, "metadata.labels['")
	return c.of.Labels[strings.TrimSuffix(key, "']")]
}

func (c *container) signal(s syscall.Signal) {
	if c.command != nil && c.endedAt.IsZero() {
		// It may have ended just now.
		if err := c.command.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			c.pod.node.note(fmt.Errorf("sending %v to container %q: %w", s, c.spec.Name, err))
		}
	}
}

// await waits until the process has ended, and at the deadline kills it.
func (c *container) await(deadline <-chan time.Time) {
	if c.command == nil {
		return
	}
	select {
	case <-c.exited:
	case <-deadline:
		c.signal(syscall.SIGKILL)
		<-c.exited
	}
}

// status is what kubelet would report.
func (c *container) status() corev1.ContainerStatus {
	started := c.running()
	s := corev1.ContainerStatus{Name: c.spec.Name, Image: c.spec.Image, ImageID: c.spec.Image, Ready: c.ready || c.succeeded(), RestartCount: c.restarts, Started: &started}
	switch {
	case c.command == nil:
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	case c.running():
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: c.started.Rfc3339Copy()}
	case c.finished:
		s.State.Terminated = &corev1.ContainerStateTerminated{
			ExitCode: c.code, Reason: "Ended", StartedAt: c.started.Rfc3339Copy(), FinishedAt: metav1.NewTime(c.endedAt).Rfc3339Copy(),
		}
	default:
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: fmt.Sprintf("it ended with code %d", c.code)}
	}
	return s
}

// setCondition adds a condition, with the time of its last change.
func setCondition(before, all []corev1.PodCondition, kind corev1.PodConditionType, holds bool) []corev1.PodCondition {
	status := corev1.ConditionFalse
	if holds {
		status = corev1.ConditionTrue
	}
	since := metav1.Now().Rfc3339Copy()
	for _, b := range before {
		if b.Type == kind && b.Status == status {
			since = b.LastTransitionTime
		}
	}
	return append(all, corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: since})
}

func sortConditions(all []corev1.PodCondition) {
	slices.SortFunc(all, func(a, b corev1.PodCondition) int { return cmp.Compare(a.Type, b.Type) })
}
