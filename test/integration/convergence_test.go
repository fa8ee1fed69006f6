// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// TestSteady: where nothing changes there is no call, however often all is
// looked at; nor does a new manager write anything.
func TestSteady(t *testing.T) {
	t.Parallel()
	s := own(t)
	account, environ := newAccount(), map[string]string{"WATCH_NAMESPACE": s.name, "CONTROLLER_RESYNC_PERIOD": "1s"}
	s.manager = beginAs(t, account, environ)
	s.must(s.WaitReady(t.Context()))
	const pods = 20
	for i := range pods {
		s.pod(fmt.Sprintf("web-%d", i), map[string]string{"app": "web"})
	}
	s.config("m", spec{LabelsToInclude: []v1alpha1.MetadataKey{"app"}})
	s.config("n", spec{ConfigMapDataTemplate: map[string]string{"k": "{{ .podName }}"}})
	// Neither this one's failures nor that it asks for eBPF may cost calls.
	s.config("broken", spec{
		ConfigMapDataTemplate: map[string]string{"k": "{{ .labels.zone }}"},
		EBPFConfig:            &v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{Enabled: true}},
	})
	s.expectServed("m", pods)
	s.expectServed("n", pods)
	s.eventually("the broken one is told of", func() error {
		if c, _ := s.status("broken", ""); c.Status.FailedConfigMaps != pods {
			return fmt.Errorf("status %+v", c.Status)
		}
		return nil
	})
	looks := func() float64 {
		return s.scrape(t)["reconciliation_duration_seconds{namespace="+s.name+",resource_type=pod}"]
	}
	idle := func(when string) {
		t.Helper()
		// Events may lag behind what they tell of.
		s.eventually("calls cease", func() error {
			time.Sleep(time.Second)
			if late := s.calls(t, time.Now().Add(-time.Second)); len(late) > 0 {
				return fmt.Errorf("%v", late)
			}
			return nil
		})
		began, before := time.Now(), looks()
		s.eventually("three resyncs", func() error {
			if seen := looks() - before; seen < 3*pods {
				return fmt.Errorf("%v looks at pods so far", seen)
			}
			return nil
		})
		if all := s.calls(t, began); len(all) > 0 {
			t.Errorf("%s: %d calls where nothing changed: %v", when, len(all), all)
		}
	}
	idle("at work")
	s.stop(t)
	restarted := time.Now()
	s.manager = beginAs(t, account, environ)
	s.must(s.WaitReady(t.Context()))
	s.eventually("the new manager looked at each pod", func() error {
		if seen := looks(); seen < pods {
			return fmt.Errorf("%v looks so far", seen)
		}
		return nil
	})
	idle("after a restart")
	for _, c := range s.calls(t, restarted) {
		// It looks for agents to remove, once.
		if c.Verb != "list" && !c.is("get", "daemonsets") {
			t.Errorf("the new manager did: %v", c)
		}
	}
	for _, c := range s.calls(t, time.Time{}) {
		if c.Verb == "update" {
			t.Errorf("an update from a cache: %v", c)
		}
		if !strings.HasPrefix(c.UserAgent, "podconfigmap-controller/") && c.ObjectRef.Resource != "selfsubjectreviews" {
			t.Errorf("user agent %q: %v", c.UserAgent, c)
		}
	}
}

// TestChangesWhileDown has all sorts of things happen while no manager runs.
func TestChangesWhileDown(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(nil)
	for _, name := range []string{"stays", "goes", "again", "changes", "edited", "bereft", "relabeled", "unlabeled"} {
		s.pod(name, map[string]string{"app": "web"})
	}
	include := spec{PodSelector: selecting("app", "web"), LabelsToInclude: []v1alpha1.MetadataKey{"tier"}}
	s.config("m", include)
	s.config("goes", include)
	s.config("again", include)
	s.expectServed("m", 8)
	s.expectServed("goes", 8)
	s.expectServed("again", 8)
	s.stop(t)

	s.removeConfig("goes")
	s.removeConfig("again")
	s.config("again", include)
	s.config("new", include)
	s.respec("m", func(c *spec) { c.ConfigMapDataTemplate = map[string]string{"k": "v"} })
	s.deletePod("goes")
	s.deletePod("again")
	s.pod("again", map[string]string{"app": "web"})
	s.pod("new", map[string]string{"app": "web"})
	s.label("changes", "tier", "front")
	s.label("relabeled", "app", "other")
	patch(s, &corev1.ConfigMap{}, "pod-edited-from-m-cfg", func(cm *corev1.ConfigMap) { cm.Data = nil })
	patch(s, &corev1.ConfigMap{}, "pod-unlabeled-from-m-cfg", func(cm *corev1.ConfigMap) { cm.Labels = nil })
	s.removeConfigMap("pod-bereft-from-m-cfg")

	s.watched(nil)
	var names []string
	for _, pod := range s.pods() {
		if pod.Labels["app"] != "web" {
			continue
		}
		for config, more := range map[string]map[string]string{"m": {"k": "v"}, "again": {}, "new": {}} {
			if tier, ok := pod.Labels["tier"]; ok {
				more["label_tier"] = tier
			}
			name := "pod-" + pod.Name + "-from-" + config + "-cfg"
			names = append(names, name)
			s.expect(name, &pod, s.data(&pod, config, more))
		}
	}
	s.expectNames(names...)
	if len(names) != 3*7 {
		t.Errorf("%d ConfigMaps: %v", len(names), names)
	}
	s.expectServed("m", 7)
	s.expectServed("new", 7)
}

// TestHotLabel changes a label a hundred times a second: writes are coalesced,
// the last value wins, and another config of the pod is not forgotten meanwhile.
func TestHotLabel(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(nil)
	pod := s.pod("web", map[string]string{"n": "start"})
	for _, config := range []string{"m", "n"} {
		s.config(config, spec{LabelsToInclude: []v1alpha1.MetadataKey{"n"}})
		s.expectServed(config, 1)
	}
	began := time.Now()
	const changes = 300
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range changes {
		<-tick.C
		body := fmt.Sprintf(`{"metadata":{"labels":{"n":"%d"}}}`, i)
		target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "web"}}
		s.must(cluster.Client.Patch(t.Context(), target, client.RawPatch("application/merge-patch+json", []byte(body))))
	}
	took := time.Since(began)
	last := map[string]string{"label_n": fmt.Sprint(changes - 1)}
	s.expect("pod-web-from-m-cfg", pod, s.data(pod, "m", last))
	s.expect("pod-web-from-n-cfg", pod, s.data(pod, "n", last))
	writes := map[string]int{}
	for _, c := range s.calls(t, began) {
		if c.is("update", "configmaps") {
			writes[c.ObjectRef.Name]++
		}
	}
	most := int(took/(100*time.Millisecond)) + 2
	for _, name := range []string{"pod-web-from-m-cfg", "pod-web-from-n-cfg"} {
		if n := writes[name]; n > most || n == 0 {
			t.Errorf("%d writes of %s for %d changes in %v, want some, at most %d", n, name, changes, took, most)
		}
	}
}

// TestStatusPace: while 300 pods converge, the status moves, is written at most
// once a second, and tells of the generation only when all is done.
func TestStatusPace(t *testing.T) {
	t.Parallel()
	s := own(t)
	const pods = 300
	var group errgroup.Group
	group.SetLimit(8)
	for i := range pods {
		group.Go(func() error {
			return cluster.Client.Create(t.Context(), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: fmt.Sprintf("web-%03d", i)},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/app:1"}}},
			})
		})
	}
	s.must(group.Wait())
	// One slow worker, so that it takes some seconds.
	proxy := newProxy(t, func(verb, _ string) time.Duration {
		if verb == "POST" {
			return 15 * time.Millisecond
		}
		return 0
	})
	s.watched(map[string]string{"CONTROLLER_POD_WORKERS": "1", "KUBECONFIG": proxy.kubeconfig})
	watcher, err := kubernetesClient(t).CoreV1().RESTClient().Get().AbsPath("/apis/podconfig.example.com/v1alpha1/namespaces/"+s.name+"/podconfigmapconfigs").
		Param("watch", "true").Stream(t.Context())
	s.must(err)
	defer watcher.Close()
	events := statuses(t, watcher)
	s.config("m", spec{})
	var times []time.Time
	progressed := 0
	for {
		var e statusEvent
		select {
		case e = <-events:
		case <-time.After(patience):
			t.Fatalf("the status does not move:\n%s", s.state())
		}
		if e.status.MatchedPods == 0 {
			continue // the creation
		}
		times = append(times, e.at)
		done := int(e.status.SyncedConfigMaps) == pods
		if !done {
			progressed++
		}
		if observed := e.status.ObservedGeneration == 1; observed != done {
			t.Errorf("observedGeneration %d with %d of %d pods done", e.status.ObservedGeneration, e.status.SyncedConfigMaps, pods)
		}
		if done {
			break
		}
	}
	if progressed < 2 {
		t.Errorf("%d statuses before the last one; it should tell of the progress", progressed)
	}
	// What was sent a second apart may arrive less apart, but not all of it.
	least := time.Duration(len(times)-2) * time.Second
	if span := times[len(times)-1].Sub(times[0]); span < least {
		t.Errorf("%d statuses within %v, more than one a second", len(times), span)
	}
}

// TestStatusOfManyChanges: pods come one after the other, each is done at once, and
// the status is written at most once a second all the same.
func TestStatusOfManyChanges(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(nil)
	s.config("m", spec{})
	s.expectServed("m", 0)
	const pods = 40
	began := time.Now()
	for i := range pods {
		s.pod(fmt.Sprintf("web-%d", i), nil)
		time.Sleep(100 * time.Millisecond)
	}
	s.expectServed("m", pods)
	took, writes := time.Since(began), 0
	for _, c := range s.calls(t, began) {
		if c.Verb == "patch" && c.ObjectRef.Resource == "podconfigmapconfigs" && c.ObjectRef.Subresource == "status" {
			writes++
		}
	}
	if most := int(took/time.Second) + 2; writes == 0 || writes > most {
		t.Errorf("%d writes of the status in %v, want at most %d", writes, took, most)
	}
}

// TestObservedGeneration: a pod that is not done holds it back, one that failed
// does not.
func TestObservedGeneration(t *testing.T) {
	t.Parallel()
	s := own(t)
	undo := s.refuse(admissionv1.Create, "request.name != 'pod-slow-from-m-cfg'")
	s.watched(map[string]string{"CONTROLLER_MAX_RETRIES": "100", "CONTROLLER_RESYNC_PERIOD": "2s"})
	for _, name := range []string{"a", "b", "slow"} {
		s.pod(name, map[string]string{"zone": "z"})
	}
	s.pod("bad", nil)
	s.config("m", spec{ConfigMapDataTemplate: map[string]string{"k": "{{ .labels.zone }}"}})
	progressing := func(generation int64) func() error {
		return func() error {
			c, synced := s.status("m", v1alpha1.ConditionConfigMapsSynced)
			st := c.Status
			if st.ObservedGeneration != generation || st.MatchedPods != 4 || st.SyncedConfigMaps != 2 || st.FailedConfigMaps != 1 {
				return fmt.Errorf("status %+v", st)
			}
			if !strings.HasPrefix(synced.Message, `1 of 4 matching pods failed, still working on 1: pod "bad": `) {
				return fmt.Errorf("message %q", synced.Message)
			}
			return nil
		}
	}
	s.eventually("all but one are done", progressing(0))
	s.steadily("which holds the generation back", 2*time.Second, progressing(0))
	undo()
	s.eventually("one bad pod among good ones does not", func() error {
		c, _ := s.status("m", "")
		if st := c.Status; st.ObservedGeneration != 1 || st.SyncedConfigMaps != 3 || st.FailedConfigMaps != 1 {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
	s.respec("m", func(c *spec) { c.ConfigMapDataTemplate = nil })
	s.expectServed("m", 4)
	if c, _ := s.status("m", ""); c.Status.ObservedGeneration != 2 {
		t.Errorf("observedGeneration %d, want 2", c.Status.ObservedGeneration)
	}
}

// TestZeroCounts: a status has all of its counts, those of 0 too.
func TestZeroCounts(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	s.config("m", spec{})
	s.expectServed("m", 0)
	raw, err := kubernetesClient(t).CoreV1().RESTClient().Get().
		AbsPath("/apis/podconfig.example.com/v1alpha1/namespaces/" + s.name + "/podconfigmapconfigs/m").DoRaw(t.Context())
	s.must(err)
	for _, count := range []string{`"matchedPods":0`, `"syncedConfigMaps":0`, `"failedConfigMaps":0`} {
		if !strings.Contains(string(raw), count) {
			t.Errorf("the stored status lacks %s: %s", count, raw)
		}
	}
}

func kubernetesClient(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(cluster.Config())
	if err != nil {
		t.Fatal(err)
	}
	return c
}
