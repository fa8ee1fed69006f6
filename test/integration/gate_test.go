// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/diff"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

const (
	agent       = "podconfigmap-controller-agent"
	legacyAgent = agent + "-legacy"
	ownImage    = "registry.invalid/podconfigmap-controller:v1"
)

// gate is a namespace in which an operator is installed: its Deployment, whose
// pod the tests' managers say they are, and the agents' ServiceAccount. There are
// two Nodes, without kubelets: agents' pods are made for them, and never start.
type gate struct {
	*space
	deployment *appsv1.Deployment
	environ    map[string]string
}

var agentNodes = []string{"gate-1", "gate-2"}

var makeNodes = sync.OnceValue(func() error {
	var all error
	for _, name := range agentNodes {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux"}}}
		if name == agentNodes[1] {
			node.Labels[v1alpha1.LabelLegacyKernel] = "true"
		}
		all = errors.Join(all, cluster.Client.Create(context.Background(), node))
	}
	return all
})

func installed(t *testing.T) *gate {
	t.Helper()
	g := &gate{space: own(t)}
	g.must(makeNodes())
	g.must(allowAgents(t.Context(), g.name))
	g.must(cluster.Client.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: g.name, Name: agent}}))
	app, one := map[string]string{"app": "operator"}, int32(1)
	yes, no := true, false
	g.deployment = &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: g.name, Name: "operator"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: app},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: app},
				Spec: corev1.PodSpec{
					ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
					SecurityContext:  &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
					Containers: []corev1.Container{
						{Name: "sidecar", Image: "registry.invalid/sidecar:v1", SecurityContext: restricted(&no)},
						{Name: "manager", Image: ownImage, SecurityContext: restricted(&no)},
					},
				},
			},
		},
	}
	g.must(cluster.Client.Create(t.Context(), g.deployment))
	g.environ = map[string]string{
		"WATCH_NAMESPACE": g.name, "POD_NAMESPACE": g.name, "LEADER_ELECTION_LOCK_NAMESPACE": operators,
		"EBPF_ENABLED": "true", "CONTROLLER_RESYNC_PERIOD": "1s",
	}
	g.eventually("the operator has a pod", func() error {
		for _, pod := range g.pods() {
			if pod.Labels["app"] == "operator" {
				g.environ["POD_NAME"] = pod.Name
				return nil
			}
		}
		return errors.New("none")
	})
	return g
}

func restricted(no *bool) *corev1.SecurityContext {
	return &corev1.SecurityContext{AllowPrivilegeEscalation: no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
}

// manage starts a manager with the settings, and those given on top.
func (g *gate) manage(account string, more map[string]string) {
	g.t.Helper()
	environ := maps.Clone(g.environ)
	maps.Copy(environ, more)
	g.manager = beginAs(g.t, account, environ)
	g.must(g.WaitReady(g.t.Context()))
}

// set waits until a DaemonSet passes the check, and returns it.
func (g *gate) set(name, what string, check func(*appsv1.DaemonSet) error) *appsv1.DaemonSet {
	g.t.Helper()
	return g.setWithin(patience, name, what, check)
}

func (g *gate) setWithin(patience time.Duration, name, what string, check func(*appsv1.DaemonSet) error) *appsv1.DaemonSet {
	g.t.Helper()
	set := &appsv1.DaemonSet{}
	g.within(patience, name+": "+what, func() error {
		set = &appsv1.DaemonSet{}
		if err := cluster.Client.Get(g.t.Context(), g.key(name), set); err != nil {
			return err
		}
		return check(set)
	})
	return set
}

func exists(*appsv1.DaemonSet) error { return nil }

func (g *gate) setGone(name string) {
	g.t.Helper()
	g.eventually(name+" goes", func() error {
		err := cluster.Client.Get(g.t.Context(), g.key(name), &appsv1.DaemonSet{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("reading it gives %w", err)
		}
		return nil
	})
}

// takeover is more than the 5 minutes for which the controller of DaemonSets may
// wait, where one follows another of its name at once, for what it expected of the
// other. Source: ExpectationsTimeout of kube-controller-manager.
const takeover = 6 * time.Minute

// rolledOut waits until there is a pod of the DaemonSet's newest template for
// each of its nodes.
func (g *gate) rolledOut(name string, nodes int) *appsv1.DaemonSet {
	g.t.Helper()
	return g.setWithin(takeover, name, "is rolled out", func(set *appsv1.DaemonSet) error {
		// Where a DaemonSet follows another of its name, its controller may leave the
		// other's, higher generation in the status.
		if s := set.Status; s.ObservedGeneration < set.Generation || int(s.UpdatedNumberScheduled) != nodes || int(s.CurrentNumberScheduled) != nodes {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
}

// tell writes what the agent of a node reports, as it would.
func (g *gate) tell(node string, change func(*v1alpha1.EBPFNodeStatus)) {
	g.t.Helper()
	object := &v1alpha1.EBPFNode{ObjectMeta: metav1.ObjectMeta{Namespace: g.name, Name: node}}
	if err := cluster.Client.Create(g.t.Context(), object); err != nil && !apierrors.IsAlreadyExists(err) {
		g.t.Fatal(err)
	}
	g.must(cluster.Client.Get(g.t.Context(), g.key(node), object))
	before := object.DeepCopy()
	change(&object.Status)
	g.must(cluster.Client.Status().Patch(g.t.Context(), object, client.MergeFrom(before)))
}

// unreadyAgent makes a pod of an agent that is not ready. Those of the DaemonSet are on
// no node: there is no scheduler.
func (g *gate) unreadyAgent(name, node string, since time.Time) *corev1.Pod {
	g.t.Helper()
	labels := map[string]string{"app.kubernetes.io/name": "podconfigmap-controller", "app.kubernetes.io/component": "agent"}
	g.pod(name, labels, func(p *corev1.Pod) { p.Spec.NodeName = node })
	pod := &corev1.Pod{}
	g.must(cluster.Client.Get(g.t.Context(), g.key(name), pod))
	before := pod.DeepCopy()
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(since)}}
	g.must(cluster.Client.Status().Patch(g.t.Context(), pod, client.MergeFrom(before)))
	return pod
}

func (g *gate) detached(node string) {
	g.t.Helper()
	g.tell(node, func(s *v1alpha1.EBPFNodeStatus) {
		s.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionDetached, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCleanedUp, LastTransitionTime: metav1.Now()}}
	})
}

func (g *gate) nodeReports() int {
	all := &v1alpha1.EBPFNodeList{}
	g.list(all)
	return len(all.Items)
}

// idle waits until the manager makes no more calls, and sees that it makes none
// for three resyncs.
func (g *gate) idle(when string) {
	g.t.Helper()
	g.eventually("calls cease "+when, func() error {
		time.Sleep(time.Second)
		if late := g.calls(g.t, time.Now().Add(-time.Second)); len(late) > 0 {
			return fmt.Errorf("%v", late)
		}
		return nil
	})
	began := time.Now()
	time.Sleep(4 * time.Second)
	if all := g.calls(g.t, began); len(all) > 0 {
		g.t.Errorf("calls %s: %v", when, all)
	}
}

// asking has a config that asks for the firewall, and one pod for it on a node.
func (g *gate) asking(node string) *v1alpha1.PodConfigMapConfig {
	g.t.Helper()
	g.pod("web", map[string]string{"app": "web"}, func(p *corev1.Pod) { p.Spec.NodeName = node })
	return g.config("asks", spec{
		PodSelector: selecting("app", "web"),
		EBPFConfig:  &v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{Enabled: true}},
	})
}

// served is a node's report of one pod.
func served(c *v1alpha1.PodConfigMapConfig, change func(*v1alpha1.EBPFNodeConfig)) func(*v1alpha1.EBPFNodeStatus) {
	return func(s *v1alpha1.EBPFNodeStatus) {
		one := v1alpha1.EBPFNodeConfig{Namespace: c.Namespace, Name: c.Name, Generation: c.Generation, Desired: 1, Attached: 1}
		change(&one)
		s.Configs = []v1alpha1.EBPFNodeConfig{one}
	}
}

func asIs(*v1alpha1.EBPFNodeConfig) {}

// TestAgentLife: the flag goes on, agents report, somebody edits the DaemonSet,
// settings change, the flag goes off.
func TestAgentLife(t *testing.T) {
	t.Parallel()
	g := installed(t)
	config := g.asking(agentNodes[0])
	account := newAccount()
	g.manage(account, nil)
	checkAgentPods(t, g.rolledOut(agent, 2), g.deployment)
	g.expectEvent("Normal AgentDeployed DaemonSet/" + agent + ": deployed the node agents, image " + ownImage)
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, "False Progressing: no node agent has reported from 1 node yet: gate-1; see kubectl -n "+
		g.name+" get pods -l app.kubernetes.io/component=agent -o wide, and AGENT_NODE_SELECTOR")

	const attached = "True Attached: 1 matching pod on 1 node; those that run are served"
	for _, node := range agentNodes {
		g.tell(node, func(*v1alpha1.EBPFNodeStatus) {})
	}
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, "False Progressing: waiting for 1 node agent: gate-1")
	g.tell(agentNodes[0], served(config, func(c *v1alpha1.EBPFNodeConfig) { c.Attached, c.Failed, c.Message = 0, 1, "no memory" }))
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady,
		`False AttachFailed: 1 pod of 1 matching pod not served; the agent tries again by itself, its log and the pods' Events tell more: node "gate-1": 1 failed, no memory`)
	g.tell(agentNodes[0], served(config, func(c *v1alpha1.EBPFNodeConfig) { c.Attached, c.Unsupported, c.Message = 0, 1, "no cgroup v2" }))
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady,
		`False NodeUnsupported: 1 pod of 1 matching pod on nodes that cannot serve what the config asks for: node "gate-1": 1 unsupported, no cgroup v2`)
	g.tell(agentNodes[0], served(config, asIs))
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, attached)
	g.expectServed("asks", 1)
	if c, _ := g.status("asks", ""); c.Status.EBPF == nil || *c.Status.EBPF != (v1alpha1.EBPFStatus{AttachedPods: 1}) {
		t.Errorf("counts %+v", c.Status.EBPF)
	}

	// Of a node whose agent has ended, nothing is at work.
	g.detached(agentNodes[0])
	g.eventually("a detached node serves nothing", func() error {
		c, is := g.status("asks", v1alpha1.ConditionEBPFReady)
		if is.Reason != v1alpha1.ReasonProgressing || !strings.HasPrefix(is.Message, "no node agent has reported from 1 node yet: gate-1") || c.Status.EBPF.AttachedPods != 0 {
			return fmt.Errorf("status %+v", c.Status)
		}
		return nil
	})
	g.tell(agentNodes[0], func(s *v1alpha1.EBPFNodeStatus) { s.Conditions = nil })
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, attached)

	// Of a node that nothing is heard of the node controller says that its pods are not ready.
	unready := g.unreadyAgent("cut-off", agentNodes[0], time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC))
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, "False Progressing: 1 node agent not ready: gate-1 since 2026-01-01T12:00:00Z; pods served before keep their programs and rules; see kubectl -n "+
		g.name+" get pods -l app.kubernetes.io/component=agent -o wide")
	g.idle("while an agent is not ready")
	g.must(cluster.Client.Delete(t.Context(), unready, client.GracePeriodSeconds(0)))
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, attached)

	g.respec("asks", func(s *spec) { s.EBPFConfig.L4Firewall.DefaultAction = v1alpha1.FirewallActionBlock })
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, "False Progressing: waiting for 1 node agent: gate-1")
	config.Generation++
	g.tell(agentNodes[0], served(config, asIs))
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, attached)
	g.idle("while agents serve")
	g.drift()
	g.idle("after the repairs")

	g.stop(t)
	began := time.Now()
	g.manage(account, nil)
	g.idle("after a restart")
	for _, c := range g.calls(t, began) {
		if c.Verb != "get" && c.Verb != "list" {
			t.Errorf("a restart writes: %v", c)
		}
	}
	g.stop(t)
	g.changeSettings(account)
	g.remove(&corev1.Pod{}, "web")
	g.switchOff(account)
}

// drift repairs what somebody does to the DaemonSet.
func (g *gate) drift() {
	g.t.Helper()
	right := g.set(agent, "exists", exists)
	same := func(set *appsv1.DaemonSet) error {
		if !equality.Semantic.DeepEqual(set.Spec, right.Spec) || !maps.Equal(set.Labels, right.Labels) || len(set.OwnerReferences) != 1 {
			return fmt.Errorf("labels %v, owners %v, difference %s", set.Labels, set.OwnerReferences, diff.Diff(right.Spec, set.Spec))
		}
		return nil
	}
	yes := true
	for what, change := range map[string]func(*appsv1.DaemonSet){
		"a privileged container": func(s *appsv1.DaemonSet) {
			s.Spec.Template.Spec.Containers[0].SecurityContext.Privileged = &yes
			s.Spec.Template.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = &yes
		},
		"the host's network": func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.HostNetwork = true },
		"one more container": func(s *appsv1.DaemonSet) {
			s.Spec.Template.Spec.Containers = append(s.Spec.Template.Spec.Containers, corev1.Container{Name: "more", Image: "x"})
		},
		"a scheduler": func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.SchedulerName = "theirs" },
		"a label":     func(s *appsv1.DaemonSet) { delete(s.Labels, "app.kubernetes.io/component") },
		"no owner":    func(s *appsv1.DaemonSet) { s.OwnerReferences = nil },
		"no memory":   func(s *appsv1.DaemonSet) { s.Annotations = nil },
	} {
		version := g.set(agent, "exists", exists).ResourceVersion
		patch(g.space, &appsv1.DaemonSet{}, agent, change)
		g.set(agent, "is repaired after "+what, func(set *appsv1.DaemonSet) error {
			if set.ResourceVersion == version {
				return errors.New("not edited")
			}
			return same(set)
		})
	}
	patch(g.space, &appsv1.DaemonSet{}, agent, func(s *appsv1.DaemonSet) { s.Labels["theirs"] = "stays" })
	// The DaemonSet controller waits for five minutes for pods that it has made for a
	// DaemonSet that was deleted meanwhile, also where one of its name is there again.
	g.rolledOut(agent, 2)
	g.remove(&appsv1.DaemonSet{}, agent)
	g.set(agent, "is there again", func(set *appsv1.DaemonSet) error {
		if set.UID == right.UID {
			return errors.New("not deleted")
		}
		return same(set)
	})
	g.rolledOut(agent, 2)
}

// changeSettings restarts the manager with others.
func (g *gate) changeSettings(account string) {
	g.t.Helper()
	g.manage(account, map[string]string{
		"RELATED_IMAGE_AGENT": "registry.invalid/agent:v2", "AGENT_TOLERATIONS": "[]", "AGENT_NODE_SELECTOR": "kubernetes.io/os=linux,pool=none",
		"AGENT_RESOURCES": `{"limits":{"memory":"1Gi"}}`, "AGENT_PRIORITY_CLASS": "system-node-critical", "AGENT_SECCOMP_PROFILE": "RuntimeDefault", "LOG_FORMAT": "json",
	})
	set := g.set(agent, "has the new settings", func(set *appsv1.DaemonSet) error {
		pod := set.Spec.Template.Spec
		c := pod.Containers[0]
		if c.Image != "registry.invalid/agent:v2" || len(pod.Tolerations) != 0 || pod.NodeSelector["pool"] != "none" || c.Resources.Limits.Memory().String() != "1Gi" ||
			len(c.Resources.Requests) != 0 || c.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || pod.PriorityClassName != "system-node-critical" || !slices.Contains(c.Env, corev1.EnvVar{Name: "LOG_FORMAT", Value: "json"}) {
			return errors.New("not yet")
		}
		return nil
	})
	if set.Generation != 2 {
		g.t.Errorf("%d generations for one change", set.Generation)
	}
	g.expectEvent("Normal AgentUpdated DaemonSet/" + agent + ": updated the node agents: the operator's settings or version changed")
	g.stop(g.t)
	g.manage(account, nil)
	g.rolledOut(agent, 2)
}

// switchOff turns the flag off and has the agents report one by one.
func (g *gate) switchOff(account string) {
	g.t.Helper()
	g.stop(g.t)
	off := map[string]string{"EBPF_ENABLED": "false"}
	g.manage(account, off)
	set := g.set(agent, "cleans up", func(set *appsv1.DaemonSet) error {
		if c := set.Spec.Template.Spec.Containers[0]; !slices.Equal(c.Args, []string{"agent", "--cleanup"}) || c.LivenessProbe != nil {
			return errors.New("not yet")
		}
		return nil
	})
	if at, err := time.Parse(time.RFC3339, set.Annotations[v1alpha1.AnnotationCleanupSince]); err != nil || time.Since(at) > patience {
		g.t.Errorf("annotations %v", set.Annotations)
	}
	g.detached(agentNodes[0])
	g.steadily("it waits for the other node", 3*time.Second, func() error {
		return cluster.Client.Get(g.t.Context(), g.key(agent), &appsv1.DaemonSet{})
	})
	g.detached(agentNodes[1])
	g.setGone(agent)
	g.eventually("no report is left", func() error {
		if n := g.nodeReports(); n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	g.eventually("the config says so", func() error {
		c, is := g.status("asks", v1alpha1.ConditionEBPFReady)
		if is.Reason != v1alpha1.ReasonFeatureDisabled || c.Status.EBPF != nil {
			return fmt.Errorf("status %+v", c.Status)
		}
		return nil
	})
	g.idle("with the flag off")
	g.expectNoErrors(g.t)
	g.stop(g.t)

	// With nothing there it is one look.
	began := time.Now()
	g.manage(account, off)
	g.idle("with the flag off and nothing there")
	looks := map[string]int{}
	for _, c := range g.calls(g.t, began) {
		looks[c.Verb+" "+c.ObjectRef.Resource]++
	}
	for _, other := range []string{"list pods", "list configmaps", "list podconfigmapconfigs"} {
		delete(looks, other) // of the informers, where they do not stream
	}
	if want := map[string]int{"get daemonsets": 2, "list ebpfnodes": 1}; !maps.Equal(looks, want) {
		g.t.Errorf("looks %v, want %v", looks, want)
	}
}

// checkAgentPods: what the agents may and what not.
func checkAgentPods(t *testing.T, set *appsv1.DaemonSet, deployment *appsv1.Deployment) {
	t.Helper()
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	s := c.SecurityContext
	for what, wrong := range map[string]bool{
		"owner":        len(set.OwnerReferences) != 1 || set.OwnerReferences[0].UID != deployment.UID || set.OwnerReferences[0].Kind != "Deployment" || set.OwnerReferences[0].BlockOwnerDeletion != nil,
		"image":        c.Image != ownImage || len(pod.ImagePullSecrets) != 1 || pod.ImagePullSecrets[0].Name != "pull",
		"capabilities": fmt.Sprint(*s.Capabilities) != "{[BPF NET_ADMIN PERFMON] [ALL]}",
		"privileges":   *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || *s.RunAsUser != 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeUnconfined,
		"host":         pod.HostNetwork || pod.HostPID || pod.HostIPC,
		"account":      pod.ServiceAccountName != agent,
		"nodes":        !maps.Equal(pod.NodeSelector, map[string]string{corev1.LabelOSStable: "linux"}) || pod.Affinity != nil || len(pod.Tolerations) != 1 || pod.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}),
		"mounts": len(c.VolumeMounts) != 2 || !c.VolumeMounts[0].ReadOnly || *c.VolumeMounts[0].MountPropagation != corev1.MountPropagationHostToContainer ||
			pod.Volumes[0].HostPath.Path != "/sys/fs/cgroup" || pod.Volumes[1].HostPath.Path != "/sys/fs/bpf" || len(pod.Volumes) != 2,
		"pins":     !slices.Contains(c.Env, corev1.EnvVar{Name: "BPFFS_ROOT", Value: c.VolumeMounts[1].MountPath + "/podconfigmap/" + set.Namespace}),
		"settings": !slices.Contains(c.Env, corev1.EnvVar{Name: "WATCH_NAMESPACE", Value: set.Namespace}) || !slices.Contains(c.Env, corev1.EnvVar{Name: "CONTROLLER_RESYNC_PERIOD", Value: "1s"}),
		"rolling":  set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.IntValue() != 1 || set.Spec.UpdateStrategy.RollingUpdate.MaxSurge.IntValue() != 0,
		"mode":     !slices.Equal(c.Args, []string{"agent"}),
	} {
		if wrong {
			t.Errorf("the agents' %s: %+v", what, set)
		}
	}
	service := labels.SelectorFromSet(labels.Set{"app.kubernetes.io/name": "podconfigmap-controller", "app.kubernetes.io/component": "agent"})
	if !service.Matches(labels.Set(set.Spec.Template.Labels)) {
		t.Errorf("the metrics Service does not select %v", set.Spec.Template.Labels)
	}
}

// TestAgentNotAdmitted: a namespace under "restricted" keeps agents out, until
// somebody runs the command that the condition names.
func TestAgentNotAdmitted(t *testing.T) {
	t.Parallel()
	g := installed(t)
	namespace := &corev1.Namespace{}
	level := func(value string) {
		t.Helper()
		g.must(cluster.Client.Get(t.Context(), client.ObjectKey{Name: g.name}, namespace))
		before := namespace.DeepCopy()
		namespace.Labels["pod-security.kubernetes.io/enforce"] = value
		g.must(cluster.Client.Patch(t.Context(), namespace, client.MergeFrom(before)))
	}
	level("restricted")
	g.config("without-pods", spec{PodSelector: selecting("app", "none"), EBPFConfig: &v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true}}})
	g.config("asks-nothing", spec{PodSelector: selecting("app", "none")})
	g.manage(newAccount(), nil)
	command := "kubectl label namespace " + g.name + " pod-security.kubernetes.io/enforce=privileged --overwrite"
	g.eventually("it says what helps", func() error {
		_, c := g.status("without-pods", v1alpha1.ConditionEBPFReady)
		if c.Status != metav1.ConditionFalse || c.Reason != v1alpha1.ReasonAgentNotAdmitted || !strings.Contains(c.Message, "run: "+command) || !strings.Contains(c.Message, `PodSecurity "restricted:latest"`) {
			return fmt.Errorf("EBPFReady %+v", c)
		}
		return nil
	})
	g.expectServed("asks-nothing", 0)
	_, told := g.status("without-pods", v1alpha1.ConditionEBPFReady)
	g.expectEvent("Warning AgentNotAdmitted DaemonSet/" + agent + ": " + told.Message)
	level("privileged")
	// kube-controller-manager by itself would wait for minutes.
	g.expectCondition("without-pods", v1alpha1.ConditionEBPFReady, "True Attached: 0 matching pods on 0 nodes; those that run are served")
	g.rolledOut(agent, 2)
	g.expectNoErrors(t)
}

// TestLeaderChangeInCleanup: the next leader goes on where the last one was, and
// waits no longer than is left of the minute.
func TestLeaderChangeInCleanup(t *testing.T) {
	t.Parallel()
	g := installed(t)
	account := newAccount()
	g.manage(account, nil)
	g.rolledOut(agent, 2)
	for _, node := range agentNodes {
		g.tell(node, func(*v1alpha1.EBPFNodeStatus) {})
	}
	g.stop(t)
	off := map[string]string{"EBPF_ENABLED": "false"}
	g.manage(account, off)
	began := func(set *appsv1.DaemonSet) error {
		if set.Annotations[v1alpha1.AnnotationCleanupSince] == "" {
			return errors.New("not yet")
		}
		return nil
	}
	first := g.set(agent, "cleans up", began)
	g.must(g.Kill())

	// As if most of the minute had passed meanwhile.
	patch(g.space, &appsv1.DaemonSet{}, agent, func(s *appsv1.DaemonSet) {
		s.Annotations[v1alpha1.AnnotationCleanupSince] = time.Now().Add(-55 * time.Second).UTC().Format(time.RFC3339)
	})
	g.detached(agentNodes[0])
	g.environ["LEADER_ELECTION_LOCK_NAME"] = account + "-next" // the killed one's Lease is valid for a minute
	g.manage(account, off)
	g.setGone(agent)
	g.expectEvent("Warning AgentsAbsent DaemonSet/" + agent + ": within 1m0s these nodes did not report that their programs are detached: gate-2. " +
		"An agent that ends later cleans up by itself, and a reboot does; else remove /sys/fs/bpf/podconfigmap/" + g.name + " on the node")
	g.eventually("no report is left", func() error {
		if n := g.nodeReports(); n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if first.Generation != 2 {
		t.Errorf("the cleanup is generation %d", first.Generation)
	}
	g.expectNoErrors(t)
}

// TestFlagOnDuringCleanup: the agents serve again.
func TestFlagOnDuringCleanup(t *testing.T) {
	t.Parallel()
	g := installed(t)
	account := newAccount()
	g.manage(account, nil)
	g.rolledOut(agent, 2)
	g.tell(agentNodes[0], func(*v1alpha1.EBPFNodeStatus) {})
	g.stop(t)
	g.manage(account, map[string]string{"EBPF_ENABLED": "false"})
	g.set(agent, "cleans up", func(set *appsv1.DaemonSet) error {
		if len(set.Spec.Template.Spec.Containers[0].Args) != 2 {
			return errors.New("not yet")
		}
		return nil
	})
	g.stop(t)
	g.manage(account, nil)
	g.set(agent, "serves", func(set *appsv1.DaemonSet) error {
		if len(set.Spec.Template.Spec.Containers[0].Args) != 1 || set.Annotations[v1alpha1.AnnotationCleanupSince] != "" {
			return errors.New("not yet")
		}
		return nil
	})
	g.expectEvent("Normal AgentUpdated DaemonSet/" + agent + ": updated the node agents: the feature was turned on again while it was being removed")
	g.idle("when it serves again")
}

// TestUninstall: who deletes the operator's Deployment takes the agents with it,
// with no manager there to help.
func TestUninstall(t *testing.T) {
	t.Parallel()
	g := installed(t)
	g.manage(newAccount(), nil)
	g.rolledOut(agent, 2)
	g.must(g.Kill())
	g.must(cluster.Client.Delete(t.Context(), g.deployment, client.PropagationPolicy(metav1.DeletePropagationBackground)))
	g.setGone(agent)
	g.eventually("the agents' pods go", func() error {
		if n := len(g.pods()); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
}

// TestLegacyKernels: labelled nodes get another agent, and the first again when
// the setting goes off.
func TestLegacyKernels(t *testing.T) {
	t.Parallel()
	g := installed(t)
	account := newAccount()
	g.manage(account, map[string]string{"AGENT_LEGACY_KERNELS": "true"})
	first, second := g.rolledOut(agent, 1), g.rolledOut(legacyAgent, 1)
	if first.Spec.Template.Spec.Affinity == nil || second.Spec.Template.Spec.Affinity != nil || second.Spec.Template.Spec.NodeSelector[v1alpha1.LabelLegacyKernel] != "true" {
		t.Errorf("nodes: %+v and %+v", first.Spec.Template.Spec, second.Spec.Template.Spec)
	}
	c := second.Spec.Template.Spec.Containers[0].SecurityContext
	if fmt.Sprint(*c.Capabilities) != "{[NET_ADMIN SYS_ADMIN SYS_RESOURCE] [ALL]}" || *c.Privileged || *c.AllowPrivilegeEscalation {
		t.Errorf("security context %+v", c)
	}
	if fmt.Sprint(first.Spec.Selector) == fmt.Sprint(second.Spec.Selector) {
		t.Errorf("both select %v", first.Spec.Selector)
	}
	g.idle("with two DaemonSets")
	g.stop(t)
	g.manage(account, nil)
	g.setGone(legacyAgent)
	if set := g.rolledOut(agent, 2); set.Spec.Template.Spec.Affinity != nil {
		t.Errorf("the first one still avoids nodes: %+v", set.Spec.Template.Spec.Affinity)
	}
	g.idle("with one DaemonSet")
	g.expectNoErrors(t)
}

// TestForeignDaemonSet: one of that name which is not ours is left alone.
func TestForeignDaemonSet(t *testing.T) {
	t.Parallel()
	g := installed(t)
	app := map[string]string{"app": "theirs"}
	theirs := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: g.name, Name: agent},
		Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: app}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}},
	}
	g.must(cluster.Client.Create(t.Context(), theirs))
	g.asking(agentNodes[0])
	account := newAccount()
	g.manage(account, nil)
	problem := fmt.Sprintf("DaemonSet %q in namespace %q is not the operator's: delete or rename it", agent, g.name)
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, "False Progressing: no node agent has reported from 1 node yet: gate-1; "+problem)
	g.expectEvent("Warning NameConflict DaemonSet/" + agent + ": " + problem)
	g.stop(t)
	g.manage(account, map[string]string{"EBPF_ENABLED": "false"})
	g.idle("beside another's DaemonSet")
	if set := g.set(agent, "stays", exists); set.UID != theirs.UID || set.Generation != 1 || len(set.Annotations) > 1 {
		t.Errorf("it was touched: %+v", set.ObjectMeta)
	}
}

// TestOutsideOfACluster: without a pod of its own a manager needs to be told the
// image.
func TestOutsideOfACluster(t *testing.T) {
	t.Parallel()
	g := installed(t)
	g.environ["POD_NAME"] = "nobody"
	g.asking(agentNodes[0])
	account := newAccount()
	g.manage(account, nil)
	g.expectCondition("asks", v1alpha1.ConditionEBPFReady, "False Progressing: no node agent has reported from 1 node yet: gate-1; the agent's image is not known: set RELATED_IMAGE_AGENT, "+
		`because there is no pod "nobody" in namespace "`+g.name+`" to read the manager's own image from`)
	g.stop(t)
	g.manage(account, map[string]string{"RELATED_IMAGE_AGENT": ownImage})
	if set := g.rolledOut(agent, 2); len(set.OwnerReferences) > 0 {
		t.Errorf("owners %v", set.OwnerReferences)
	}
}
