// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//go:build ignore

// The kernel takes the second licence, which some of its helpers ask for.
//
// Lets the traffic of pods pass, or not, by protocol and destination port.
//
// Hooks:   cgroup_skb ingress and egress, cgroup/connect4 and connect6, of a
//          pod's cgroup: one set of programs for all pods
// Pod:     {slot + 1, policy} in the cgroup storage of each attachment
// Rules:   policy -> two bits for each protocol, direction and port
// Counts:  pod slot -> connections and packets, per CPU, read at scrape
//
// Layouts grow at their ends only, and their versions (layouts.go) grow with them:
// any build reads the maps of any other.
#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

enum { DROP, PASS };
enum direction { INGRESS, EGRESS };
enum protocol { TCP, UDP, OTHER };
enum verdict { ALLOWED, BLOCKED, WOULD_BLOCK };

#define LOOPBACK_IFINDEX 1
#define FLOW_AGE (120 * 1000000000LL)
// How old a time may be before it is written again: a flow's packets come from
// several CPUs, which would take its cache line from each other.
#define REFRESH_AGE 1000000000LL
#define EXTENSION_HEADERS 8
#define WAYS 8
// A tick of the flow table: 0.13 s.
#define TICK_SHIFT 27
#define OWN_ADDRESSES 8
// Direction of a remembered SYN or blocked flow, in its slot.
#define IN_EGRESS (1U << 31)

// The one layout that never changes: a link that gets a new program keeps the
// storage that it was made with.
struct attachment {
	__u32 slot; // + 1; 0: not set yet, or being detached
	__u32 policy;
};

struct rules {
	__u64 enforce, audit; // 64 ports each, 1: allowed
};

#define ALL_INGRESS_ALLOWED 1
#define ALL_EGRESS_ALLOWED 2

struct policy {
	struct rules rules[2][2][1024]; // protocol, direction, port / 64
	__u64 flags;
#ifdef NEXT_LAYOUT
	__u64 more[7];
#endif
};

#define ASK_LISTENERS 1

struct pod {
	__u64 since; // when it was attached: what is remembered from before is another pod's
	__u32 flags;
	__u32 addresses;
	__u32 own[OWN_ADDRESSES][4]; // IPv4 addresses as ::ffff:a.b.c.d
#ifdef NEXT_LAYOUT
	__u64 more;
#endif
};

struct counters {
	__u64 connections[2][4]; // direction, verdict
	__u64 packets[2][2];     // direction, protocol
#ifdef NEXT_LAYOUT
	__u64 more[5];
#endif
};

struct flow {
	__u32 slot;
	__u16 local_port, remote_port; // as on the wire
	__u32 local[4], remote[4];     // IPv4 addresses as ::ffff:a.b.c.d
} __attribute__((aligned(8)));

struct seen {
	__u64 time; // of the last packet, up to REFRESH_AGE old
	__u32 direction;
	__u32 verdict;
};

struct syn {
	struct flow flow;
	__u32 sequence;
	__u32 unused;
};

struct way {
	struct flow flow;
	struct seen seen;
};

// The only place of the flows of one hash. Its first cache line tells which way to
// look at: to begin a flow takes two lines that are not at hand, where the kernel's
// LRU takes ten.
struct bucket {
	struct bpf_spin_lock lock; // of who gives a way away
	__u32 unused;
	__u32 ticks[WAYS]; // of the last packet, as in seen; 0: free
	__u16 tags[WAYS];  // more of the hash
	__u64 unused_too;
	struct way ways[WAYS];
};

struct events {
	__u64 evictions; // of flows that lived
};

// Drawn once for a table: who could tell the hash could fill a bucket.
const volatile __u64 flow_seed;
// The number of buckets, a power of two, less one.
const volatile __u32 bucket_mask;

// The loader sets the numbers of entries.
#define STORAGE(name)                                          \
	struct {                                               \
		__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);     \
		__type(key, struct bpf_cgroup_storage_key);    \
		__type(value, struct attachment);              \
	} name SEC(".maps")

// One for each program: before Linux 5.9 no two programs may share one.
STORAGE(storage_ingress);
STORAGE(storage_egress);
STORAGE(storage_connect4);
STORAGE(storage_connect6);

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	// Not __type: clang 14 writes no definition of a struct that only an inner map uses.
	__uint(value_size, sizeof(struct policy));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct inner);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pod);
} pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} flows SEC(".maps");

// Apart from the flows: a flood of what is blocked must not evict what lives.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow);
	__type(value, struct seen);
} blocked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct syn);
	__type(value, struct seen);
} syns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct events);
} events SEC(".maps");

// Of the packet at hand: what its headers say.
struct packet {
	enum protocol protocol;
	bool broken; // no ports can be read
	__u16 source, destination; // as on the wire
	__u32 sequence;
	bool syn;
};

// Atomic although the row is this CPU's own: a softirq can interrupt the program.
static __always_inline void add_one(__u64 *count)
{
	__sync_fetch_and_add(count, 1);
}

// Every attachment has a policy. Were there none, rather nothing would pass.
static __always_inline struct policy *policy_at(__u32 index)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&policies, &index);

	return inner ? bpf_map_lookup_elem(inner, &zero) : NULL;
}

static __always_inline enum verdict judge(struct policy *policy, enum protocol protocol,
					  enum direction direction, __u16 destination)
{
	__u16 port = bpf_ntohs(destination);
	__u32 i = (protocol * 2 + direction) * 1024 + (port >> 6);

	// LLVM drops a mask where it knows the range; verifiers up to Linux 6.5 forget
	// the ranges that it relies on.
	barrier_var(i);
	i &= 4095;
	struct rules *rules = &policy->rules[0][0][0] + i;
	if (!(rules->enforce >> (port & 63) & 1))
		return BLOCKED;
	return rules->audit >> (port & 63) & 1 ? ALLOWED : WOULD_BLOCK;
}

static __always_inline void count_connection(struct counters *row, enum direction direction, enum verdict verdict)
{
	__u32 i = verdict;

	if (!row)
		return;
	barrier_var(i);
	i &= 3;
	add_one(&row->connections[direction][i]);
}

static __always_inline void take_tcp(struct packet *packet, struct tcphdr *header)
{
	packet->source = header->source;
	packet->destination = header->dest;
	packet->sequence = header->seq;
	packet->syn = header->syn && !header->ack;
}

static __always_inline void take_udp(struct packet *packet, struct udphdr *header)
{
	packet->source = header->source;
	packet->destination = header->dest;
}

// Reads the ports at an offset that may be anything.
static __always_inline void load_transport(struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	if (packet->protocol == TCP) {
		struct tcphdr tcp;

		if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
			packet->broken = true;
		else
			take_tcp(packet, &tcp);
	} else {
		struct udphdr udp;

		if (bpf_skb_load_bytes(skb, offset, &udp, sizeof(udp)))
			packet->broken = true;
		else
			take_udp(packet, &udp);
	}
}

// The same for an offset known to the compiler, in place where the packet allows.
static __always_inline void read_transport(struct __sk_buff *skb, const __u32 offset, struct packet *packet)
{
	void *header = (void *)(long)skb->data + offset, *end = (void *)(long)skb->data_end;

	if (packet->protocol == TCP && header + sizeof(struct tcphdr) <= end) {
		take_tcp(packet, header);
	} else if (packet->protocol == UDP && header + sizeof(struct udphdr) <= end) {
		take_udp(packet, header);
	} else {
		load_transport(skb, offset, packet);
	}
}

static __always_inline enum protocol protocol_of(__u8 number)
{
	return number == IPPROTO_TCP ? TCP : number == IPPROTO_UDP ? UDP : OTHER;
}

static __always_inline void parse_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr copy, *ip = data;

	if (data + sizeof(*ip) > end) {
		if (bpf_skb_load_bytes(skb, 0, &copy, sizeof(copy))) {
			packet->broken = true;
			return;
		}
		ip = &copy;
	}
	packet->protocol = protocol_of(ip->protocol);
	if (packet->protocol == OTHER)
		return;
	__u32 words = ip->ihl;
	if (words < 5 || ip->frag_off & bpf_htons(0x1fff))
		packet->broken = true;
	else if (words == 5)
		read_transport(skb, sizeof(*ip), packet);
	else
		load_transport(skb, words * 4, packet);
}

// Walks the extension headers, from one whose type is next.
static __always_inline void walk_ipv6(struct __sk_buff *skb, __u8 next, struct packet *packet)
{
	__u32 offset = sizeof(struct ipv6hdr);
	bool later_fragment = false;

#pragma unroll
	for (int i = 0; i <= EXTENSION_HEADERS; i++) {
		__u8 header[4]; // next header, length, and of a fragment header the offset

		if (next == IPPROTO_TCP || next == IPPROTO_UDP) {
			packet->protocol = next == IPPROTO_TCP ? TCP : UDP;
			if (later_fragment)
				packet->broken = true;
			else
				load_transport(skb, offset, packet);
			return;
		}
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT && next != IPPROTO_AH)
			return;
		// Nothing tells what follows an extension header in a later fragment.
		if (later_fragment || i == EXTENSION_HEADERS || bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			break;
		if (next == IPPROTO_FRAGMENT) {
			later_fragment = header[2] | (header[3] & 0xf8);
			offset += 8;
		} else if (next == IPPROTO_AH) {
			offset += (header[1] + 2) * 4;
		} else {
			offset += (header[1] + 1) * 8;
		}
		next = header[0];
	}
	packet->broken = true;
}

static __always_inline void parse_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr copy, *ip = data;

	if (data + sizeof(*ip) > end) {
		if (bpf_skb_load_bytes(skb, 0, &copy, sizeof(copy))) {
			packet->broken = true;
			return;
		}
		ip = &copy;
	}
	packet->protocol = protocol_of(ip->nexthdr);
	if (packet->protocol != OTHER)
		read_transport(skb, sizeof(*ip), packet);
	else
		walk_ipv6(skb, ip->nexthdr, packet);
}

// The flow of a packet whose headers have been read, seen from the pod. Nothing
// here can fail: what was read once is there.
static __always_inline void flow_of(struct __sk_buff *skb, struct packet *packet, enum direction direction,
				    __u32 slot, struct flow *flow)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 *source = direction == INGRESS ? flow->remote : flow->local;
	__u32 *destination = direction == INGRESS ? flow->local : flow->remote;

	flow->slot = slot;
	flow->remote_port = direction == INGRESS ? packet->source : packet->destination;
	flow->local_port = direction == INGRESS ? packet->destination : packet->source;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr copy, *ip = data;

		if (data + sizeof(*ip) > end) {
			__builtin_memset(&copy, 0, sizeof(copy));
			bpf_skb_load_bytes(skb, 0, &copy, sizeof(copy));
			ip = &copy;
		}
		source[0] = source[1] = destination[0] = destination[1] = 0;
		source[2] = destination[2] = bpf_htonl(0xffff);
		source[3] = ip->saddr;
		destination[3] = ip->daddr;
	} else {
		struct ipv6hdr copy, *ip = data;

		if (data + sizeof(*ip) > end) {
			__builtin_memset(&copy, 0, sizeof(copy));
			bpf_skb_load_bytes(skb, 0, &copy, sizeof(copy));
			ip = &copy;
		}
		__builtin_memcpy(source, &ip->saddr, 16);
		__builtin_memcpy(destination, &ip->daddr, 16);
	}
}

static __always_inline int filter_syn(struct __sk_buff *skb, struct packet *packet, enum direction direction,
				      __u32 slot, struct policy *policy, struct counters *row)
{
	enum verdict verdict = judge(policy, TCP, direction, packet->destination);
	struct seen now = {.direction = direction, .verdict = verdict};
	struct syn syn = {.sequence = packet->sequence};

	flow_of(skb, packet, direction, slot | (direction == EGRESS ? IN_EGRESS : 0), &syn.flow);
	// Sent again it counts no more, unless it meets other rules.
	struct seen *before = bpf_map_lookup_elem(&syns, &syn);
	if (!before) {
		if (bpf_map_update_elem(&syns, &syn, &now, BPF_NOEXIST) != -17 /* EEXIST: on another CPU just now */)
			count_connection(row, direction, verdict);
	} else if (before->verdict != verdict) {
		before->verdict = verdict;
		count_connection(row, direction, verdict);
	}
	return verdict == BLOCKED ? DROP : PASS;
}

// When the pod of a slot was attached.
static __always_inline __u64 since_of(__u32 slot)
{
	struct pod *pod = bpf_map_lookup_elem(&pods, &slot);

	return pod ? pod->since : 0;
}

static __always_inline bool lives(struct seen *seen, __u64 now, __u64 since)
{
	// Signed: a clock with another resolution may have been ahead.
	return seen && seen->time >= since && (__s64)(now - seen->time) < FLOW_AGE;
}

static __always_inline void refresh(struct seen *seen, __u64 now)
{
	if ((__s64)(now - seen->time) > REFRESH_AGE)
		seen->time = now;
}

static __always_inline int drop_udp(struct flow *flow, enum direction direction, __u64 now, __u64 since,
				    struct counters *row)
{
	struct seen entry = {.time = now, .direction = direction, .verdict = BLOCKED};

	if (direction == EGRESS)
		flow->slot |= IN_EGRESS;
	struct seen *before = bpf_map_lookup_elem(&blocked, flow);
	if (lives(before, now, since)) {
		refresh(before, now);
		return DROP;
	}
	if (bpf_map_update_elem(&blocked, flow, &entry, before ? BPF_ANY : BPF_NOEXIST) != -17)
		count_connection(row, direction, BLOCKED);
	return DROP;
}

typedef __u64 __attribute__((may_alias)) word;

static __always_inline __u64 hash_of(struct flow *flow)
{
	word *words = (word *)flow;
	__u64 hash = flow_seed;

#pragma unroll
	for (int i = 0; i < sizeof(*flow) / sizeof(word); i++) {
		hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15;
		hash ^= hash >> 32;
	}
	return hash;
}

static __always_inline bool same(struct flow *a, struct flow *b)
{
	word *left = (word *)a, *right = (word *)b;

	return left[0] == right[0] && left[1] == right[1] && left[2] == right[2] && left[3] == right[3] &&
	       left[4] == right[4];
}

// Returns the way that is a flow's, WAYS for none. Without the lock: while a way
// changes hands its time is 0.
static __always_inline __u32 find(struct bucket *bucket, struct flow *flow, __u16 tag)
{
#pragma unroll
	for (__u32 i = 0; i < WAYS; i++) {
		if (bucket->tags[i] == tag && same(&bucket->ways[i].flow, flow))
			return i;
	}
	return WAYS;
}

static __always_inline void refresh_way(struct bucket *bucket, __u32 i, __u64 now)
{
	if ((__s64)(now - bucket->ways[i].seen.time) > REFRESH_AGE) {
		bucket->ways[i].seen.time = now;
		bucket->ticks[i] = now >> TICK_SHIFT;
	}
}

// Remembers a flow in the place of the one that was silent for longest, or where it
// has been before. Returns whether another CPU did so just now, and of when the flow
// was whose way it took, in ticks, 0 for none.
static __always_inline bool remember(struct bucket *bucket, struct flow *flow, __u16 tag, struct seen *entry,
				     __u64 since, __u32 *evicted)
{
	__u32 chosen = 0, oldest = 0;
	bool known;

	bpf_spin_lock(&bucket->lock);
	__u32 i = find(bucket, flow, tag);
	known = i < WAYS;
	if (known) {
		chosen = i;
	} else {
		oldest = bucket->ticks[0];
#pragma unroll
		for (i = 1; i < WAYS; i++) {
			if (bucket->ticks[i] < oldest) {
				oldest = bucket->ticks[i];
				chosen = i;
			}
		}
	}
	barrier_var(chosen);
	chosen &= WAYS - 1;
	struct way *way = &bucket->ways[chosen];
	bool lost = known && lives(&way->seen, entry->time, since);
	if (!lost) {
		way->seen.time = 0;
		barrier();
		bucket->tags[chosen] = tag;
		way->flow = *flow;
		way->seen.direction = entry->direction;
		way->seen.verdict = entry->verdict;
		barrier();
		way->seen.time = entry->time;
		bucket->ticks[chosen] = entry->time >> TICK_SHIFT;
	}
	bpf_spin_unlock(&bucket->lock);
	*evicted = oldest;
	return lost;
}

// Gives a flow of what goes out the ports and addresses that a connected socket knows.
// The packet's are others where they were translated in the pod's own network namespace,
// as they are on the host's network, for Services; the reply is translated back before
// it comes in. What may not be sent to the socket's port opens no way back from it: the
// packet may have been sent elsewhere by its sender.
static __always_inline void take_socket(struct __sk_buff *skb, __u32 index, struct flow *flow)
{
	struct bpf_sock *socket = skb->sk;
	struct flow known = {.slot = flow->slot, .local[2] = bpf_htonl(0xffff), .remote[2] = bpf_htonl(0xffff)};

	if (!socket || !socket->dst_port)
		return;
	known.local_port = bpf_htons(socket->src_port);
	known.remote_port = socket->dst_port;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		known.local[3] = socket->src_ip4;
		known.remote[3] = socket->dst_ip4;
	} else {
#pragma unroll
		for (int i = 0; i < 4; i++) { // A verifier lets no two words be read at once.
			__u32 local = socket->src_ip6[i], remote = socket->dst_ip6[i];

			barrier_var(local);
			barrier_var(remote);
			known.local[i] = local;
			known.remote[i] = remote;
		}
	}
	if (same(flow, &known))
		return;
	struct policy *policy = policy_at(index);
	if (policy && judge(policy, UDP, EGRESS, known.remote_port) != BLOCKED)
		*flow = known;
}

static __always_inline void begin_flow(struct bucket *bucket, struct flow *flow, __u16 tag, enum direction direction,
				       enum verdict verdict, __u64 now, __u64 since, struct counters *row)
{
	struct seen entry = {.time = now, .direction = direction, .verdict = verdict};
	__u32 evicted, zero = 0;

	if (remember(bucket, flow, tag, &entry, since, &evicted))
		return;
	count_connection(row, direction, verdict);
	if (evicted && (__s32)((__u32)(now >> TICK_SHIFT) - evicted) < FLOW_AGE >> TICK_SHIFT) {
		struct events *mine = bpf_map_lookup_elem(&events, &zero);

		if (mine)
			add_one(&mine->evictions);
	}
}

static __always_inline int filter_udp(struct __sk_buff *skb, struct packet *packet, enum direction direction,
				      __u32 slot, __u32 index, struct counters *row)
{
	__u64 now = bpf_ktime_get_ns(); // The loader takes the coarse clock where there is one.
	__u64 since = 0; // of no interest for what is not remembered
	struct seen *before = NULL;
	struct flow flow;

	flow_of(skb, packet, direction, slot, &flow);
	if (direction == EGRESS)
		take_socket(skb, index, &flow);
	__u64 hash = hash_of(&flow);
	__u32 place = hash & bucket_mask;
	__u16 tag = hash >> 48;
	struct bucket *bucket = bpf_map_lookup_elem(&flows, &place);
	if (!bucket)
		return DROP; // The mask names no other.
	__u32 i = find(bucket, &flow, tag);
	if (i < WAYS) {
		before = &bucket->ways[i].seen;
		since = since_of(slot);
	}
	bool live = lives(before, now, since);
	if (live && before->direction != direction) {
		refresh_way(bucket, i, now);
		return PASS;
	}
	struct policy *policy = policy_at(index);
	if (!policy)
		return DROP;
	enum verdict verdict = judge(policy, UDP, direction, packet->destination);
	if (verdict == BLOCKED)
		return drop_udp(&flow, direction, now, since_of(slot), row);
	if (!live) {
		begin_flow(bucket, &flow, tag, direction, verdict, now, since, row);
		return PASS;
	}
	if (before->verdict != verdict) { // The rules have changed: it counts again.
		before->verdict = verdict;
		count_connection(row, direction, verdict);
	}
	refresh_way(bucket, i, now);
	return PASS;
}

static __always_inline int filter(struct __sk_buff *skb, struct attachment *attachment, const enum direction direction)
{
	struct packet packet = {.protocol = OTHER};

	if (!attachment->slot)
		return PASS;
	__u32 slot = attachment->slot - 1;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		parse_ipv4(skb, &packet);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		parse_ipv6(skb, &packet);
	if (packet.protocol == OTHER && !packet.broken)
		return PASS;

	struct counters *row = bpf_map_lookup_elem(&counters, &slot);
	if (row && packet.protocol == TCP)
		add_one(&row->packets[direction][TCP]);
	else if (row && packet.protocol == UDP)
		add_one(&row->packets[direction][UDP]);
	if (skb->ifindex == LOOPBACK_IFINDEX)
		return PASS;
	if (packet.protocol == TCP && !packet.broken && !packet.syn)
		return PASS;

	if (packet.protocol == UDP && !packet.broken)
		return filter_udp(skb, &packet, direction, slot, attachment->policy, row);
	struct policy *policy = policy_at(attachment->policy);
	if (!policy)
		return DROP;
	if (packet.broken)
		return policy->flags & (direction == INGRESS ? ALL_INGRESS_ALLOWED : ALL_EGRESS_ALLOWED) ? PASS : DROP;
	return filter_syn(skb, &packet, direction, slot, policy, row);
}

SEC("cgroup_skb/ingress")
int ingress(struct __sk_buff *skb)
{
	return filter(skb, bpf_get_local_storage(&storage_ingress, 0), INGRESS);
}

SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	return filter(skb, bpf_get_local_storage(&storage_egress, 0), EGRESS);
}

static __always_inline bool is_loopback(__u32 *address)
{
	if (address[0] || address[1])
		return false;
	if (address[2] == bpf_htonl(0xffff)) // The unspecified address leads to the loopback, too.
		return (address[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || !address[3];
	return !address[2] && (address[3] == bpf_htonl(1) || !address[3]);
}

static __always_inline bool is_own(struct pod *pod, __u32 *address)
{
	__u32 known = pod->addresses;

#pragma unroll
	for (__u32 i = 0; i < OWN_ADDRESSES; i++) {
		__u32 *own = pod->own[i];

		if (i < known && own[0] == address[0] && own[1] == address[1] && own[2] == address[2] &&
		    own[3] == address[3])
			return true;
	}
	return false;
}

// Whether the pod's network namespace may have a listener there: an own address
// is not known as one, but its listeners are.
static __always_inline bool has_listener(struct bpf_sock_addr *ctx, __u32 *address)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found;

	if (!address[0] && !address[1] && address[2] == bpf_htonl(0xffff)) {
		tuple.ipv4.daddr = address[3];
		tuple.ipv4.dport = ctx->user_port;
		found = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(tuple.ipv6.daddr, address, 16);
		tuple.ipv6.dport = ctx->user_port;
		found = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!found)
		return false;
	bpf_sk_release(found);
	return true;
}

// Denies at once what the egress program would drop until the connection times out.
static __always_inline int connecting(struct bpf_sock_addr *ctx, struct attachment *attachment, __u32 *address)
{
	if (!attachment->slot || ctx->protocol != IPPROTO_TCP)
		return PASS;
	__u32 slot = attachment->slot - 1;
	struct policy *policy = policy_at(attachment->policy);
	if (!policy)
		return DROP;
	if (judge(policy, TCP, EGRESS, ctx->user_port) != BLOCKED || is_loopback(address))
		return PASS;

	struct pod *pod = bpf_map_lookup_elem(&pods, &slot);
	if (!pod || is_own(pod, address))
		return PASS; // The egress program sees where it goes.
	if (pod->flags & ASK_LISTENERS && has_listener(ctx, address))
		return PASS;
	count_connection(bpf_map_lookup_elem(&counters, &slot), EGRESS, BLOCKED);
	return DROP;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	__u32 address[4] = {0, 0, bpf_htonl(0xffff), ctx->user_ip4};

	return connecting(ctx, bpf_get_local_storage(&storage_connect4, 0), address);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	__u32 address[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};

	return connecting(ctx, bpf_get_local_storage(&storage_connect6, 0), address);
}
