// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// service is what kube-proxy makes of two Services in the network of a node: addresses
// and ports are others on the wire, and so are the sender's.
const service = `table inet services {
	chain output {
		type nat hook output priority -100
		ip daddr 10.244.99.99 udp dport 53 dnat ip to %[1]s:5353
		ip6 daddr fd00:10:244::9999 udp dport 53 dnat ip6 to [%[2]s]:5353
	}
	chain postrouting {
		type nat hook postrouting priority 100
		udp dport 5353 masquerade to :40000-41000
	}
}
`

// The reply to a pod on the host's network passes also where a Service was asked, whose
// addresses are translated in that network.
func TestTranslatedReplies(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skipf("nothing translates addresses here: %v", err)
	}
	n := sandbox.New(t)
	f := openFirewall(t, Options{Dir: n.BPFFS()})
	host, other := n.Pod(sandbox.PodOptions{HostNetwork: true}), n.Pod(sandbox.PodOptions{})
	inside, far := host.Peer(), other.Peer()
	translate(t, n, other)
	attach := func(r Rules) {
		must(t, f.Attach(Target{UID: host.UID(), Slot: 9, Cgroup: host.Cgroup(), HostNetwork: true, Policy: Compile([]Rules{r}, nil)}))
	}
	for family, address := range []netip.Addr{netip.MustParseAddr("10.244.99.99"), netip.MustParseAddr("fd00:10:244::9999")} {
		_, err := far.Listen(network(UDP, family), at(other.Addresses()[family], 5353))
		must(t, err)
		for name, c := range map[string]struct {
			rules  Rules
			passes bool
		}{
			"ingress is blocked": {Rules{Block: true, Ingress: true}, true},
			"both ports allowed": {both(Rules{Block: true, Allowed: []uint16{53, 5353}}), true},
			// Nothing may be sent to the port that the socket knows.
			"translated port allowed": {both(Rules{Block: true, Allowed: []uint16{5353}}), false},
		} {
			attach(c.rules)
			before := read(t, f, 9)
			limit := long
			if !c.passes {
				limit = short
			}
			err := inside.Dial(network(UDP, family), at(address, 53), limit)
			if (err == nil) != c.passes {
				t.Errorf("%s, %s: %v, want %t", network(UDP, family), name, err, c.passes)
			}
			want := one(Egress, Allowed)
			if !c.passes {
				want[Ingress][Blocked] = 1
			}
			if got := read(t, f, 9).minus(before).Connections; got != want {
				t.Errorf("%s, %s: counted %v, want %v", network(UDP, family), name, got, want)
			}
		}
	}
}

// translate gives the node's network Services of a pod.
func translate(t *testing.T, n *sandbox.Node, to *sandbox.Pod) {
	t.Helper()
	ns, err := netns.GetFromPid(n.Peer().PID())
	must(t, err)
	defer ns.Close()
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(service, to.IPv4(), to.IPv6()))
	must(t, within(ns, func() error {
		if out, err := nft.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}))
}
