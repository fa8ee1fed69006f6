// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func newPod(t *testing.T, images map[string]Image, spec corev1.PodSpec) (*pod, *corev1.Pod) {
	t.Helper()
	server, err := url.Parse("https://127.0.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{options: Options{Name: "node", Images: images}, dir: t.TempDir(), server: server, gateway: &gateway{url: "http://proxy"}}
	of := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "garden", Name: "rose", UID: "u1", Labels: map[string]string{"colour": "red"}, Annotations: map[string]string{"olm.targetNamespaces": "a,b"},
	}, Spec: spec}
	of.Spec.NodeName = "node"
	return &pod{node: n, uid: of.UID, ip: "127.1.2.3", dir: filepath.Join(n.dir, "u1")}, of
}

func TestEnvironment(t *testing.T) {
	var env []corev1.EnvVar
	want := []string{"KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=6443", "HTTP_PROXY=http://proxy", "literal=x", "image=u1", "over=image"}
	for path, value := range map[string]string{
		"metadata.name": "rose", "metadata.namespace": "garden", "metadata.uid": "u1", "spec.nodeName": "node", "status.podIP": "127.1.2.3",
		"metadata.annotations['olm.targetNamespaces']": "a,b", "metadata.labels['colour']": "red",
	} {
		env = append(env, corev1.EnvVar{Name: path, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}})
		want = append(want, path+"="+value)
	}
	env = append(env, corev1.EnvVar{Name: "literal", Value: "x"}, corev1.EnvVar{Name: "over", Value: "container"})
	images := map[string]Image{"image": {Env: func(p *corev1.Pod, _ string) map[string]string {
		return map[string]string{"image": string(p.UID), "over": "image"}
	}}}
	p, of := newPod(t, images, corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "image", Env: env}}})
	got := newContainer(p, of, &of.Spec.Containers[0], "/roots").environment()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if outside := newContainer(p, of, &of.Spec.Containers[0], "").environment(); !slices.Contains(outside, "KUBECONFIG="+filepath.Join(p.dir, kubeconfigFile)) {
		t.Errorf("outside of a chroot: %q", outside)
	}
}

func TestVolumes(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	mounts := func(path string) []corev1.VolumeMount { return []corev1.VolumeMount{{Name: "shared", MountPath: path}} }
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "notice"), []byte("free"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, of := newPod(t, map[string]Image{"image": {Program: program, Path: "/bin/program", Root: files}}, corev1.PodSpec{
		Volumes:        []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		InitContainers: []corev1.Container{{Name: "first", Image: "image", VolumeMounts: mounts("/out")}},
		Containers:     []corev1.Container{{Name: "second", Image: "image", VolumeMounts: mounts("/in")}},
	})
	roots, err := p.prepare(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	first, second := newContainer(p, of, &of.Spec.InitContainers[0], roots), newContainer(p, of, &of.Spec.Containers[0], roots)
	if err := first.furnish(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(first.root, "out/made"), []byte("here"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := first.giveBack(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a container that starts again finds the same
		if err := second.furnish(); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]string{
		"in/made": "here", "bin/program": "#!", "notice": "free", "etc/hosts": "127.0.0.1\tlocalhost\n127.1.2.3\trose\n",
	} {
		if text, err := os.ReadFile(filepath.Join(second.root, file)); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	volume := func(v corev1.VolumeSource) corev1.PodSpec {
		return corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: v}}, Containers: []corev1.Container{{Name: "c", Image: "image"}}}
	}
	for name, tc := range map[string]struct {
		spec corev1.PodSpec
		want string
	}{
		"an unknown volume":         {volume(corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}), `volume "v": a node of processes has no such volumes`},
		"a host path, but no token": {volume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}), "no token is mounted"},
	} {
		t.Run(name, func(t *testing.T) {
			p, of := newPod(t, nil, tc.spec)
			if _, err := p.prepare(t.Context(), of); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("prepare() = %v, want %q", err, tc.want)
			}
		})
	}
	p, of := newPod(t, map[string]Image{"image": {Program: "/none", Path: "/none"}}, volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}))
	if err := newContainer(p, of, &of.Spec.Containers[0], t.TempDir()).start(); err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("a program that is not there: %v", err)
	}
	if p.node.has(of) != true || p.node.has(&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "other"}}}}) {
		t.Error("the node does not know which images it has")
	}
	if _, err := Tool("no-such-tool"); err == nil || !strings.Contains(err.Error(), "make bin/no-such-tool") {
		t.Errorf("a tool that is missing: %v", err)
	}
	if _, err := BuildProgram(t.TempDir(), "./no/such/package", "1"); err == nil {
		t.Error("a package that is missing was built")
	}
}

// A process outside of a chroot goes through all states.
func TestStates(t *testing.T) {
	script := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"says $1\"\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, of := newPod(t, map[string]Image{"image": {Program: script, Path: "/program"}}, corev1.PodSpec{
		Containers: []corev1.Container{{Name: "c", Image: "image", Args: []string{"hello"}}}})
	c := newContainer(p, of, &of.Spec.Containers[0], "")
	if s := c.status(); s.State.Waiting == nil {
		t.Errorf("before the start: %+v", s)
	}
	run := func(once bool) {
		t.Helper()
		if err := c.run(once); err != nil {
			t.Fatal(err)
		}
	}
	run(false)
	<-c.exited
	run(false)
	if s := c.status(); s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" || c.finished {
		t.Errorf("after its end: %+v", s)
	}
	c.endedAt = time.Now().Add(-restartPause)
	run(true)
	<-c.exited
	run(true)
	if s := c.status(); s.RestartCount != 1 || s.State.Terminated == nil || s.State.Terminated.ExitCode != 3 || c.succeeded() {
		t.Errorf("after its last end: %+v", s)
	}
	if logs := p.node.Logs("garden"); logs["rose/c"] != "says hello\nsays hello\n" {
		t.Errorf("logs %q", logs)
	}
	p.main = []*container{c}
	if p.phase(true) != corev1.PodFailed || p.phase(false) != corev1.PodPending {
		t.Errorf("phases %s, %s", p.phase(true), p.phase(false))
	}
}

func TestProbe(t *testing.T) {
	p, of := newPod(t, nil, corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}})
	if !p.probe(context.Background(), &of.Spec.Containers[0]) {
		t.Error("without a probe a container is ready")
	}
	of.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/x"}}}
	if p.probe(context.Background(), &of.Spec.Containers[0]) {
		t.Error("nobody answers, and it is ready")
	}
}
