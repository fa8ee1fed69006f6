// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//go:build ignore

// Counts the system calls of watched pods.
//
// Hooks:   raw_tracepoint/sys_enter, once per node (needs no tracefs): a stub that
//          jumps to the counting program, which can so be exchanged without a gap
//          raw_tracepoint/cgroup_mkdir and cgroup_rmdir: containers come and go
// Watched: cgroup id -> slot of the pod; user space writes the pod's own cgroup and
//          those that exist, the kernel side their descendants as they are made
// Counts:  (slot, system call) -> calls, per CPU, read at scrape
//          (slot, process, system call) -> calls, where asked for
// Types for Go: flag
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// A test compiles other shapes of the pinned maps.
#ifndef NUMBERS
#define NUMBERS 512
#define CGROUPS 16384
#define ROWS syscall_rows
#endif
#define PROCESSES 65536

// Structs grow at their ends, and layout.version is raised then.
struct row {
	__u64 calls[NUMBERS];
#ifdef NEXT_LAYOUT
	__u64 more[8];
#endif
};

enum flag {
	WATCHED = 1,  // calls are counted, new cgroups inherit
	PER_PID = 2,  // also per process
	COMPLETE = 4, // every cgroup of the pod was found
	UNCLEAN = 8,  // no longer watched, but the row is not yet zero
	HAS_PIDS = 16 // there may be per-process counts
};

struct settings {
	__u64 numbers[NUMBERS / 64]; // bit n: system call n is counted
	enum flag flags;
	__u32 reserved;
#ifdef NEXT_LAYOUT
	__u64 more[3];
#endif
};

// Index of a hint: the upper half of (the lower half of the cgroup's id * FACTOR).
enum hint_index {
	FACTOR = 0x9E3779B1, // 2^32 by the golden ratio
};

struct process_call {
	__u32 slot;
	__u32 process;
	__u32 number;
};

// The number of entries of the first three is set at load: the node's slots.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct row);
} ROWS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} slot_settings SEC(".maps");

// Totals of the layouts that were in use before this one. No program touches it.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct row);
} carried_rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CGROUPS);
	__type(key, __u64);
	__type(value, __u32);
} cgroup_slots SEC(".maps");

// What most calls need of the table above, at the price of an array: (id << 16 | slot)
// of a registered cgroup, at an index that the id gives. 0 says that no registered
// cgroup has that index, any other value that the table has to be asked. Once it is
// not 0 it never becomes 0 again.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, enum hint_index);
	__type(value, __u64);
} cgroup_hints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PROCESSES);
	__type(key, struct process_call);
	__type(value, __u64);
} process_calls SEC(".maps");

// Cgroups that were not registered because cgroup_slots was full.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} dropped_cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sys_enter_jump SEC(".maps");

SEC("raw_tracepoint/sys_enter")
int sys_enter_stub(struct bpf_raw_tracepoint_args *ctx)
{
	bpf_tail_call(ctx, &sys_enter_jump, 0);
	return 0;
}

static __noinline void count_process(__u32 slot, __u32 number)
{
	struct process_call call = {
		.slot = slot,
		.process = bpf_get_current_pid_tgid() >> 32,
		.number = number,
	};
	__u64 zero = 0;
	__u64 *calls = bpf_map_lookup_elem(&process_calls, &call);

	if (!calls) {
		// Another thread may be first; then its entry is found.
		bpf_map_update_elem(&process_calls, &call, &zero, BPF_NOEXIST);
		calls = bpf_map_lookup_elem(&process_calls, &call);
		if (!calls)
			return;
	}
	__sync_fetch_and_add(calls, 1);
}

static __always_inline __u64 *hint_of(__u64 cgroup)
{
	__u32 index = (__u32)cgroup * FACTOR >> 16;

	return bpf_map_lookup_elem(&cgroup_hints, &index);
}

// Numbers of 512 and above are not counted: x32 calls, and -1, which a tracer sets
// to cancel one. Calls of 32-bit programs use another table of numbers, and are
// counted by the number alone.
SEC("raw_tracepoint/sys_enter")
int count_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	__u64 *place = hint_of(cgroup);
	struct settings *settings;
	struct row *row;
	__u64 hint, number;
	__u32 slot;

	if (!place)
		return 0;
	hint = *(volatile __u64 *)place;
	if (!hint)
		return 0;
	slot = hint & 0xffff;
	if (hint >> 16 != cgroup << 16 >> 16) {
		__u32 *found = bpf_map_lookup_elem(&cgroup_slots, &cgroup);

		if (!found)
			return 0;
		slot = *found;
	}
	number = ctx->args[1];
	if (number >= NUMBERS)
		return 0;
	// The compiler would drop a mask that it knows to be without effect, and
	// some kernels' verifiers need it.
	asm volatile("%0 &= %1" : "+r"(number) : "i"(NUMBERS - 1));
	settings = bpf_map_lookup_elem(&slot_settings, &slot);
	if (!settings || !(settings->numbers[number / 64] & 1ULL << number % 64))
		return 0;
	row = bpf_map_lookup_elem(&ROWS, &slot);
	if (!row)
		return 0;
	// Not atomic: the row is this CPU's own, no interrupt makes a system call, and
	// the kernel begins no run of the stub on a CPU before the last there has ended.
	row->calls[number]++;
	if (settings->flags & PER_PID)
		count_process(slot, number);
	return 0;
}

struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

// Before Linux 5.5.
union kernfs_node_id {
	__u64 id;
} __attribute__((preserve_access_index));

struct kernfs_node___union {
	union kernfs_node_id id;
} __attribute__((preserve_access_index));

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
} __attribute__((preserve_access_index));

static __always_inline __u64 cgroup_id(struct cgroup *cgroup)
{
	struct kernfs_node *node = BPF_CORE_READ(cgroup, kn);
	struct kernfs_node___union *old = (void *)node;

	if (bpf_core_field_exists(old->id.id))
		return BPF_CORE_READ(old, id.id);
	return BPF_CORE_READ(node, id);
}

// Runs before the new cgroup can be seen, so before any process can be in it.
SEC("raw_tracepoint/cgroup_mkdir")
int inherit_slot(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *child = (void *)ctx->args[0];
	struct cgroup *parent = BPF_CORE_READ(child, self.parent, cgroup);
	__u64 id;
	__u32 *found, slot, zero = 0;
	struct settings *settings;
	__u64 *dropped, *hint;

	if (!parent)
		return 0;
	id = cgroup_id(parent);
	found = bpf_map_lookup_elem(&cgroup_slots, &id);
	if (!found)
		return 0;
	slot = *found;
	settings = bpf_map_lookup_elem(&slot_settings, &slot);
	if (!settings || !(settings->flags & WATCHED))
		return 0;
	id = cgroup_id(child);
	if (!bpf_map_update_elem(&cgroup_slots, &id, &slot, BPF_ANY)) {
		hint = hint_of(id);
		if (hint)
			*(volatile __u64 *)hint = id << 16 | slot;
		return 0;
	}
	dropped = bpf_map_lookup_elem(&dropped_cgroups, &zero);
	if (dropped)
		__sync_fetch_and_add(dropped, 1);
	return 0;
}

SEC("raw_tracepoint/cgroup_rmdir")
int forget_cgroup(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 id = cgroup_id((void *)ctx->args[0]);

	bpf_map_delete_elem(&cgroup_slots, &id);
	return 0;
}
