// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

// KwokKey is the key of the annotation that nodes have which kwok keeps, and of their
// taint, NoSchedule.
const KwokKey = "kwok.x-k8s.io/node"

const kwokValue = "fake"

// KwokOptions say what StartKwok starts.
type KwokOptions struct {
	// Kubeconfig is an administrator's.
	Kubeconfig string
	// Log is the file of kwok's log.
	Log string
	// PodStages are files of what becomes of pods, for kwok. If empty, its own: they run
	// at once, and go at once.
	PodStages []string
}

// Kwok is a running kwok: it keeps the nodes that have its annotation, and says that
// pods on them run. Nothing does.
type Kwok struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // why; after done
}

// StartKwok starts bin/kwok (make bin/kwok) and waits until it serves; ctx limits that
// only. It runs until Stop, or until this process ends. It can be with any control plane.
func StartKwok(ctx context.Context, o KwokOptions) (*Kwok, error) {
	top, err := root()
	if err != nil {
		return nil, err
	}
	program := filepath.Join(top, "bin", "kwok")
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w; build it by: make bin/kwok", err)
	}
	stages, err := kwokStages(ctx, top, o.PodStages)
	if err != nil {
		return nil, err
	}
	address, err := controlplane.FreeAddress()
	if err != nil {
		return nil, err
	}
	args := []string{"--kubeconfig", o.Kubeconfig, "--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=" + KwokKey + "=" + kwokValue,
		"--node-ip=192.0.2.1", "--node-lease-duration-seconds=40", "--server-address=" + address, "--v=WARN"}
	for _, stage := range stages {
		args = append(args, "--config", stage)
	}
	k := &Kwok{cmd: exec.Command(program, args...), log: o.Log, done: make(chan struct{})}
	if err := k.start(); err != nil {
		return nil, fmt.Errorf("starting kwok: %w", err)
	}
	if err := await(ctx, func(ctx context.Context) error { return k.serves(ctx, address) }); err != nil {
		text, _ := os.ReadFile(k.log)
		return nil, errors.Join(fmt.Errorf("waiting for kwok: %w; its log ends with:\n%s", err, lastLines(string(text), shownLines)), k.Stop())
	}
	return k, nil
}

// kwokStages are the files of what becomes of nodes and pods.
func kwokStages(ctx context.Context, top string, pods []string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "-C", filepath.Join(top, "hack", "tools", "kwok"), "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok").Output()
	if err != nil {
		return nil, fmt.Errorf("finding kwok's module: %w", err)
	}
	folder := filepath.Join(strings.TrimSpace(string(out)), "kustomize", "stage")
	if len(pods) == 0 {
		fast := filepath.Join(folder, "pod", "fast")
		pods = []string{filepath.Join(fast, "pod-ready.yaml"), filepath.Join(fast, "pod-complete.yaml"), filepath.Join(fast, "pod-delete.yaml")}
	}
	return append([]string{filepath.Join(folder, "node", "fast", "node-initialize.yaml")}, pods...), nil
}

func (k *Kwok) start() error {
	log, err := os.Create(k.log)
	if err != nil {
		return err
	}
	defer log.Close()
	k.cmd.Stdout, k.cmd.Stderr = log, log
	if err := controlplane.StartChild(k.cmd); err != nil {
		return err
	}
	go func() {
		k.err = k.cmd.Wait()
		close(k.done)
	}()
	return nil
}

func (k *Kwok) serves(ctx context.Context, address string) error {
	select {
	case <-k.done:
		return &final{fmt.Errorf("it ended: %w", k.err)}
	default:
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("asking for its health: %s", response.Status)
	}
	return errors.Join(err, response.Body.Close())
}

// Stop ends kwok. It may be called again.
func (k *Kwok) Stop() error {
	if err := k.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending kwok: %w", err)
	}
	<-k.done
	return nil
}

// KwokName is the name of the node of an index, from 0, that KwokNode makes.
func KwokName(i int) string { return fmt.Sprintf("kwok-%d", i) }

// KwokNode is a node for kwok to keep, with room for 2000 pods.
func KwokNode(i int) *corev1.Node {
	room := corev1.ResourceList{"cpu": resource.MustParse("64"), "memory": resource.MustParse("256Gi"), "pods": resource.MustParse("2000")}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: KwokName(i), Annotations: map[string]string{KwokKey: kwokValue}, Labels: map[string]string{
			"type": "kwok", corev1.LabelHostname: KwokName(i), corev1.LabelOSStable: "linux",
		}},
		Spec:   corev1.NodeSpec{Taints: []corev1.Taint{{Key: KwokKey, Value: kwokValue, Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Capacity: room, Allocatable: room},
	}
}

// StartKwokNodes adds nodes without kubelets, kwok-0, kwok-1, …, and waits until they are
// ready. kwok says that pods there run, and nothing does. Only pods that tolerate KwokKey
// come there. They are not among Nodes. It can be called once.
func (c *Cluster) StartKwokNodes(ctx context.Context, number int) error {
	if c.kwok != nil {
		return errors.New("starting nodes of kwok: there are some already")
	}
	began := time.Now()
	var err error
	if c.kwok, err = StartKwok(ctx, KwokOptions{Kubeconfig: c.Kubeconfig(), Log: filepath.Join(c.logs, "kwok.log")}); err != nil {
		return err
	}
	for i := range number {
		if _, err := c.clients.CoreV1().Nodes().Create(ctx, KwokNode(i), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("making node %s: %w", KwokName(i), err)
		}
	}
	for i := range number {
		n := &Node{cluster: c, Name: KwokName(i)}
		if err := await(ctx, func(ctx context.Context) error { return n.ready(ctx, metav1.Time{}) }); err != nil {
			return err
		}
	}
	c.say("%d nodes of kwok ready after %s", number, since(began))
	return nil
}
