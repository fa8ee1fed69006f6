// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/subsystem"
	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	// operatorNamespace is where `make deploy` installs the operator.
	operatorNamespace = "podconfigmap-controller-system"
	// namePrefix is that of config/default.
	namePrefix = "podconfigmap-controller-"
	// demoImage is never pulled: there is no kubelet.
	demoImage = "podconfigmap-controller:latest"
)

// prepareAgents makes the operator's namespace, and gives the agents their
// ServiceAccount with the shipped rights.
func (s *session) prepareAgents(ctx context.Context, plane *controlplane.ControlPlane) error {
	namespace := s.settings.PodNamespace
	s.step("The operator's namespace, and the node agent's rights (config/rbac)")
	if err := s.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		return fmt.Errorf("making the operator's namespace: %w", err)
	}
	for _, file := range []string{"agent_service_account.yaml", "agent_role.yaml", "agent_role_binding.yaml"} {
		objects, err := readRights(file, namespace)
		if err != nil {
			return fmt.Errorf("reading config/rbac/%s: %w", file, err)
		}
		for _, object := range objects {
			if err := s.client.Create(ctx, object); err != nil {
				return fmt.Errorf("giving the agents their rights: %w", err)
			}
		}
	}
	config, err := plane.ServiceAccountConfig(ctx, namespace, subsystem.AgentName)
	if err != nil {
		return err
	}
	// It goes with the control plane's folder.
	s.agentKubeconfig = filepath.Join(filepath.Dir(plane.Kubeconfig()), "agent.kubeconfig")
	s.say("namespace %s, ServiceAccount %s", namespace, subsystem.AgentName)
	return writeKubeconfig(s.agentKubeconfig, config)
}

// readRights reads a manifest of config/rbac, as config/default changes it.
func readRights(file, namespace string) ([]client.Object, error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(root, "config/rbac", file))
	if err != nil {
		return nil, err
	}
	kinds := map[string]func() client.Object{
		"ServiceAccount":     func() client.Object { return &corev1.ServiceAccount{} },
		"ClusterRole":        func() client.Object { return &rbacv1.ClusterRole{} },
		"Role":               func() client.Object { return &rbacv1.Role{} },
		"ClusterRoleBinding": func() client.Object { return &rbacv1.ClusterRoleBinding{} },
		"RoleBinding":        func() client.Object { return &rbacv1.RoleBinding{} },
	}
	var all []client.Object
	for documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		var kind metav1.TypeMeta
		if err := sigsyaml.Unmarshal(raw.Raw, &kind); err != nil {
			return nil, err
		}
		if kinds[kind.Kind] == nil {
			return nil, fmt.Errorf("kind %q is not expected", kind.Kind)
		}
		object := kinds[kind.Kind]()
		if err := sigsyaml.UnmarshalStrict(raw.Raw, object); err != nil {
			return nil, err
		}
		install(object, namespace)
		all = append(all, object)
	}
}

// install gives an object, and what it refers to, the installed names.
func install(object client.Object, namespace string) {
	object.SetName(namePrefix + object.GetName())
	if object.GetNamespace() != "" {
		object.SetNamespace(namespace)
	}
	refer := func(role *rbacv1.RoleRef, subjects []rbacv1.Subject) {
		role.Name = namePrefix + role.Name
		for i := range subjects {
			subjects[i].Name, subjects[i].Namespace = namePrefix+subjects[i].Name, namespace
		}
	}
	switch binding := object.(type) {
	case *rbacv1.ClusterRoleBinding:
		refer(&binding.RoleRef, binding.Subjects)
	case *rbacv1.RoleBinding:
		refer(&binding.RoleRef, binding.Subjects)
	}
}

func writeKubeconfig(path string, config *rest.Config) error {
	text := clientcmdapi.NewConfig()
	text.Clusters["demo"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	text.AuthInfos["agent"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	text.Contexts["demo"] = &clientcmdapi.Context{Cluster: "demo", AuthInfo: "agent"}
	text.CurrentContext = "demo"
	return clientcmd.WriteToFile(*text, path)
}

// startAgent starts the agent for the pod that the DaemonSet gave to the node.
func (s *session) startAgent(ctx context.Context) error {
	s.step("The node agent")
	pod, err := s.agentPod(ctx)
	if err != nil {
		return err
	}
	s.say("The manager has made DaemonSet %s/%s,", pod.Namespace, subsystem.AgentName)
	s.say("which has a pod for %s. There being no kubelet, this program starts it, with the pod's", s.nodeName)
	s.say("environment: as a process of root, where a container would have three capabilities.")
	a := s.newProgram("agent")
	if a.metrics, err = controlplane.FreeAddress(); err != nil {
		return err
	}
	if a.probes, err = controlplane.FreeAddress(); err != nil {
		return err
	}
	environ := agentEnvironment(pod)
	pins := filepath.Join(s.real.node.BPFFS(), "podconfigmap", pod.Namespace)
	for name, value := range map[string]string{
		"KUBECONFIG": s.agentKubeconfig, "CGROUP_ROOT": s.real.node.Root(), "BPFFS_ROOT": pins,
		"METRICS_ADDR": a.metrics, "HEALTH_PROBE_ADDR": a.probes,
	} {
		environ[name] = value
	}
	s.say("cgroups  CGROUP_ROOT=%s", s.real.node.Root())
	s.say("pins     BPFFS_ROOT=%s", pins)
	if err := s.run(a, environ); err != nil {
		return err
	}
	s.agentMetrics = agentMetrics{address: a.metrics, command: fmt.Sprintf("curl -s http://%s/metrics", a.metrics)}
	s.later("stopping the agent, and having agent --cleanup take its programs away", func(ctx context.Context) error {
		return s.stopAgent(ctx, a, environ, pins)
	})
	if err := s.real.traces.Process(a.command.Process.Pid); err != nil {
		return err
	}
	if err := s.awaitProgram(ctx, a); err != nil {
		return err
	}
	s.kubelet.agentReady.Store(true)
	return nil
}

// agentPod waits for the pod of the agents' DaemonSet.
func (s *session) agentPod(ctx context.Context) (*corev1.Pod, error) {
	var pod *corev1.Pod
	_, err := s.await(ctx, "the DaemonSet has a pod on "+s.nodeName, func(ctx context.Context) (bool, error) {
		pods := &corev1.PodList{}
		if err := s.client.List(ctx, pods, client.InNamespace(s.settings.PodNamespace), agentPods); err != nil {
			return false, err
		}
		for i := range pods.Items {
			if pods.Items[i].Spec.NodeName == s.nodeName {
				pod = &pods.Items[i]
			}
		}
		return pod != nil, nil
	})
	return pod, err
}

// agentEnvironment is what kubelet would make of the variables of a pod's first
// container. Variables that are the manager's alone are taken away.
func agentEnvironment(pod *corev1.Pod) map[string]string {
	environ := map[string]string{"EBPF_ENABLED": "", "RELATED_IMAGE_AGENT": ""}
	fields := map[string]string{"metadata.name": pod.Name, "metadata.namespace": pod.Namespace, "spec.nodeName": pod.Spec.NodeName}
	for _, v := range pod.Spec.Containers[0].Env {
		environ[v.Name] = v.Value
		if v.ValueFrom != nil && v.ValueFrom.FieldRef != nil {
			environ[v.Name] = fields[v.ValueFrom.FieldRef.FieldPath]
		}
	}
	return environ
}

// stopAgent stops the agent, which leaves its programs in the kernel, and then has
// them removed as the manager does when the flag goes off.
func (s *session) stopAgent(ctx context.Context, a *program, environ map[string]string, pins string) error {
	stopped := a.stop(ctx)
	if err := s.real.traces.Pinned(pins); err != nil {
		return errors.Join(stopped, fmt.Errorf("looking at what the agent has pinned: %w", err))
	}
	c := s.newProgram("agent")
	c.log = strings.TrimSuffix(c.log, ".log") + "-cleanup.log"
	if err := c.start(s.binary, environ, "--cleanup"); err != nil {
		return errors.Join(stopped, err)
	}
	noted := s.real.traces.Process(c.command.Process.Pid)
	_, err := s.awaitAlone(ctx, "the agent has cleaned up", func(ctx context.Context) (bool, error) {
		select {
		case <-c.exited:
			return true, c.failure()
		default:
		}
		node, err := s.ebpfNode(ctx)
		return err == nil && meta.IsStatusConditionTrue(node.Status.Conditions, v1alpha1.ConditionDetached), err
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, c.logTail())
	}
	return errors.Join(stopped, noted, err, c.stop(ctx))
}

// ebpfNode reads the agent's report.
func (s *session) ebpfNode(ctx context.Context) (*v1alpha1.EBPFNode, error) {
	node := &v1alpha1.EBPFNode{}
	return node, s.client.Get(ctx, client.ObjectKey{Namespace: s.settings.PodNamespace, Name: s.nodeName}, node)
}
