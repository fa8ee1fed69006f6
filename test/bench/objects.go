// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

const (
	// probeLabel is the one that the latency part changes.
	probeLabel = "bench.example.com/probe"
	probeKey   = "label_bench.example.com_probe"

	// podsPerService is how many pods look alike, as those of one Deployment do.
	podsPerService = 20
)

// extraLabel is the label key that a variant of the configs includes beyond the
// first. Going from one variant to the next changes every ConfigMap's data and
// hardly its size.
var extraLabel = []v1alpha1.MetadataKey{"app.kubernetes.io/version", "app.kubernetes.io/component", "app.kubernetes.io/part-of"}

func namespaceName(i int) string { return "team-" + strconv.Itoa(i) }

// newConfigs are the two configs of a namespace: one of labels and annotations,
// one with templates.
func newConfigs(namespace string, variant int) []*v1alpha1.PodConfigMapConfig {
	extra := extraLabel[variant%len(extraLabel)]
	return []*v1alpha1.PodConfigMapConfig{
		{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "identity"},
			Spec: v1alpha1.PodConfigMapConfigSpec{
				LabelsToInclude:      []v1alpha1.MetadataKey{"app.kubernetes.io/name", "app.kubernetes.io/instance", "pod-template-hash", probeLabel, extra},
				AnnotationsToInclude: []v1alpha1.MetadataKey{"checksum/config", "cni.projectcalico.org/podIP"},
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "summary"},
			Spec: v1alpha1.PodConfigMapConfigSpec{
				PodSelector:     &v1alpha1.PodSelector{MatchLabels: v1alpha1.LabelValues{"app.kubernetes.io/managed-by": "helm"}},
				LabelsToInclude: []v1alpha1.MetadataKey{probeLabel, extra},
				ConfigMapDataTemplate: v1alpha1.DataTemplates{
					"address": `{{ .podIP }} on {{ .nodeName }} ({{ .hostIP }})`,
					"summary": "name={{ index .labels \"app.kubernetes.io/name\" | upper }}\n" +
						"owner={{ .owner.kind }}/{{ .owner.name }}\nqos={{ .qosClass }}\n" +
						"{{ range .containers }}image.{{ .name }}={{ .image }}\n{{ end }}",
				},
			},
		},
	}
}

func digits(of string, n int) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(of)))[:n]
}

// newPod is a pod of a Deployment as large clusters have them: two containers
// with probes and resources, an init container, some volumes, and 8 to 12 KiB as
// JSON once it is running.
func newPod(namespace string, i int) *corev1.Pod {
	service := fmt.Sprintf("service-%d", i/podsPerService)
	hash := digits(namespace+service, 10)
	isController := true
	unique := digits(fmt.Sprintf("%s/%d", namespace, i), 64)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      fmt.Sprintf("%s-%s-%s", service, hash, unique[:5]),
			Labels: map[string]string{
				"app.kubernetes.io/name": service, "app.kubernetes.io/instance": service + "-production",
				"app.kubernetes.io/version": "2.14." + strconv.Itoa(i/podsPerService%10), "app.kubernetes.io/component": "backend",
				"app.kubernetes.io/part-of": "shop", "app.kubernetes.io/managed-by": "helm", "pod-template-hash": hash,
			},
			Annotations: map[string]string{
				"checksum/config":                   digits(namespace+service+"config", 64),
				"cni.projectcalico.org/containerID": unique,
				"cni.projectcalico.org/podIP":       podIP(i) + "/32",
				"prometheus.io/scrape":              "true",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: service + "-" + hash, Controller: &isController,
				UID: types.UID(uuidOf(namespace + service)),
			}},
		},
		Spec: corev1.PodSpec{
			NodeName: nodeName(i), ServiceAccountName: service,
			InitContainers: []corev1.Container{newContainer("migrate", service, 0)},
			Containers:     []corev1.Container{newContainer("app", service, 8080, newEnv(service)...), newContainer("proxy", "envoy", 15021)},
			Volumes:        newVolumes(service, unique[:5]),
		},
	}
}

func uuidOf(of string) string {
	d := digits(of, 32)
	return fmt.Sprintf("%s-%s-%s-%s-%s", d[:8], d[8:12], d[12:16], d[16:20], d[20:])
}

func nodeName(i int) string { return fmt.Sprintf("worker-%d.example.internal", i%100) }

func podIP(i int) string { return fmt.Sprintf("10.%d.%d.%d", 64+i/65536, i/256%256, i%256) }

func hostIP(i int) string { return fmt.Sprintf("192.168.%d.%d", i%100/50, i%100%50+10) }

func image(name string) string {
	return "images.example.com/shop/" + name + ":2.14.3"
}

// newContainer returns a container; one that serves a port has probes.
func newContainer(name, imageName string, port int32, env ...corev1.EnvVar) corev1.Container {
	c := corev1.Container{
		Name: name, Image: image(imageName), Args: []string{"--config=/etc/app/config.yaml", "--log-format=json"},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("512Mi")},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "config", MountPath: "/etc/app", ReadOnly: true},
			{Name: "token", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true},
		},
		Env: env,
	}
	if port != 0 {
		c.Ports = []corev1.ContainerPort{{Name: name, ContainerPort: port}}
		c.ReadinessProbe = newProbe(port)
	}
	return c
}

func newEnv(service string) []corev1.EnvVar {
	return []corev1.EnvVar{
		{Name: "LOG_LEVEL", Value: "info"},
		{Name: "DATABASE_URL", Value: "postgresql://" + service + ".databases.svc.cluster.local:5432/" + service},
		fromField("POD_NAME", "metadata.name"), fromField("POD_IP", "status.podIP"),
		{Name: "DATABASE_PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: service + "-database"}, Key: "password",
		}}},
	}
}

func fromField(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func newProbe(port int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(port)}},
		PeriodSeconds: 10, FailureThreshold: 3,
	}
}

func newVolumes(service, suffix string) []corev1.Volume {
	hour := int64(3607)
	return []corev1.Volume{
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: service + "-" + suffix},
		}}},
		{Name: "work", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &hour, Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
		}}}},
	}
}

// running is the status that a kubelet would give the pod.
func running(pod *corev1.Pod, i int) corev1.PodStatus {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable, StartTime: &now,
		PodIP: podIP(i), PodIPs: []corev1.PodIP{{IP: podIP(i)}}, HostIP: hostIP(i), HostIPs: []corev1.HostIP{{IP: hostIP(i)}},
	}
	for _, kind := range []corev1.PodConditionType{
		corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	started := true
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, Started: &started,
			ImageID:     image(c.Name) + "@sha256:" + digits(c.Image, 64),
			ContainerID: "containerd://" + digits(pod.Name+c.Name, 64),
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	for _, c := range pod.Spec.InitContainers {
		status.InitContainerStatuses = append(status.InitContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true,
			ImageID:     image(c.Name) + "@sha256:" + digits(c.Image, 64),
			ContainerID: "containerd://" + digits(pod.Name+c.Name, 64),
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: now, FinishedAt: now, ContainerID: "containerd://" + digits(pod.Name+c.Name, 64),
			}},
		})
	}
	return status
}
