// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

const (
	// AgentName is the name of the agents' DaemonSet and of their ServiceAccount.
	AgentName = "podconfigmap-controller-agent"
	// LegacyName is that of the DaemonSet for kernels before 5.11.
	LegacyName = AgentName + "-legacy"

	// container is the agents' only one, managerContainer the manager's.
	container        = "agent"
	managerContainer = "manager"

	labelName      = "app.kubernetes.io/name"
	labelComponent = "app.kubernetes.io/component"
	appName        = "podconfigmap-controller"
	component      = "agent"
	// labelVariant keeps the two DaemonSets' selectors apart.
	labelVariant = "podconfig.example.com/agent"

	// bpffsMount is where the node's /sys/fs/bpf is seen in an agent. It is not
	// /sys/fs/bpf: the runtimes' default AppArmor profile denies writing there.
	bpffsMount = "/bpffs"
	pinFolder  = "podconfigmap"

	metricsPort = 8080
	probesPort  = 8081

	cleanupFlag = "--cleanup"
)

// variant is one of the two kinds of agents.
type variant struct {
	name, label  string
	capabilities []corev1.Capability
	legacy       bool
}

var (
	standard = variant{name: AgentName, label: "standard", capabilities: []corev1.Capability{"BPF", "NET_ADMIN", "PERFMON"}}
	legacy   = variant{name: LegacyName, label: "legacy", capabilities: []corev1.Capability{"NET_ADMIN", "SYS_ADMIN", "SYS_RESOURCE"}, legacy: true}
)

// variants are all that there can be.
var variants = []variant{standard, legacy}

// agentLabels select the pods of all agents.
func agentLabels() map[string]string {
	return map[string]string{labelName: appName, labelComponent: component}
}

func (v variant) labels() map[string]string {
	all := agentLabels()
	all[labelVariant] = v.label
	return all
}

// identity is what the agents take over from the manager's own pod.
type identity struct {
	image       string
	pullPolicy  corev1.PullPolicy
	pullSecrets []corev1.LocalObjectReference
	// owner is the manager's Deployment; nil where it has none.
	owner *metav1.OwnerReference
}

// desired is the DaemonSet as it should be. avoidLegacy keeps it off nodes that
// the other one serves.
func (v variant) desired(id identity, s *settings.Settings, avoidLegacy bool) *appsv1.DaemonSet {
	one := intstr.FromInt32(1)
	none := intstr.FromInt32(0)
	set := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.PodNamespace, Name: v.name, Labels: v.labels()},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: v.labels()},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type:          appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &one, MaxSurge: &none},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      v.labels(),
					Annotations: map[string]string{"kubectl.kubernetes.io/default-container": container},
				},
				Spec: v.pod(id, s, avoidLegacy),
			},
		},
	}
	if id.owner != nil {
		set.OwnerReferences = []metav1.OwnerReference{*id.owner}
	}
	return set
}

func (v variant) pod(id identity, s *settings.Settings, avoidLegacy bool) corev1.PodSpec {
	grace, links := int64(30), false
	directory := corev1.HostPathDirectory
	spec := corev1.PodSpec{
		ServiceAccountName:            AgentName,
		TerminationGracePeriodSeconds: &grace,
		EnableServiceLinks:            &links,
		PriorityClassName:             s.AgentPriorityClass,
		ImagePullSecrets:              id.pullSecrets,
		Tolerations:                   s.AgentTolerations,
		NodeSelector:                  map[string]string{corev1.LabelOSStable: "linux"},
		Containers:                    []corev1.Container{v.container(id, s)},
		Volumes: []corev1.Volume{
			{Name: "cgroup", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/sys/fs/cgroup", Type: &directory}}},
			{Name: "bpffs", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/sys/fs/bpf", Type: &directory}}},
		},
	}
	maps.Copy(spec.NodeSelector, s.AgentNodeSelector)
	switch {
	case v.legacy:
		spec.NodeSelector[v1alpha1.LabelLegacyKernel] = "true"
	case avoidLegacy:
		spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: v1alpha1.LabelLegacyKernel, Operator: corev1.NodeSelectorOpNotIn, Values: []string{"true"}},
				},
			}}},
		}}
	}
	return spec
}

func (v variant) container(id identity, s *settings.Settings) corev1.Container {
	into := corev1.MountPropagationHostToContainer
	return corev1.Container{
		Name: container, Image: id.image, ImagePullPolicy: id.pullPolicy,
		Args: []string{"agent"},
		Env:  agentEnv(s),
		Ports: []corev1.ContainerPort{
			{Name: "metrics", ContainerPort: metricsPort, Protocol: corev1.ProtocolTCP},
			{Name: "probes", ContainerPort: probesPort, Protocol: corev1.ProtocolTCP},
		},
		LivenessProbe:   probe("/healthz", 10, 20),
		ReadinessProbe:  probe("/readyz", 0, 5),
		Resources:       s.AgentResources.ResourceRequirements,
		SecurityContext: v.securityContext(s),
		VolumeMounts: []corev1.VolumeMount{
			{Name: "cgroup", MountPath: "/sys/fs/cgroup", ReadOnly: true, MountPropagation: &into},
			{Name: "bpffs", MountPath: bpffsMount, MountPropagation: &into},
		},
	}
}

func probe(path string, delay, period int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:        corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("probes")}},
		InitialDelaySeconds: delay, PeriodSeconds: period,
	}
}

// securityContext gives an agent what loading and attaching need, and no more.
// UID 0 without DAC_OVERRIDE owns what it makes below the node's bpffs. The
// seccomp profile is a setting: not every runtime's default lets the capability
// BPF use bpf. spc_t is for nodes with SELinux, whose containers may not use BPF
// otherwise.
func (v variant) securityContext(s *settings.Settings) *corev1.SecurityContext {
	yes, no, root := true, false, int64(0)
	return &corev1.SecurityContext{
		Privileged: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		RunAsUser: &root, RunAsGroup: &root, RunAsNonRoot: &no,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: v.capabilities},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileType(s.AgentSeccompProfile)},
		SELinuxOptions: &corev1.SELinuxOptions{Type: "spc_t", Level: "s0"},
	}
}

func agentEnv(s *settings.Settings) []corev1.EnvVar {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	return []corev1.EnvVar{
		field("NODE_NAME", "spec.nodeName"),
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		{Name: "WATCH_NAMESPACE", Value: strings.Join(s.WatchNamespaces, ",")},
		{Name: "BPFFS_ROOT", Value: path.Join(bpffsMount, pinFolder, s.PodNamespace)},
		{Name: "METRICS_ADDR", Value: fmt.Sprintf(":%d", metricsPort)},
		{Name: "HEALTH_PROBE_ADDR", Value: fmt.Sprintf(":%d", probesPort)},
		{Name: "CONTROLLER_RESYNC_PERIOD", Value: s.ResyncPeriod.String()},
		{Name: "LOG_LEVEL", Value: s.LogLevel},
		{Name: "LOG_FORMAT", Value: s.LogFormat},
		{Name: "LOG_JSON_FORMAT", Value: strconv.FormatBool(s.LogJSONFormat)},
		{Name: "DEBUG", Value: strconv.FormatBool(s.Debug)},
	}
}

// cleaning is the DaemonSet whose agents take away what they attached, all at
// once, and report it. It keeps the image, which knows its own pins.
func cleaning(live *appsv1.DaemonSet) *appsv1.DaemonSet {
	set := live.DeepCopy()
	all := intstr.FromString("100%")
	set.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
		Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &all},
	}
	for i := range set.Spec.Template.Spec.Containers {
		c := &set.Spec.Template.Spec.Containers[i]
		if c.Name == container {
			c.Args = []string{"agent", cleanupFlag}
			c.LivenessProbe, c.ReadinessProbe = nil, nil
		}
	}
	return set
}

// fingerprint stands for what a DaemonSet should be.
func fingerprint(set *appsv1.DaemonSet) (string, error) {
	text, err := json.Marshal(set.Spec)
	if err != nil {
		return "", fmt.Errorf("encoding DaemonSet %q: %w", set.Name, err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8]), nil
}
