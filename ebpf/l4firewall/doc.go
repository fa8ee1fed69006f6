// SPDX-License-Identifier: Apache-2.0

// Package l4firewall decides in the kernel which TCP connections and which flows
// of UDP a pod may have, by direction and destination port, and counts them.
//
// # Programs
//
// One set of programs serves all pods of the node (l4firewall.bpf.c): cgroup_skb
// ingress and egress see every packet of a pod's sockets, as whole datagrams;
// cgroup/connect4 and connect6 deny TCP connections at once; sendmsg4 and sendmsg6
// remember where a pod on the host's network sends UDP before addresses are translated,
// so that the reply passes. They are attached to the pod's cgroup, and so hold for all
// its containers; the latter four only where the policy needs them. Each attachment has a
// storage of its own, {slot + 1, policy}, by which a program knows whose packet it
// sees: it looks nothing up to find that out.
//
// # Policies
//
// Compile turns configs into a Policy: for each protocol, direction and port one
// bit that says whether the enforcing configs allow it, and one for the auditing
// ones. Its cost for a packet does not depend on the number of rules. Policies
// stand in an array of maps, each once however many pods have it. A new policy
// gets an entry of its own, and then the pods' storages change to its index, each
// at once: at no time does a pod have part of a policy, or none. What no pod uses
// any more is removed a second later. To make an entry the kernel waits for all
// running programs, 6 to 16 ms, so one spare entry is kept ready: a pod that is born
// with new rules does not wait.
//
// # What passes
//
// Of TCP only a SYN without ACK is judged, so what is established lives on. A UDP
// packet passes as a reply where the other direction began its flow not longer
// than 120 s ago, as far as the table of flows remembers. ICMP, ICMPv6, other
// protocols and whatever goes over the loopback device pass. A packet whose ports
// cannot be read (a later fragment that a raw socket sent, a chain of more than 8
// extension headers) is dropped unless everything is allowed in its direction.
//
// # Counts
//
// Counters has packets (all that the programs saw) and connections by verdict. A
// SYN that is sent again, and a blocked flow that goes on, count once as long as
// their tables remember them; when the rules change meanwhile, they count under
// the new verdict, too. Loopback traffic counts as packets, not as connections.
//
// # Life
//
// Links and maps are pinned below Options.Dir and outlive the agent. Open gives
// the links to its own programs, which use the maps it finds. A map whose layout
// or size differs has another name: policies and settings are translated before
// the programs change, and counters are the sum over the maps of all builds
// (docs/decisions/0013-firewall-maps.md). The
// order of the steps makes every state that a killed agent can leave one that the
// next Open understands.
//
// # Limits
//
// AF_PACKET sockets bypass cgroup_skb. A socket that was made before its process
// joined the pod's cgroup is not filtered. A SYN to a port where nothing listens
// reaches no socket and so no program: the kernel refuses it, nothing counts it. The
// port that is judged is the one after address translation inside the pod's
// network namespace. Replies to multicast and broadcast are no replies here.
package l4firewall
