// SPDX-License-Identifier: Apache-2.0

// Package podrunner runs the operator's pods of a control plane without nodes: as
// processes, with the arguments, the environment and the ServiceAccount of the
// pod, and nothing else. What becomes of a process becomes the pod's status.
//
// Node agents are left pending: they need a node.
package podrunner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	labelName      = "app.kubernetes.io/name"
	labelComponent = "app.kubernetes.io/component"
	period         = 100 * time.Millisecond
)

// Runner runs the pods of one namespace. Its methods may be called from several
// goroutines.
type Runner struct {
	cluster   *harness.Cluster
	namespace string
	folder    string
	gateway   *gateway
	cancel    context.CancelFunc
	ended     chan struct{}

	mu      sync.Mutex
	running map[types.UID]*running
	logs    []string // of processes that have ended
	errs    []error
}

// running is a pod's process.
type running struct {
	name    string
	process *harness.Manager
}

// Start begins to run the operator's pods of a namespace, present ones and those
// to come, until Stop.
func Start(ctx context.Context, cluster *harness.Cluster, namespace string) (*Runner, error) {
	folder, err := os.MkdirTemp("", "podrunner-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for kubeconfigs: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &Runner{
		cluster: cluster, namespace: namespace, folder: folder, cancel: cancel,
		ended: make(chan struct{}), running: map[types.UID]*running{},
	}
	if r.gateway, err = startGateway(r); err != nil {
		cancel()
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	go r.serve(ctx)
	return r, nil
}

// Stop ends all processes. The error has what went wrong since the start.
func (r *Runner) Stop() error {
	r.cancel()
	<-r.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.running {
		r.end(one)
	}
	r.running = nil
	return errors.Join(errors.Join(r.errs...), r.gateway.stop(), os.RemoveAll(r.folder))
}

// Logs is what all processes wrote, those that have ended first.
func (r *Runner) Logs() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.logs)
	for _, one := range r.running {
		all = append(all, one.log())
	}
	return strings.Join(all, "\n")
}

func (o *running) log() string { return "----- " + o.name + "\n" + o.process.Log() }

func (r *Runner) serve(ctx context.Context) {
	defer close(r.ended)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(period):
		}
		// A look is not cut short, so that no process is lost sight of.
		err := r.look(context.WithoutCancel(ctx))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			r.mu.Lock()
			r.errs = append(r.errs, err)
			r.mu.Unlock()
		}
	}
}

// look starts what is new, ends what is gone, and reports the rest.
func (r *Runner) look(ctx context.Context) error {
	pods := &corev1.PodList{}
	if err := r.cluster.Client.List(ctx, pods, client.InNamespace(r.namespace), client.MatchingLabels{labelName: "podconfigmap-controller"}); err != nil {
		return fmt.Errorf("listing the operator's pods: %w", err)
	}
	there := map[types.UID]bool{}
	var errs []error
	for i := range pods.Items {
		pod := &pods.Items[i]
		there[pod.UID] = true
		if component := pod.Labels[labelComponent]; component == "manager" || component == "test" {
			errs = append(errs, r.serveOne(ctx, pod))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, one := range r.running {
		if !there[uid] {
			r.end(one)
			delete(r.running, uid)
		}
	}
	return errors.Join(errs...)
}

// end stops a process. How it ends is of no interest: its rights may have gone
// before.
func (r *Runner) end(one *running) {
	_ = one.process.Stop()
	r.logs = append(r.logs, one.log())
}

func (r *Runner) serveOne(ctx context.Context, pod *corev1.Pod) error {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || pod.DeletionTimestamp != nil {
		return nil
	}
	r.mu.Lock()
	one := r.running[pod.UID]
	r.mu.Unlock()
	if one == nil {
		process, err := r.start(ctx, pod)
		if err != nil {
			return fmt.Errorf("starting pod %q: %w", pod.Name, err)
		}
		one = &running{name: pod.Name, process: process}
		r.mu.Lock()
		r.running[pod.UID] = one
		r.mu.Unlock()
	}
	before := pod.DeepCopy()
	report(ctx, pod, one.process)
	if pod.Status.Phase == before.Status.Phase && ready(pod) == ready(before) {
		return nil
	}
	return r.cluster.Client.Status().Patch(ctx, pod, client.MergeFrom(before))
}

// report writes into the status what the process is. One that ends is not started
// again.
func report(ctx context.Context, pod *corev1.Pod, process *harness.Manager) {
	pod.Status.Phase = corev1.PodRunning
	isReady := corev1.ConditionFalse
	select {
	case <-process.Exited():
		pod.Status.Phase = corev1.PodSucceeded
		if process.ExitError() != nil {
			pod.Status.Phase = corev1.PodFailed
		}
	default:
		if probes(pod) == nil {
			isReady = corev1.ConditionTrue
		} else if _, err := process.Probe(ctx, probes(pod).Path); err == nil {
			isReady = corev1.ConditionTrue
		}
	}
	if ready(pod) != (isReady == corev1.ConditionTrue) || len(pod.Status.Conditions) == 0 {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: isReady, LastTransitionTime: metav1.Now()}}
	}
}

// probes is how the pod is asked whether it is ready; nil where it is not asked.
func probes(pod *corev1.Pod) *corev1.HTTPGetAction {
	if probe := pod.Spec.Containers[0].ReadinessProbe; probe != nil {
		return probe.HTTPGet
	}
	return nil
}

func ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// start starts the process of a pod's only container.
func (r *Runner) start(ctx context.Context, pod *corev1.Pod) (*harness.Manager, error) {
	if len(pod.Spec.Containers) != 1 {
		return nil, fmt.Errorf("it has %d containers", len(pod.Spec.Containers))
	}
	container := &pod.Spec.Containers[0]
	environ := map[string]string{"KUBECONFIG": ""}
	for i := range container.Env {
		value, err := valueOf(pod, &container.Env[i])
		if err != nil {
			return nil, err
		}
		environ[container.Env[i].Name] = value
	}
	if mounted := pod.Spec.AutomountServiceAccountToken; mounted == nil || *mounted {
		path, err := r.kubeconfig(ctx, pod)
		if err != nil {
			return nil, err
		}
		environ["KUBECONFIG"] = path
	}
	// Names of Services are looked up by the gateway.
	environ["HTTP_PROXY"] = r.gateway.url
	return r.cluster.StartProgram(environ, container.Args...)
}

// valueOf is the value of a variable, as a kubelet would find it.
func valueOf(pod *corev1.Pod, v *corev1.EnvVar) (string, error) {
	if v.ValueFrom == nil {
		return v.Value, nil
	}
	if v.ValueFrom.FieldRef == nil {
		return "", fmt.Errorf("%s has a source other than a field of the pod", v.Name)
	}
	switch path := v.ValueFrom.FieldRef.FieldPath; path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	default:
		if key, ok := strings.CutPrefix(path, "metadata.annotations['"); ok {
			return pod.Annotations[strings.TrimSuffix(key, "']")], nil
		}
		return "", fmt.Errorf("%s is the field %s, which is not known here", v.Name, path)
	}
}

// kubeconfig writes a file with a token of the pod's ServiceAccount, which has to
// be there.
func (r *Runner) kubeconfig(ctx context.Context, pod *corev1.Pod) (string, error) {
	account := &corev1.ServiceAccount{}
	if err := r.cluster.Client.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: pod.Spec.ServiceAccountName}, account); err != nil {
		return "", fmt.Errorf("reading its ServiceAccount: %w", err)
	}
	config, err := r.cluster.ServiceAccountConfig(ctx, account.Namespace, account.Name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(r.folder, string(pod.UID))
	return path, writeKubeconfig(config, path)
}

func writeKubeconfig(config *rest.Config, path string) error {
	const name = "pod"
	file := clientcmdapi.NewConfig()
	file.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	file.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	file.CurrentContext = name
	return clientcmd.WriteToFile(*file, path)
}
