// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "cni0"
	// podLink is the pod's end of its link.
	podLink = "eth0"
)

// The pods' network of every node: each is in namespaces of its own.
var (
	subnet4 = netip.MustParsePrefix("10.244.0.0/16")
	subnet6 = netip.MustParsePrefix("fd00:10:244::/64")
)

// network is a node's network namespace with its bridge.
type network struct {
	ns     netns.NsHandle
	handle *netlink.Handle

	once      sync.Once
	failed    error
	bridge    netlink.Link
	addresses []netip.Addr

	mu   sync.Mutex
	next [2]netip.Addr
	used uint64
}

// podNetwork is a network namespace with one link to the node's bridge.
type podNetwork struct {
	node      *network
	ns        netns.NsHandle
	link      string
	addresses []netip.Addr
}

func newNetwork() (*network, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	n := &network{ns: ns, next: [2]netip.Addr{subnet4.Addr().Next(), subnet6.Addr().Next()}}
	if n.handle, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(err, n.close())
	}
	if err := loopbackUp(n.handle); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// gateway returns the node's addresses on the bridge, which it makes where there
// is none yet.
func (n *network) gateway() ([]netip.Addr, error) {
	n.once.Do(func() { n.failed = n.build() })
	return n.addresses, n.failed
}

// build makes the bridge.
func (n *network) build() (err error) {
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = bridgeName
	if err := n.handle.LinkAdd(bridge); err != nil {
		return fmt.Errorf("adding a bridge: %w", err)
	}
	if n.bridge, err = n.handle.LinkByName(bridgeName); err != nil {
		return err
	}
	if err := n.handle.LinkSetUp(n.bridge); err != nil {
		return err
	}
	_, n.addresses = n.take()
	return addAddresses(n.handle, n.bridge, n.addresses)
}

// take numbers a member of the network and gives it an IPv4 and an IPv6 address.
func (n *network) take() (number uint64, addresses []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addresses = []netip.Addr{n.next[0], n.next[1]}
	n.next[0], n.next[1] = n.next[0].Next(), n.next[1].Next()
	n.used++
	return n.used, addresses
}

// join makes a network namespace and joins it to the bridge.
func (n *network) join() (*podNetwork, error) {
	if _, err := n.gateway(); err != nil {
		return nil, err
	}
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	number, addresses := n.take()
	p := &podNetwork{node: n, ns: ns, link: fmt.Sprintf("veth%d", number), addresses: addresses}
	if err := p.build(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *podNetwork) build() error {
	h, err := netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := loopbackUp(h); err != nil {
		return err
	}
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: podLink})
	veth.PeerName, veth.PeerNamespace = p.link, netlink.NsFd(int(p.node.ns))
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding a veth pair: %w", err)
	}
	if err := p.plug(); err != nil {
		return err
	}
	link, err := h.LinkByName(podLink)
	if err != nil {
		return err
	}
	if err := addAddresses(h, link, p.addresses); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, gateway := range p.node.addresses {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("adding a route by %s: %w", gateway, err)
		}
	}
	return nil
}

// plug joins the node's end of the link to the bridge.
func (p *podNetwork) plug() error {
	end, err := p.node.handle.LinkByName(p.link)
	if err != nil {
		return err
	}
	if err := p.node.handle.LinkSetMaster(end, p.node.bridge); err != nil {
		return fmt.Errorf("joining %s to the bridge: %w", p.link, err)
	}
	return p.node.handle.LinkSetUp(end)
}

// close lets go of the namespace, which ends with its last process. The kernel
// removes it and its link a moment later; to wait for that would cost 30 ms a pod.
func (p *podNetwork) close() error { return p.ns.Close() }

func (n *network) close() error {
	if n.handle != nil {
		n.handle.Close()
	}
	return n.ns.Close()
}

func loopbackUp(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// addAddresses gives a link its addresses, to be used at once: IPv6 duplicate
// address detection would take seconds.
func addAddresses(h *netlink.Handle, link netlink.Link, addresses []netip.Addr) error {
	for _, a := range addresses {
		bits := subnet4.Bits()
		if a.Is6() {
			bits = subnet6.Bits()
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
		if a.Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, address); err != nil {
			return fmt.Errorf("adding address %s: %w", a, err)
		}
	}
	return nil
}

// newNamespace makes a network namespace. It lives as long as its handle and the
// processes inside.
func newNamespace() (netns.NsHandle, error) {
	ns := netns.None()
	err := onOwnThread(func() (err error) {
		ns, err = netns.New()
		return err
	})
	return ns, err
}

// within runs f on a thread of the namespace; processes that f starts are born in
// it.
func within(ns netns.NsHandle, f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}

// onOwnThread runs f, which may change the network namespace of its thread.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = f()
		// Where there is no way back the thread stays locked, and ends with the
		// goroutine.
		if back := netns.Set(home); back != nil {
			done <- errors.Join(err, back)
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
