// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The user's settings reach the Deployment, but for those that a pod knows better.
func TestUserSettings(t *testing.T) {
	environ := map[string]string{"EBPF_ENABLED": "true", "WATCH_NAMESPACE": "shop", "POD_NAMESPACE": "mine", "METRICS_ADDR": ":1", "HOME": "/root"}
	changed := userSettings(func(name string) string { return environ[name] })
	objects, err := readManifests()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, object := range objects {
		if object.GetKind() != "Deployment" {
			continue
		}
		found = true
		if err := setEnvironment(object, changed); err != nil {
			t.Fatal(err)
		}
		d := &appsv1.Deployment{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, d); err != nil {
			t.Fatal(err)
		}
		got := map[string][]string{}
		for _, v := range d.Spec.Template.Spec.Containers[0].Env {
			got[v.Name] = append(got[v.Name], v.Value)
		}
		for name, want := range map[string]string{"EBPF_ENABLED": "true", "WATCH_NAMESPACE": "shop", "POD_NAMESPACE": "", "CONTROLLER_POD_WORKERS": "32"} {
			if !slices.Equal(got[name], []string{want}) {
				t.Errorf("%s is %q, want %q once", name, got[name], want)
			}
		}
		for _, name := range []string{"METRICS_ADDR", "HOME"} {
			if len(got[name]) > 0 {
				t.Errorf("%s is %q", name, got[name])
			}
		}
		d.Spec.Template.Spec.Containers = nil
		if object.Object, err = runtime.DefaultUnstructuredConverter.ToUnstructured(d); err != nil {
			t.Fatal(err)
		}
		if setEnvironment(object, changed) == nil {
			t.Error("no error from a Deployment without containers")
		}
	}
	if !found {
		t.Errorf("%s has no Deployment", manifests)
	}
}

func TestEnterWantsContainers(t *testing.T) {
	running := &corev1.Pod{}
	running.Name = "server"
	running.Status.PodIP = "10.0.0.1"
	err := (&nodeStage{}).enter(running, running)
	if err == nil || !strings.Contains(err.Error(), "pod server runs without container or address") {
		t.Errorf("a pod without containers became %v", err)
	}
}
