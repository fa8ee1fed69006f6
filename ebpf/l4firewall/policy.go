// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
)

// Direction is the way of a packet, or of a connection's first, seen from the pod.
type Direction uint8

// The directions, numbered as in the program.
const (
	Ingress Direction = iota
	Egress
)

// String returns the direction as configs name it.
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

// Protocol is one that has ports.
type Protocol uint8

// The protocols, numbered as in the program.
const (
	TCP Protocol = iota
	UDP
)

// String returns the protocol's usual name.
func (p Protocol) String() string { return [...]string{"TCP", "UDP"}[p] }

// Verdict is what is done with a connection, or with a new flow of UDP.
type Verdict uint8

// The verdicts, numbered as in the program. WouldBlock passes: only a config in
// audit mode blocks it.
const (
	Allowed Verdict = iota
	Blocked
	WouldBlock
)

// String returns the verdict as the metric's label stat_type names it.
func (v Verdict) String() string { return [...]string{"allowed", "blocked", "would_block"}[v] }

// Rules are those of one config, about the destination ports of both protocols.
type Rules struct {
	// Allowed and Blocked name ports; blocked beats allowed.
	Allowed, Blocked []uint16
	// Block is the default action: what holds for all other ports.
	Block bool
	// Audit counts what would be blocked, and blocks nothing.
	Audit bool
	// Ingress and Egress are the directions that the config judges.
	Ingress, Egress bool
}

// portSet has a bit for each port.
type portSet [(math.MaxUint16 + 1) / 64]uint64

func (s *portSet) has(port uint16) bool { return s[port/64]>>(port%64)&1 != 0 }
func (s *portSet) add(port uint16)      { s[port/64] |= 1 << (port % 64) }
func (s *portSet) remove(port uint16)   { s[port/64] &^= 1 << (port % 64) }

func (s *portSet) fill() {
	for i := range s {
		s[i] = math.MaxUint64
	}
}

func (s *portSet) full() bool {
	for _, word := range s {
		if word != math.MaxUint64 {
			return false
		}
	}
	return true
}

func (s *portSet) intersect(other *portSet) {
	for i := range s {
		s[i] &= other[i]
	}
}

// modes are the two ways to hold rules.
const (
	enforced = iota
	audited
	modes
)

// policyKey is a digest of a policy's port sets.
type policyKey [16]byte

func (k policyKey) String() string { return hex.EncodeToString(k[:]) }

// Policy is what configs together decide for a pod: for each port whether the
// enforcing configs allow it, and whether the auditing ones do. It never changes;
// equal rules make equal policies, which the kernel holds once.
type Policy struct {
	ports [2][2][modes]portSet // by Protocol and Direction
	key   policyKey
}

// Compile composes configs: traffic passes where every enforcing one lets it pass.
// The ports probes, those of the pod's declared TCP probes, are allowed on
// ingress unless a config's blocked list names them. Without configs all is allowed.
func Compile(configs []Rules, probes []uint16) *Policy {
	p := &Policy{}
	p.each(func(_ Protocol, _ Direction, sets *[modes]portSet) {
		sets[enforced].fill()
		sets[audited].fill()
	})
	for _, config := range configs {
		mode := enforced
		if config.Audit {
			mode = audited
		}
		p.each(func(protocol Protocol, direction Direction, sets *[modes]portSet) {
			if direction == Ingress && !config.Ingress || direction == Egress && !config.Egress {
				return
			}
			var always []uint16
			if protocol == TCP && direction == Ingress {
				always = probes
			}
			sets[mode].intersect(config.allows(always))
		})
	}
	p.key = p.digest()
	return p
}

// allows returns the ports that the config lets pass where it judges, always
// being allowed in addition.
func (r *Rules) allows(always []uint16) *portSet {
	set := &portSet{}
	if r.Block {
		for _, port := range r.Allowed {
			set.add(port)
		}
		for _, port := range always {
			set.add(port)
		}
	} else {
		set.fill()
	}
	for _, port := range r.Blocked {
		set.remove(port)
	}
	return set
}

// Verdict returns what the program decides about a new connection, or UDP flow,
// to the destination port.
func (p *Policy) Verdict(direction Direction, protocol Protocol, port uint16) Verdict {
	sets := &p.ports[protocol][direction]
	switch {
	case !sets[enforced].has(port):
		return Blocked
	case !sets[audited].has(port):
		return WouldBlock
	}
	return Allowed
}

func (p *Policy) each(do func(Protocol, Direction, *[modes]portSet)) {
	for protocol := range p.ports {
		for direction := range p.ports[protocol] {
			do(Protocol(protocol), Direction(direction), &p.ports[protocol][direction])
		}
	}
}

// blocksConnections tells whether connect(2) can be denied.
func (p *Policy) blocksConnections() bool { return !p.ports[TCP][Egress][enforced].full() }

// judgesReplies tells whether a UDP packet that comes in can be blocked, or counted as
// if it were.
func (p *Policy) judgesReplies() bool {
	sets := &p.ports[UDP][Ingress]
	return !sets[enforced].full() || !sets[audited].full()
}

// allows tells whether nothing is blocked in the direction.
func (p *Policy) allows(direction Direction) bool {
	return p.ports[TCP][direction][enforced].full() && p.ports[UDP][direction][enforced].full()
}

// rulesWords is the size of the C struct policy's rules, in words of 64 bits:
// protocol, direction, port/64, mode.
const rulesWords = 2 * 2 * len(portSet{}) * modes

// Flags of the C struct policy.
const (
	allIngressAllowed = 1 << iota
	allEgressAllowed
)

// words returns the C struct policy, in a layout of size words of 64 bits.
func (p *Policy) words(size int) []uint64 {
	words := make([]uint64, 0, size)
	p.each(func(_ Protocol, _ Direction, sets *[modes]portSet) {
		for i := range sets[enforced] {
			words = append(words, sets[enforced][i], sets[audited][i])
		}
	})
	var flags uint64
	if p.allows(Ingress) {
		flags |= allIngressAllowed
	}
	if p.allows(Egress) {
		flags |= allEgressAllowed
	}
	words = append(words, flags)
	return words[:size]
}

// policyOf is the reverse of words, for any layout.
func policyOf(words []uint64) *Policy {
	p := &Policy{}
	p.each(func(_ Protocol, _ Direction, sets *[modes]portSet) {
		for i := range sets[enforced] {
			sets[enforced][i], sets[audited][i] = words[0], words[1]
			words = words[2:]
		}
	})
	p.key = p.digest()
	return p
}

func (p *Policy) digest() policyKey {
	content := make([]byte, 0, rulesWords*8)
	for _, word := range p.words(rulesWords + 1)[:rulesWords] {
		content = binary.LittleEndian.AppendUint64(content, word)
	}
	digest := sha256.Sum256(content)
	return policyKey(digest[:])
}
