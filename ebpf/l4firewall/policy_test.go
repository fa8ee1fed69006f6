// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// naive is the model of a policy: spec and nothing else, port by port.
func naive(configs []Rules, probes []uint16, direction Direction, protocol Protocol, port uint16) Verdict {
	verdict := Allowed
	for _, c := range configs {
		judges := c.Ingress
		if direction == Egress {
			judges = c.Egress
		}
		if !judges {
			continue
		}
		blocks := c.Block
		if slices.Contains(c.Allowed, port) {
			blocks = false
		}
		if protocol == TCP && direction == Ingress && slices.Contains(probes, port) {
			blocks = false
		}
		if slices.Contains(c.Blocked, port) {
			blocks = true
		}
		if blocks && !c.Audit {
			return Blocked
		}
		if blocks {
			verdict = WouldBlock
		}
	}
	return verdict
}

func TestVerdicts(t *testing.T) {
	in := func(r Rules) Rules { r.Ingress = true; return r }
	both := func(r Rules) Rules { r.Ingress, r.Egress = true, true; return r }
	type question struct {
		direction Direction
		protocol  Protocol
		port      uint16
	}
	for name, tc := range map[string]struct {
		configs []Rules
		probes  []uint16
		want    map[question]Verdict
	}{
		"nothing asked": {want: map[question]Verdict{{Ingress, TCP, 80}: Allowed, {Egress, UDP, 53}: Allowed}},
		"block list": {
			configs: []Rules{in(Rules{Blocked: []uint16{22}})},
			want: map[question]Verdict{
				{Ingress, TCP, 22}: Blocked, {Ingress, UDP, 22}: Blocked, {Ingress, TCP, 23}: Allowed,
				{Egress, TCP, 22}: Allowed,
			},
		},
		"default block": {
			configs: []Rules{both(Rules{Block: true, Allowed: []uint16{80, 65535}})},
			want: map[question]Verdict{
				{Ingress, TCP, 80}: Allowed, {Egress, UDP, 65535}: Allowed, {Ingress, TCP, 81}: Blocked,
				{Egress, UDP, 0}: Blocked,
			},
		},
		"blocked beats allowed": {
			configs: []Rules{in(Rules{Block: true, Allowed: []uint16{80}, Blocked: []uint16{80}})},
			want:    map[question]Verdict{{Ingress, TCP, 80}: Blocked},
		},
		"probes": {
			configs: []Rules{both(Rules{Block: true, Blocked: []uint16{8081}})},
			probes:  []uint16{8080, 8081},
			want: map[question]Verdict{
				{Ingress, TCP, 8080}: Allowed, {Ingress, UDP, 8080}: Blocked, {Egress, TCP, 8080}: Blocked,
				{Ingress, TCP, 8081}: Blocked,
			},
		},
		"audit never blocks, enforcing beats audit": {
			configs: []Rules{in(Rules{Block: true, Audit: true, Allowed: []uint16{80}}), in(Rules{Blocked: []uint16{22, 80}})},
			want: map[question]Verdict{
				{Ingress, TCP, 80}: Blocked, {Ingress, TCP, 22}: Blocked, {Ingress, TCP, 443}: WouldBlock,
				{Egress, TCP, 443}: Allowed,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := Compile(tc.configs, tc.probes)
			for q, want := range tc.want {
				if got := p.Verdict(q.direction, q.protocol, q.port); got != want {
					t.Errorf("%v %v %d: %v, want %v", q.direction, q.protocol, q.port, got, want)
				}
			}
		})
	}
}

// rulesFrom makes configs and probe ports out of a fuzzer's bytes.
func rulesFrom(data []byte) (configs []Rules, probes []uint16) {
	next := func() uint16 {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return uint16(b)
	}
	port := func() uint16 {
		// Few ports, so that lists meet, and both ends of the range.
		return [...]uint16{0, 1, 62, 63, 64, 65, 80, 443, 4095, 4096, 32767, 32768, 65472, 65534, math.MaxUint16, next()<<8 | next()}[next()%16]
	}
	ports := func() (list []uint16) {
		for range next() % 6 {
			list = append(list, port())
		}
		return list
	}
	for range next() % 5 {
		flags := next()
		configs = append(configs, Rules{
			Block: flags&1 != 0, Audit: flags&2 != 0, Ingress: flags&4 != 0, Egress: flags&8 != 0,
			Allowed: ports(), Blocked: ports(),
		})
	}
	return configs, ports()
}

func checkCompiler(t *testing.T, data []byte) {
	t.Helper()
	configs, probes := rulesFrom(data)
	p := Compile(configs, probes)
	all := map[Direction]bool{Ingress: true, Egress: true}
	for _, direction := range []Direction{Ingress, Egress} {
		for _, protocol := range []Protocol{TCP, UDP} {
			for port := range math.MaxUint16 + 1 {
				got, want := p.Verdict(direction, protocol, uint16(port)), naive(configs, probes, direction, protocol, uint16(port))
				if got != want {
					t.Fatalf("%+v, probes %v: %v %v %d: %v, want %v", configs, probes, direction, protocol, port, got, want)
				}
				all[direction] = all[direction] && want != Blocked
			}
		}
		if p.allows(direction) != all[direction] {
			t.Fatalf("%+v: allows(%v) is %v", configs, direction, p.allows(direction))
		}
	}
	slices.Reverse(configs)
	if again := Compile(configs, probes); again.key != p.key {
		t.Fatalf("%+v: another key in another order", configs)
	}
	if again := policyOf(p.words(rulesWords + 8)); again.ports != p.ports || again.key != p.key {
		t.Fatalf("%+v: another policy after it was written and read", configs)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte{1, 5, 1, 6, 1, 8, 1, 7})
	f.Add([]byte{2, 15, 2, 1, 2, 1, 3, 13, 0, 1, 6})
	f.Fuzz(checkCompiler)
}

func TestCompilerAgainstModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		data := make([]byte, 60)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		checkCompiler(t, data)
	}
}

func TestKeysTellPoliciesApart(t *testing.T) {
	keys := map[policyKey]string{}
	for name, p := range map[string]*Policy{
		"none":         Compile(nil, nil),
		"blocked":      Compile([]Rules{{Blocked: []uint16{80}, Ingress: true}}, nil),
		"audited":      Compile([]Rules{{Blocked: []uint16{80}, Ingress: true, Audit: true}}, nil),
		"egress":       Compile([]Rules{{Blocked: []uint16{80}, Egress: true}}, nil),
		"another port": Compile([]Rules{{Blocked: []uint16{81}, Ingress: true}}, nil),
		"probe":        Compile([]Rules{{Block: true, Ingress: true}}, []uint16{80}),
		"no probe":     Compile([]Rules{{Block: true, Ingress: true}}, nil),
	} {
		if other, taken := keys[p.key]; taken {
			t.Errorf("%s and %s have one key", name, other)
		}
		keys[p.key] = name
	}
}

func BenchmarkCompile(b *testing.B) {
	rules := []Rules{{Block: true, Allowed: []uint16{80, 443}, Ingress: true, Egress: true}}
	for b.Loop() {
		Compile(rules, nil)
	}
}
