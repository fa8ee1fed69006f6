// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
)

var (
	soakLength = flag.Duration("soak", 10*time.Minute, "how long TestSoak churns")
	soakSeed   = flag.Uint64("soak.seed", 0, "what TestSoak's choices begin with; 0: another one each time")
)

// TestSoak churns pods and configs for a long time under constant traffic; in the first
// half it also kills what there is to kill. Then all must be exactly right, and in the
// second half, which managers and agents live through, they must not grow.
//
// `make soak` runs it; it is no part of `make e2e`.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	say("soak for %s, -soak.seed=%d", *soakLength, seed)
	p := &point{T: t, world: shared}
	// A leader that cannot renew its Lease in time ends: here a busy machine should not
	// end what is measured.
	p.step("ebpf.enabled=true", func(p *point) {
		p.enable("--set", "leaderElection.leaseDuration=15s", "--set", "leaderElection.renewDeadline=10s", "--set", "leaderElection.retryPeriod=2s")
	})
	p.namespace(guarded)
	s := &soak{random: rand.New(rand.NewPCG(seed, seed)), done: map[string]int{}, denied: map[string]bool{}}
	p.step("constant traffic between all nodes", func(p *point) { s.bustle = newBustle(p, "tcp") })
	s.bustle.watch = watchCounters(p.world, s.bustle.pods()...)
	t.Cleanup(s.bustle.watch.stop)
	s.makeConfigs(p)
	before := s.atRest(p, "before")

	p.step("churn with kills", func(p *point) { s.churn(p, *soakLength/2, true) })
	p.step("all is as it should be", func(p *point) { s.right(p) })
	s.clear(p)
	// What was killed last has to have done all of its work once.
	s.kept = map[string]float64{}
	p.step("churn without kills, to warm up", func(p *point) { s.churn(p, *soakLength/8, false) })
	p.step("all is as it should be, and counted", func(p *point) { s.right(p) })
	s.clear(p)
	middle := s.atRest(p, "middle")
	s.kept = map[string]float64{}
	p.step("churn without kills", func(p *point) { s.churn(p, *soakLength*3/8, false) })
	p.step("all is as it should be, and counted, again", func(p *point) { s.right(p) })
	s.clear(p)
	end := s.atRest(p, "end")

	p.step("counters are just what was sent", s.bustle.exact)
	p.step("nothing has grown", func(p *point) { grown(p, before, middle, end) })
	p.step("quiet logs at rest", (*point).noErrorsAtRest)
	s.bustle.watch.stop()
	p.noNamespace(guarded)
	p.step("uninstall", (*point).uninstall)
}

// soak is what the churn works with.
type soak struct {
	random *rand.Rand
	bustle *bustle
	made   int // pods so far
	done   map[string]int
	denied map[string]bool // configs that have filtered egress so far
	// kept are the calls that pods of the app counted have made, by pod; nil while agents
	// are killed: what a pod does while there is none is not counted (docs/ebpf.md, Birth).
	kept map[string]float64
}

const (
	// churned is how many apps have a config that is edited, and most how many pods there
	// are of all of them.
	churned = 4
	most    = 18
	// pace is between two changes.
	pace = 1500 * time.Millisecond
)

func churnName(i int) string { return fmt.Sprintf("churn-%d", i) }

// makeConfigs makes those that are edited, and one whose pods are counted.
func (s *soak) makeConfigs(p *point) {
	p.Helper()
	for i := range churned {
		config := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: churnName(i)}}
		config.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": churnName(i)}}
		p.create(config)
	}
	p.config("counted", v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: []v1alpha1.SyscallName{callName}}})
}

// churn makes one change after the other.
func (s *soak) churn(p *point, length time.Duration, kills bool) {
	p.Helper()
	s.done = map[string]int{}
	for end := time.Now().Add(length); time.Now().Before(end); {
		next := time.Now().Add(pace)
		what := s.change(p, kills)
		s.done[what]++
		s.bustle.call(p, s.bustle.out, 10)
		if p.Failed() {
			p.FailNow()
		}
		time.Sleep(time.Until(next))
	}
	for _, line := range wrong(s.bustle.goOn(p)) {
		p.Error(line)
	}
	_, _, backwards := s.bustle.watch.figures()
	for _, line := range backwards {
		p.Errorf("a counter ran backwards: %s", line)
	}
	var told []string
	for _, what := range slices.Sorted(maps.Keys(s.done)) {
		told = append(told, fmt.Sprintf("%s %d", what, s.done[what]))
	}
	say("  changes: %s", strings.Join(told, ", "))
}

func (s *soak) change(p *point, kills bool) string {
	p.Helper()
	if n := s.random.IntN(100); kills && n < 12 {
		return s.kill(p)
	}
	switch n := s.random.IntN(100); {
	case n < 40:
		return s.makePod(p)
	case n < 65:
		return s.deletePod(p)
	case n < 90:
		return s.edit(p)
	default:
		return s.editSteady(p)
	}
}

// churnPods are the pods that come and go, in the order of their names, without those
// that are on their way out.
func (s *soak) churnPods(p *point) []corev1.Pod {
	p.Helper()
	return slices.DeleteFunc(p.pods(guarded, client.MatchingLabels{"churn": "true"}), func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
}

func (s *soak) makePod(p *point) string {
	p.Helper()
	if len(s.churnPods(p)) >= most {
		return s.deletePod(p)
	}
	s.made++
	app, calls := "counted", 100+s.random.IntN(1000)
	if n := s.random.IntN(churned + 2); n < churned {
		app = churnName(n)
	}
	spec := podSpec(container("c", "serve", "-control="+strconv.Itoa(control), "-tcp=8080,9090", fmt.Sprintf("-calls=%dx%d", callNumber, calls)))
	spec.NodeSelector = map[string]string{corev1.LabelHostname: p.Nodes()[s.random.IntN(len(p.Nodes()))].Name}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: guarded, Name: fmt.Sprintf("%s-%d", app, s.made),
		Labels:      map[string]string{"app": app, "churn": "true", "tier": strconv.Itoa(s.random.IntN(2))},
		Annotations: map[string]string{"example.com/owner": "team-" + strconv.Itoa(s.made)},
	}, Spec: spec}
	p.create(pod)
	if app == "counted" && s.kept != nil {
		s.kept[pod.Name] = float64(calls)
	}
	return "pods made"
}

func (s *soak) deletePod(p *point) string {
	p.Helper()
	pods := s.churnPods(p)
	if len(pods) == 0 {
		return "nothing"
	}
	pod := &pods[s.random.IntN(len(pods))]
	p.must(client.IgnoreNotFound(p.client.Delete(p.Context(), pod)))
	delete(s.kept, pod.Name)
	return "pods deleted"
}

// edit gives a config another spec: selector, template, included keys, and eBPF, which
// is on or off.
func (s *soak) edit(p *point) string {
	p.Helper()
	config := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: churnName(s.random.IntN(churned))}}
	labels := fmt.Sprintf(`"app":%q,"tier":null`, config.Name)
	if s.random.IntN(3) == 0 {
		labels = fmt.Sprintf(`"app":%q,"tier":"%d"`, config.Name, s.random.IntN(2))
	}
	include := []string{`[]`, `["app"]`, `["app","tier"]`}[s.random.IntN(3)]
	template := []string{`null`, `{"where":"{{ .podName }} on {{ .nodeName }}"}`, fmt.Sprintf(`{"edit":"%d of {{ .phase }}","where":null}`, s.random.IntN(1000))}[s.random.IntN(3)]
	ebpf := `null`
	if s.random.IntN(3) > 0 {
		ports := 1 + s.random.IntN(60000)
		ebpf = fmt.Sprintf(`{"syscallMonitoring":{"enabled":%t},"l4Firewall":{"enabled":%t,"blockedPorts":[%d,%d],"directions":%s},"metricsExport":{"enabled":true,"updateInterval":"1s"}}`,
			s.random.IntN(2) == 0, s.random.IntN(3) > 0, ports, ports+1, []string{`["ingress"]`, `["egress"]`, `["ingress","egress"]`}[s.random.IntN(3)])
	}
	p.patch(config, fmt.Sprintf(`{"spec":{"podSelector":{"matchLabels":{%s}},"labelsToInclude":%s,"configMapDataTemplate":%s,"ebpfConfig":%s}}`, labels, include, template, ebpf))
	if strings.Contains(ebpf, "egress") {
		s.denied[config.Name] = true
	}
	return "configs edited"
}

// editSteady changes the rules of the pods with constant traffic, for ports that it does
// not use.
func (s *soak) editSteady(p *point) string {
	p.Helper()
	name := []string{"in", "out"}[s.random.IntN(2)]
	allowed := []int{openPort, control, 20000 + s.random.IntN(10000)}
	if name == "out" {
		allowed = append(allowed[:1], allowed[2])
	}
	s.setAllowed(p, name, allowed)
	return "rules edited under traffic"
}

func (s *soak) setAllowed(p *point, name string, ports []int) {
	p.Helper()
	p.patch(&v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: name}},
		fmt.Sprintf(`{"spec":{"ebpfConfig":{"l4Firewall":{"allowedPorts":%s}}}}`, strings.ReplaceAll(fmt.Sprint(ports), " ", ",")))
}

// kill ends something at random.
func (s *soak) kill(p *point) string {
	p.Helper()
	node := p.Nodes()[s.random.IntN(len(p.Nodes()))]
	switch n := s.random.IntN(4); n {
	case 0:
		p.killOrReplace(p.await1("an agent", func() *corev1.Pod { return p.someAgent(node.Name) }))
		return "agents killed"
	case 1:
		p.killOrReplace(p.await1("a leader", func() *corev1.Pod {
			pod := &corev1.Pod{}
			if p.get(system, p.leader(), pod) != nil || pod.DeletionTimestamp != nil {
				return nil
			}
			return pod
		}))
		return "leaders killed"
	default:
		program := []string{cluster.Containerd, cluster.Kubelet}[n-2]
		p.must(node.KillProgram(p.Context(), program))
		p.must(node.StartProgram(p.Context(), program))
		return program + " killed"
	}
}

// await1 waits until there is a pod.
func (p *point) await1(what string, get func() *corev1.Pod) *corev1.Pod {
	p.Helper()
	var pod *corev1.Pod
	p.await("there is "+what, func() error {
		if pod = get(); pod == nil {
			return errors.New("there is none")
		}
		return nil
	})
	return pod
}

func (p *point) someAgent(node string) *corev1.Pod {
	p.Helper()
	for _, pod := range p.pods(system, agentLabels) {
		if pod.Spec.NodeName == node && pod.DeletionTimestamp == nil {
			return &pod
		}
	}
	return nil
}

// killOrReplace kills a pod's processes. One that was killed twice is deleted instead: the
// kubelet would wait longer each time before it starts it again.
func (p *point) killOrReplace(pod *corev1.Pod) {
	p.Helper()
	if s := pod.Status.ContainerStatuses; len(s) == 0 || s[0].State.Running == nil || s[0].RestartCount >= 2 {
		p.must(client.IgnoreNotFound(p.client.Delete(p.Context(), pod, client.GracePeriodSeconds(1))))
		return
	}
	// It may have ended since it was looked at.
	if err := p.Node(pod.Spec.NodeName).KillPod(string(pod.UID)); err != nil {
		say("  %v", err)
	}
}

// right waits until all is as pods and configs want it: ConfigMaps, status, attachments,
// slots, and the calls of pods that were made while no agent was killed.
func (s *soak) right(p *point) {
	p.Helper()
	p.await("managers and agents are all ready", func() error {
		return errors.Join(p.rolledOut(system, manager), p.agentsReady())
	})
	p.await("all pods are up", func() error {
		for _, pod := range p.pods(guarded, nil) {
			if err := ready(&pod); err != nil {
				return err
			}
		}
		return nil
	})
	p.await("ConfigMaps and status are just what is promised", func() error { return p.exactly(guarded) })
	p.await("programs are just at the pods that want them", func() error { return s.attached(p) })
	pods := p.pods(guarded, client.MatchingLabels{"app": "counted"})
	counted := 0
	for i := range pods {
		if want, known := s.kept[pods[i].Name]; known {
			p.awaitCalls([]*corev1.Pod{&pods[i]}, map[string]float64{pods[i].Name: want})
			counted++
		}
	}
	s.bustle.awaitCalls(p, s.bustle.out)
	s.bustle.nothingTaken(p, s.bustle.in...)
	say("  %d pods, %d of them counted from their first call", len(p.pods(guarded, nil)), counted)
}

func (p *point) agentsReady() error {
	all := p.pods(system, agentLabels)
	if len(all) != *nodes {
		return fmt.Errorf("%d agents", len(all))
	}
	var errs []error
	for i := range all {
		errs = append(errs, ready(&all[i]))
	}
	return errors.Join(errs...)
}

// podOfCgroup finds a pod's UID in the path of its cgroup.
var podOfCgroup = regexp.MustCompile(`/pod([0-9a-f-]{36})(?:/|$)`)

// attached is nil when just the pods that configs want filtered have programs at their
// cgroups, and each agent has as many slots in use as its node has pods to serve.
func (s *soak) attached(p *point) error {
	configs := &v1alpha1.PodConfigMapConfigList{}
	if err := p.client.List(p.Context(), configs, client.InNamespace(guarded)); err != nil {
		return err
	}
	filtered, served := map[string]*askedPrograms{}, map[string]int{}
	for _, pod := range p.pods(guarded, nil) {
		wants := false
		for i := range configs.Items {
			e := configs.Items[i].Spec.EBPFConfig
			if !matches(&configs.Items[i], &pod) || !e.Requested() {
				continue
			}
			wants = true
			if e.L4Firewall != nil && e.L4Firewall.Enabled {
				asks := filtered[string(pod.UID)]
				if asks == nil {
					asks = &askedPrograms{pod: pod.Name}
					filtered[string(pod.UID)] = asks
				}
				asks.denies = asks.denies || slices.Contains(e.L4Firewall.Directions, v1alpha1.FirewallDirectionEgress)
				asks.denied = asks.denied || s.denied[configs.Items[i].Name]
			}
		}
		if wants {
			served[pod.Spec.NodeName]++
		}
	}
	found := map[string]map[string]int{}
	for _, n := range p.Nodes() {
		all, err := attachments(n)
		if err != nil {
			return err
		}
		for _, one := range all {
			uid := podOfCgroup.FindStringSubmatch(one)
			if uid == nil || filtered[uid[1]] == nil {
				return fmt.Errorf("%s has a program that nobody wants: %s", n.Name, one)
			}
			if found[uid[1]] == nil {
				found[uid[1]] = map[string]int{}
			}
			direction, _, _ := strings.Cut(one, " ")
			found[uid[1]][direction]++
		}
		used, err := p.gauge(n.Name, "podconfigmap_controller_ebpf_slots_used")
		if err != nil {
			return err
		}
		if int(used) != served[n.Name] {
			return fmt.Errorf("%s has %v slots in use for %d pods", n.Name, used, served[n.Name])
		}
	}
	for uid, asks := range filtered {
		if err := asks.differs(found[uid]); err != nil {
			return err
		}
	}
	return nil
}

// askedPrograms are those of a pod: one for what comes in and one for what goes out,
// whatever is filtered of both (the other one knows the replies), and those at connect
// where connections are denied, or have been.
type askedPrograms struct {
	pod            string
	denies, denied bool
}

func (a *askedPrograms) differs(found map[string]int) error {
	least := map[string]int{"ingress": 1, "egress": 1}
	most := map[string]int{"ingress": 1, "egress": 1}
	for _, connect := range []string{"connect4", "connect6"} {
		if a.denies {
			least[connect] = 1
		}
		if a.denies || a.denied {
			most[connect] = 1
		}
	}
	for direction := range attachTypes {
		if n := found[direction]; n < least[direction] || n > most[direction] {
			return fmt.Errorf("pod %s has %d programs for %s, want %d to %d (%v)", a.pod, n, direction, least[direction], most[direction], found)
		}
	}
	if found["connect4"] != found["connect6"] {
		return fmt.Errorf("pod %s has the programs %v: connect is for IPv4 and IPv6", a.pod, found)
	}
	return nil
}

// gauge reads one of the agent of a node.
func (p *point) gauge(node, name string) (float64, error) {
	agent := p.someAgent(node)
	if agent == nil {
		return 0, fmt.Errorf("%s has no agent", node)
	}
	families, err := p.scrape(p.Context(), agent)
	if err != nil {
		return 0, err
	}
	for _, m := range families[name].GetMetric() {
		return m.GetGauge().GetValue(), nil
	}
	return 0, fmt.Errorf("agent %s has no %s", agent.Name, name)
}

// clear removes the pods of the churn, and sets the rules of the others as they were.
func (s *soak) clear(p *point) {
	p.Helper()
	p.must(p.client.DeleteAllOf(p.Context(), &corev1.Pod{}, client.InNamespace(guarded), client.MatchingLabels{"churn": "true"}))
	s.setAllowed(p, "in", []int{openPort, control})
	s.setAllowed(p, "out", []int{openPort})
	p.await("the pods of the churn are gone", func() error {
		if n := len(p.pods(guarded, client.MatchingLabels{"churn": "true"})); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
}

// usage is what there is at rest.
type usage struct {
	objects  map[string]int // of the agents in the kernel, by kind
	memory   uint64         // of their maps, in bytes
	restarts map[string]int32
	process  map[string]map[string]float64 // by pod and what
}

// processFigures are the series of a process that must not grow.
var processFigures = map[string]string{
	"goroutines": "go_goroutines", "file descriptors": "process_open_fds", "resident MiB": "process_resident_memory_bytes", "heap MiB": "go_memstats_heap_inuse_bytes",
}

// atRest waits until all is right with the steady pods alone, and measures.
func (s *soak) atRest(p *point, name string) *usage {
	p.Helper()
	u := &usage{restarts: map[string]int32{}, process: map[string]map[string]float64{}}
	p.step("at rest: "+name, func(p *point) {
		s.right(p)
		p.await("counters are of pods that are there", func() error { return s.onlyLiving(p) })
		u.objects = map[string]int{}
		all := p.held()
		for kind, ids := range all {
			u.objects[kind] = len(ids)
		}
		var err error
		u.memory, err = mapMemory(all)
		p.must(err)
		u.measure(p)
		u.tell()
	})
	return u
}

// measure reads the figures of all processes some times, and takes the least of each:
// what grows does so in the least, too, and garbage does not count.
func (u *usage) measure(p *point) {
	p.Helper()
	const times = 20
	pods := p.pods(system, nil)
	for range times {
		for i := range pods {
			u.restarts[pods[i].Name] = pods[i].Status.ContainerStatuses[0].RestartCount
			u.add(p, &pods[i])
		}
		time.Sleep(time.Second)
	}
}

func (u *usage) add(p *point, pod *corev1.Pod) {
	p.Helper()
	least := u.process[pod.Name]
	if least == nil {
		least = map[string]float64{}
		u.process[pod.Name] = least
	}
	families, err := p.scrape(p.Context(), pod)
	p.must(err)
	for what, name := range processFigures {
		metrics := families[name].GetMetric()
		if len(metrics) == 0 {
			p.Fatalf("%s has no %s", pod.Name, name)
		}
		is := metrics[0].GetGauge().GetValue()
		if strings.HasSuffix(what, "MiB") {
			is /= 1 << 20
		}
		if was, known := least[what]; !known || is < was {
			least[what] = is
		}
	}
}

func (u *usage) tell() {
	say("  in the kernel: %d programs, %d maps of %.1f MiB, %d links", u.objects["program"], u.objects["map"], float64(u.memory)/(1<<20), u.objects["link"])
	for _, pod := range slices.Sorted(maps.Keys(u.process)) {
		of := u.process[pod]
		say("  %s: %.0f goroutines, %.0f file descriptors, %.1f MiB resident, heap of %.1f MiB",
			pod, of["goroutines"], of["file descriptors"], of["resident MiB"], of["heap MiB"])
	}
}

// onlyLiving is nil when no agent tells of a pod that is gone.
func (s *soak) onlyLiving(p *point) error {
	living := map[string]bool{}
	for _, pod := range p.pods(guarded, nil) {
		living[pod.Name] = true
	}
	for _, agent := range p.pods(system, agentLabels) {
		ctx, cancel := context.WithTimeout(p.Context(), 10*time.Second)
		families, err := p.scrape(ctx, &agent)
		cancel()
		if err != nil {
			return err
		}
		for name, family := range families {
			if !strings.HasPrefix(name, "podconfigmap_controller_ebpf_") {
				continue
			}
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "pod_name" && !living[l.GetValue()] {
						return fmt.Errorf("%s tells %s of pod %s", agent.Name, name, l.GetValue())
					}
				}
			}
		}
	}
	return nil
}

// Limits of what a process may have more at the end than in the middle. Goroutines and
// descriptors come and go with connections; memory is Go's to give back.
const (
	moreGoroutines  = 10
	moreDescriptors = 5
	moreMemory      = 0.25 // of itself
	leastMemory     = 12   // MiB
	// An agent keeps a policy in store, but not at all times.
	sparePolicies = 1
	policyBytes   = 128 << 10
)

func grown(p *point, before, middle, end *usage) {
	p.Helper()
	for _, later := range []*usage{middle, end} {
		is, was := later.objects, before.objects
		if is["program"] != was["program"] || is["link"] != was["link"] || max(is["map"]-was["map"], was["map"]-is["map"]) > sparePolicies**nodes {
			p.Errorf("programs, maps and links of the agents: %v, at first %v", is, was)
		}
		if later.memory > before.memory+uint64(sparePolicies**nodes*policyBytes) {
			p.Errorf("the agents' maps have %d bytes, at first %d", later.memory, before.memory)
		}
	}
	for pod, is := range end.process {
		was, lived := middle.process[pod]
		if !lived || middle.restarts[pod] != end.restarts[pod] {
			p.Errorf("%s was started anew while nothing was killed", pod)
			continue
		}
		for what, more := range map[string]float64{
			"goroutines": moreGoroutines, "file descriptors": moreDescriptors,
			"resident MiB": max(leastMemory, moreMemory*was["resident MiB"]), "heap MiB": max(leastMemory, moreMemory*was["heap MiB"]),
		} {
			if is[what] > was[what]+more {
				p.Errorf("%s has %.1f %s at the end, had %.1f: more than %.1f more", pod, is[what], what, was[what], more)
			}
		}
	}
}
