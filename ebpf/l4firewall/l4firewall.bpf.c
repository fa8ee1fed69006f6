// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//go:build ignore

// The kernel takes the second licence, which some of its helpers ask for.
//
// Lets the traffic of pods pass, or not, by protocol and destination port.
//
// Hooks:   cgroup_skb ingress and egress, cgroup/connect4 and connect6, sendmsg4
//          and sendmsg6, of a pod's cgroup: one set of programs for all pods
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
#define WAYS 5
#define HASHES 3
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
#define HOST_NETWORK 2

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
	__u32 ports; // local, then remote, as on the wire
	__u32 local[4], remote[4];     // IPv4 addresses as ::ffff:a.b.c.d
} __attribute__((aligned(8)));

#define FLOW_WORDS 12 // and when its pod was attached
#define IPV4_WORDS 6

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

// What stands for a flow in the table of flows, from three independent hashes: its place,
// and the tag that tells it from the other flows there. For two flows chosen by who does
// not know the keys the tags are the same in one case of 2^64.
struct fingerprint {
	__u32 place;
	__u64 tag;
};

// A way's state is the time of its flow's last packet, up to REFRESH_AGE old, in ticks
// of 0.13 s, and in the lowest bits how the flow began; 0: free. It goes round in 4.5
// years.
#define TICK_SHIFT 27
#define BEGAN_EGRESS 1
#define BEGAN_WOULD_BLOCK 2
#define BEGAN_BITS 2
#define IN_STATES(ns) ((__u32)((ns) >> TICK_SHIFT << BEGAN_BITS))
// How far another CPU's coarse clock may be ahead.
#define AHEAD IN_STATES(1000000000LL)

// The only place of the flows of one hash: a cache line. It is all that is not at hand
// when a flow begins, where the kernel's LRU takes ten.
struct bucket {
	struct bpf_spin_lock lock; // of who writes
	__u32 states[WAYS];
	__u64 tags[WAYS];
};

struct events {
	__u64 evictions; // of flows that lived
};

// Drawn once for a table.
const volatile __u64 flow_keys[HASHES][2 + FLOW_WORDS];
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
STORAGE(storage_sendmsg4);
STORAGE(storage_sendmsg6);

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
	__uint(map_flags, BPF_F_MMAPABLE);
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

static __always_inline __u32 ports_of(__u16 local, __u16 remote)
{
	return (__u32)remote << 16 | local;
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
	flow->ports = direction == INGRESS ? ports_of(packet->destination, packet->source)
					   : ports_of(packet->source, packet->destination);
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

// Multilinear hashing with half the multiplications, of pairs of words and keys.
// Source: Lemire and Kaser, "Strongly universal string hashing is fast" (2014). IPv6
// has a first key more, so that it is as good between both.
static __always_inline struct fingerprint fingerprint_of(struct flow *flow, __u64 since, bool ipv4)
{
	__u32 words[FLOW_WORDS] = {
		flow->slot,	flow->ports,	flow->local[3], flow->remote[3], since,		  since >> 32,
		flow->local[0], flow->local[1], flow->local[2], flow->remote[0], flow->remote[1], flow->remote[2],
	};
	__u32 hashes[HASHES];

#pragma unroll
	for (int i = 0; i < HASHES; i++) {
		const volatile __u64 *keys = flow_keys[i] + 2;
		__u64 sum = flow_keys[i][0];

#pragma unroll
		for (int j = 0; j < IPV4_WORDS; j += 2)
			sum += (keys[j] + words[j]) * (keys[j + 1] + words[j + 1]);
		if (!ipv4) {
			sum += flow_keys[i][1];
#pragma unroll
			for (int j = IPV4_WORDS; j < FLOW_WORDS; j += 2)
				sum += (keys[j] + words[j]) * (keys[j + 1] + words[j + 1]);
		}
		hashes[i] = sum >> 32;
	}
	return (struct fingerprint){.place = hashes[0] & bucket_mask, .tag = (__u64)hashes[1] << 32 | hashes[2]};
}

static __always_inline bool same(struct flow *a, struct flow *b)
{
	__u32 difference = a->ports ^ b->ports;

#pragma unroll
	for (int i = 0; i < 4; i++)
		difference |= (a->local[i] ^ b->local[i]) | (a->remote[i] ^ b->remote[i]);
	return !difference;
}

// Returns the way that is a flow's, WAYS for none. Without the lock: while a way
// changes hands its state is 0.
static __always_inline __u32 find(struct bucket *bucket, struct fingerprint *fingerprint)
{
#pragma unroll
	for (__u32 i = 0; i < WAYS; i++) {
		if (bucket->tags[i] == fingerprint->tag)
			return i;
	}
	return WAYS;
}

// The place of a flow; NULL for none, which the mask rules out.
static __always_inline struct bucket *bucket_of(struct fingerprint *fingerprint)
{
	return bpf_map_lookup_elem(&flows, &fingerprint->place);
}

// How long ago, in states, up to AHEAD too much.
static __always_inline __u32 age_of(__u32 state, __u32 now)
{
	return now - state + AHEAD;
}

static __always_inline bool is_live(__u32 state, __u32 now)
{
	return state && age_of(state, now) < AHEAD + IN_STATES(FLOW_AGE);
}

// Whether a state is to be written again.
static __always_inline bool is_late(__u32 state, __u32 now)
{
	return age_of(state, now) > AHEAD + IN_STATES(REFRESH_AGE);
}

// Writes the state of a flow, unless its way was given away just now.
static __always_inline void renew(struct bucket *bucket, struct fingerprint *fingerprint, __u32 i, __u32 state)
{
	if (i >= WAYS)
		return;
	bpf_spin_lock(&bucket->lock);
	if (bucket->tags[i] == fingerprint->tag)
		bucket->states[i] = state;
	bpf_spin_unlock(&bucket->lock);
}

// Remembers a flow in the place of the one that was silent for longest, or where it
// has been before. Returns whether another CPU did so just now, and the state of the
// flow whose way it took, 0 for none.
static __always_inline bool remember(struct bucket *bucket, struct fingerprint *fingerprint, __u32 state, __u32 *evicted)
{
	__u32 oldest = 0, before = 0;
	bool lost = false;

	bpf_spin_lock(&bucket->lock);
	__u32 chosen = find(bucket, fingerprint);
	barrier_var(chosen);
	if (chosen < WAYS) {
		lost = is_live(bucket->states[chosen], state);
	} else {
#pragma unroll
		for (__u32 i = 0; i < WAYS; i++) {
			__u32 age = bucket->states[i] ? age_of(bucket->states[i], state) : ~0U;

			if (age >= oldest) {
				oldest = age;
				chosen = i;
				before = bucket->states[i];
			}
		}
	}
	barrier_var(chosen);
	if (!lost && chosen < WAYS) {
		bucket->states[chosen] = 0;
		barrier();
		bucket->tags[chosen] = fingerprint->tag;
		barrier();
		bucket->states[chosen] = state;
	}
	bpf_spin_unlock(&bucket->lock);
	*evicted = before;
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
	known.ports = ports_of(bpf_htons(socket->src_port), socket->dst_port);
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
	if (policy && judge(policy, UDP, EGRESS, known.ports >> 16) != BLOCKED)
		*flow = known;
}

static __always_inline void begin_flow(struct bucket *bucket, struct fingerprint *fingerprint, __u32 state,
				       enum direction direction, enum verdict verdict, struct counters *row)
{
	__u32 evicted, zero = 0;

	if (remember(bucket, fingerprint, state, &evicted))
		return;
	count_connection(row, direction, verdict);
	if (is_live(evicted, state)) {
		struct events *mine = bpf_map_lookup_elem(&events, &zero);

		if (mine)
			add_one(&mine->evictions);
	}
}

// Whether a packet that comes in is the reply to what an unconnected socket has asked
// for: sending() remembers such flows without a local address. Only where addresses are
// translated in the pod's own network namespace is that another flow than the packet's.
static __always_inline bool was_asked_for(struct flow *flow, __u64 since, __u32 state, bool ipv4)
{
	__u32 slot = flow->slot;
	struct pod *pod = bpf_map_lookup_elem(&pods, &slot);

	if (!pod || !(pod->flags & HOST_NETWORK))
		return false;
	struct flow asked = {.slot = slot, .ports = flow->ports, .local[2] = ipv4 ? bpf_htonl(0xffff) : 0};
	__builtin_memcpy(asked.remote, flow->remote, sizeof(asked.remote));
	struct fingerprint fingerprint = fingerprint_of(&asked, since, ipv4);
	struct bucket *bucket = bucket_of(&fingerprint);
	if (!bucket)
		return false;
	__u32 i = find(bucket, &fingerprint);
	barrier_var(i);
	__u32 before = i < WAYS ? bucket->states[i] : 0;
	if (!is_live(before, state))
		return false;
	if (is_late(before, state))
		renew(bucket, &fingerprint, i, state | BEGAN_EGRESS);
	return true;
}

static __always_inline int filter_udp(struct __sk_buff *skb, struct packet *packet, enum direction direction,
				      __u32 slot, __u32 index, struct counters *row)
{
	__u64 now = bpf_ktime_get_ns(); // The loader takes the coarse clock where there is one.
	__u64 since = since_of(slot);
	__u32 state = IN_STATES(now), before = 0;
	__u32 began = direction == EGRESS ? BEGAN_EGRESS : 0;
	bool ipv4 = skb->protocol == bpf_htons(ETH_P_IP);
	struct flow flow;

	flow_of(skb, packet, direction, slot, &flow);
	if (direction == EGRESS)
		take_socket(skb, index, &flow);
	struct fingerprint fingerprint = fingerprint_of(&flow, since, ipv4);
	struct bucket *bucket = bucket_of(&fingerprint);
	if (!bucket)
		return DROP;
	__u32 touched = *(volatile __u32 *)&bucket->states[0];
	barrier_var(touched);
	if (row)
		add_one(&row->packets[direction][UDP]);
	__u32 i = find(bucket, &fingerprint);
	barrier_var(i); // or there would be a copy for each way of all that follows
	if (i < WAYS)
		before = bucket->states[i];
	bool live = is_live(before, state), late = is_late(before, state);
	if (live && (before & BEGAN_EGRESS) != began) {
		if (late)
			renew(bucket, &fingerprint, i, state | (before & (BEGAN_EGRESS | BEGAN_WOULD_BLOCK)));
		return PASS;
	}
	struct policy *policy = policy_at(index);
	if (!policy)
		return DROP;
	enum verdict verdict = judge(policy, UDP, direction, packet->destination);
	if (direction == INGRESS && (verdict == BLOCKED || (verdict == WOULD_BLOCK && !live)) &&
	    was_asked_for(&flow, since, state, ipv4))
		return PASS;
	if (verdict == BLOCKED)
		return drop_udp(&flow, direction, now, since, row);
	state |= began | (verdict == WOULD_BLOCK ? BEGAN_WOULD_BLOCK : 0);
	if (!live) {
		begin_flow(bucket, &fingerprint, state, direction, verdict, row);
		return PASS;
	}
	bool judged_anew = (state ^ before) & BEGAN_WOULD_BLOCK;
	if (judged_anew) // The rules have changed: it counts again.
		count_connection(row, direction, verdict);
	if (judged_anew || late)
		renew(bucket, &fingerprint, i, state);
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
	else if (row && packet.protocol == UDP && (packet.broken || skb->ifindex == LOOPBACK_IFINDEX))
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
	if (!attachment->slot)
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
	if (ctx->protocol != IPPROTO_TCP)
		return PASS;
	__u32 address[4] = {0, 0, bpf_htonl(0xffff), ctx->user_ip4};

	return connecting(ctx, bpf_get_local_storage(&storage_connect4, 0), address);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol != IPPROTO_TCP)
		return PASS;
	__u32 address[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};

	return connecting(ctx, bpf_get_local_storage(&storage_connect6, 0), address);
}

// Remembers where an unconnected socket sends, before addresses are translated: that is
// where the reply comes from. The local address is not known yet. What may not be sent
// there opens no way back from it, and what may come in anyway needs none. The egress
// program judges and counts the packet.
static __always_inline int sending(struct bpf_sock_addr *ctx, struct attachment *attachment, __u32 *address, bool ipv4)
{
	struct bpf_sock *socket = ctx->sk;

	if (!attachment->slot || !socket)
		return PASS;
	__u32 slot = attachment->slot - 1;
	struct policy *policy = policy_at(attachment->policy);
	__u16 local = bpf_htons(socket->src_port), remote = ctx->user_port;
	if (!policy || judge(policy, UDP, INGRESS, local) == ALLOWED || judge(policy, UDP, EGRESS, remote) == BLOCKED)
		return PASS;

	struct flow flow = {.slot = slot, .ports = ports_of(local, remote), .local[2] = ipv4 ? bpf_htonl(0xffff) : 0};
	__builtin_memcpy(flow.remote, address, sizeof(flow.remote));
	struct fingerprint fingerprint = fingerprint_of(&flow, since_of(slot), ipv4);
	__u32 state = IN_STATES(bpf_ktime_get_ns()) | BEGAN_EGRESS;
	struct bucket *bucket = bucket_of(&fingerprint);
	if (!bucket)
		return PASS;
	__u32 i = find(bucket, &fingerprint);
	barrier_var(i);
	__u32 before = i < WAYS ? bucket->states[i] : 0;
	if (!is_live(before, state))
		begin_flow(bucket, &fingerprint, state, EGRESS, ALLOWED, NULL);
	else if (is_late(before, state))
		renew(bucket, &fingerprint, i, state);
	return PASS;
}

// Of an IPv6 socket, too, where it sends to an IPv4 address.
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol != IPPROTO_UDP)
		return PASS;
	__u32 address[4] = {0, 0, bpf_htonl(0xffff), ctx->user_ip4};

	return sending(ctx, bpf_get_local_storage(&storage_sendmsg4, 0), address, true);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol != IPPROTO_UDP)
		return PASS;
	__u32 address[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};

	return sending(ctx, bpf_get_local_storage(&storage_sendmsg6, 0), address, false);
}
