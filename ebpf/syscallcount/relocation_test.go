// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"bytes"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/podconfigmap/podconfigmap-controller/internal/podcgroup"
)

// oldKernelTypes are types as kernels before 5.5 have them, with offsets made up.
func oldKernelTypes(t *testing.T) *btf.Spec {
	t.Helper()
	u64 := &btf.Int{Name: "unsigned long long", Size: 8}
	id := &btf.Union{Name: "kernfs_node_id", Size: 8, Members: []btf.Member{{Name: "id", Type: u64}}}
	node := &btf.Struct{Name: "kernfs_node", Size: 1008, Members: []btf.Member{{Name: "id", Type: id, Offset: 8 * 1000}}}
	state := &btf.Struct{Name: "cgroup_subsys_state", Size: 16}
	cgroup := &btf.Struct{Name: "cgroup", Size: 24, Members: []btf.Member{
		{Name: "self", Type: state}, {Name: "kn", Type: &btf.Pointer{Target: node}, Offset: 8 * 16},
	}}
	state.Members = []btf.Member{
		{Name: "cgroup", Type: &btf.Pointer{Target: cgroup}},
		{Name: "parent", Type: &btf.Pointer{Target: state}, Offset: 8 * 8},
	}
	builder, err := btf.NewBuilder([]btf.Type{cgroup}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	types, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return types
}

// The program finds a cgroup's id where kernels before 5.5 have it, too.
func TestOldKernfsNode(t *testing.T) {
	types := oldKernelTypes(t)
	spec, err := loadSyscallcount()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{syscallcountProgInheritSlot, syscallcountProgForgetCgroup} {
		spec, relocated := spec.Copy(), 0
		loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			Programs: ebpf.ProgramOptions{KernelTypes: types},
		})
		if err != nil {
			t.Fatal(err)
		}
		info, err := loaded.Programs[name].Info()
		if err != nil {
			t.Fatal(err)
		}
		instructions, err := info.Instructions()
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range instructions {
			if in.OpCode == asm.Add.Op(asm.ImmSource) && in.Constant == 1000 || in.OpCode == asm.Mov.Op(asm.ImmSource) && in.Constant == 1000 {
				relocated++
			}
		}
		want := map[string]int{syscallcountProgInheritSlot: 2, syscallcountProgForgetCgroup: 1}[name]
		if relocated != want {
			t.Errorf("%s: the id is read at its offset %d times, want %d", name, relocated, want)
		}
		loaded.Close()
	}
}

// Whatever an entry of the hints says that is not 0, calls are counted once, and for
// the right slot.
func TestHints(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	pod, second, outside := makeCgroup(t, pods, "pod"), makeCgroup(t, pods, "second"), makeCgroup(t, pods, "outside")
	watchPod(t, c, 1, pod, Settings{})
	watchPod(t, c, 2, second, Settings{})
	id := func(path string) uint64 {
		id, err := cgroupID(podcgroup.ID, path)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	inside, stranger := newWorker(t, pod), newWorker(t, outside)
	hints := []uint64{hintUnknown, id(second)<<16 | 2, id(pod)<<16 | 1}
	for _, hint := range hints {
		for _, path := range []string{pod, outside} {
			if err := c.store.setHint(id(path), hint); err != nil {
				t.Fatal(err)
			}
		}
		inside.do("calls %d 10 0", knownCall)
		stranger.do("calls %d 1000 0", knownCall)
	}
	wantCalls(t, c, 1, knownCall, 10*int64(len(hints)))
	wantCalls(t, c, 2, knownCall, 0)
	if err := c.store.setHint(id(outside), hintUnknown); err != nil {
		t.Fatal(err)
	}
	// No hint is left for the next pod with the slot.
	if err := c.Unwatch(1); err != nil {
		t.Fatal(err)
	}
	watchPod(t, c, 1, makeCgroup(t, pods, "next"), Settings{})
	inside.do("calls %d 10 0", knownCall)
	wantCalls(t, c, 1, knownCall, 0)
	var left []uint64
	err := entriesOf(c.store.maps[syscallcountMapCgroupHints], func(_ uint32, hint uint64) {
		if hint != 0 && hint != hintUnknown {
			left = append(left, hint)
		}
	})
	slices.Sort(left)
	if err != nil || len(left) != 2 {
		t.Errorf("hints %x (%v), want one for each of two pods", left, err)
	}
}
