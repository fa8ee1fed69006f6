// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Every cluster has the same addresses: none of them exists outside of its own
// network namespaces.
var (
	// Those of the API server, on the bridge that joins the nodes.
	serverAddresses = []netip.Addr{netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd00:10:88::1")}
	// Those of the Service "kubernetes".
	serviceAddresses = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:10:96::1")}
)

const (
	serviceRange = "10.96.0.0/16,fd00:10:96::/112"
	podRange     = "10.244.0.0/16,fd00:10:244::/48"

	serverPort = 443
	bridgeName = "nodes"
	nodeLink   = "eth0"
	// firstNode is the last part of the first node's addresses.
	firstNode = 10
)

// nobody is the hardware address of no machine.
var nobody = net.HardwareAddr{2, 0, 0, 0, 0, 0xff}

// nodeAddresses are those of the node of an index, from 1: IPv4, IPv6.
func nodeAddresses(index int) []netip.Addr {
	last := byte(firstNode + index)
	four, six := serverAddresses[0].As4(), serverAddresses[1].As16()
	four[3], six[15] = last, last
	return []netip.Addr{netip.AddrFrom4(four), netip.AddrFrom16(six)}
}

// podSubnets are those of the pods on the node of an index, from 1: IPv4, IPv6.
func podSubnets(index int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(index), 0}), 24),
		netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%x::", index)), 64),
	}
}

// fabric is the network that joins the machines: a bridge in the control plane's
// namespace.
type fabric struct {
	ns     netns.NsHandle
	handle *netlink.Handle

	mu      sync.Mutex
	nodes   map[int]*netlink.Handle // by index
	virtual []int                   // indices of those that find their ways themselves
}

// newFabric makes the bridge, and gives the control plane its addresses.
func newFabric(m *machine) (*fabric, error) {
	ns, handle, err := networkOf(m)
	if err != nil {
		return nil, err
	}
	f := &fabric{ns: ns, handle: handle, nodes: map[int]*netlink.Handle{}}
	snooping := false // it would want a querier for IPv6's neighbour discovery
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &snooping}
	if err := handle.LinkAdd(bridge); err != nil {
		return nil, errors.Join(fmt.Errorf("adding a bridge: %w", err), f.close())
	}
	// Pods reach the Service "kubernetes" here also before kube-proxy has made its
	// rules.
	err = errors.Join(addAddresses(handle, "lo", serviceAddresses, 32, 128), addAddresses(handle, bridgeName, serverAddresses, 24, 64))
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// networkOf opens the network namespace of a machine.
func networkOf(m *machine) (netns.NsHandle, *netlink.Handle, error) {
	ns, err := netns.GetFromPid(m.pid)
	if err != nil {
		return ns, nil, fmt.Errorf("opening the network namespace of %s: %w", m.name, err)
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return ns, nil, errors.Join(fmt.Errorf("reaching into the network namespace of %s: %w", m.name, err), ns.Close())
	}
	return ns, handle, nil
}

// close lets go of the namespaces; they end with their processes.
func (f *fabric) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, handle := range f.nodes {
		handle.Close()
	}
	f.handle.Close()
	return f.ns.Close()
}

// plug joins a node's machine to the bridge, and routes the pods of all nodes.
func (f *fabric) plug(index int, m *machine) error {
	ns, handle, err := networkOf(m)
	if err != nil {
		return err
	}
	defer ns.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.nodes[index]; old != nil {
		old.Close() // of the machine that this one follows
	}
	f.nodes[index] = handle
	if err := f.cable(index, ns); err != nil {
		return err
	}
	if err := errors.Join(addAddresses(handle, "lo", nil, 0, 0), addAddresses(handle, nodeLink, nodeAddresses(index), 24, 64)); err != nil {
		return err
	}
	for _, address := range serverAddresses {
		if err := addRoute(handle, netip.PrefixFrom(unspecified(address), 0), address); err != nil {
			return err
		}
	}
	return f.routePods(index)
}

// cable makes the link between the bridge and a namespace.
func (f *fabric) cable(index int, ns netns.NsHandle) error {
	port := fmt.Sprintf("node%d", index)
	if old, err := f.handle.LinkByName(port); err == nil {
		// That of a machine that has just ended: the kernel takes it away a moment later.
		if err := f.handle.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("removing the old link of node %d: %w", index, err)
		}
	}
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: port})
	veth.PeerName, veth.PeerNamespace = nodeLink, netlink.NsFd(int(ns))
	// A machine that is started again has the same network card: its neighbours know it.
	veth.PeerHardwareAddr = net.HardwareAddr{0x02, 0, 0, 0x58, 0, byte(index)}
	if err := f.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding the link of node %d: %w", index, err)
	}
	return f.join(index, port)
}

// join joins a link to the bridge.
func (f *fabric) join(index int, port string) error {
	end, err := f.handle.LinkByName(port)
	if err != nil {
		return err
	}
	bridge, err := f.handle.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	if err := f.handle.LinkSetMaster(end, bridge); err != nil {
		return fmt.Errorf("joining node %d to the bridge: %w", index, err)
	}
	return f.handle.LinkSetUp(end)
}

// tap makes the link of a virtual node, which is there as long as somebody has the file
// open, and routes the node's pods.
func (f *fabric) tap(index int) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	port := fmt.Sprintf("node%d", index)
	var file *os.File
	err := within(f.ns, func() (err error) {
		file, err = openTap(port)
		return err
	})
	if err != nil {
		return nil, err
	}
	errs := []error{f.join(index, port), routeTo(f.handle, index)}
	for _, handle := range f.nodes {
		errs = append(errs, routeTo(handle, index))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if !slices.Contains(f.virtual, index) {
		f.virtual = append(f.virtual, index)
	}
	return file, nil
}

// openTap makes a link in this thread's namespace, whose other end is the file.
func openTap(name string) (*os.File, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", device, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the link %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), device), nil
}

// routePods tells all others where a node's pods are, and it where theirs are.
func (f *fabric) routePods(index int) error {
	errs := []error{routeTo(f.handle, index)}
	for other, handle := range f.nodes {
		if other != index {
			errs = append(errs, routeTo(handle, index), routeTo(f.nodes[index], other))
		}
	}
	for _, other := range f.virtual {
		errs = append(errs, routeTo(f.nodes[index], other))
	}
	return errors.Join(errs...)
}

// routeTo routes the pods of a node by the node's addresses.
func routeTo(from *netlink.Handle, index int) error {
	for i, subnet := range podSubnets(index) {
		if err := addRoute(from, subnet, nodeAddresses(index)[i]); err != nil {
			return err
		}
	}
	return nil
}

func addRoute(h *netlink.Handle, to netip.Prefix, by netip.Addr) error {
	target := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	if err := h.RouteReplace(&netlink.Route{Dst: target, Gw: by.AsSlice()}); err != nil {
		return fmt.Errorf("routing %s by %s: %w", to, by, err)
	}
	return nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// addAddresses gives a link its addresses and brings it up.
func addAddresses(h *netlink.Handle, name string, addresses []netip.Addr, bits4, bits6 int) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking for the link %s: %w", name, err)
	}
	for _, a := range addresses {
		bits := bits4
		if a.Is6() {
			bits = bits6
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
		if a.Is6() {
			// Detection of duplicate addresses would take seconds.
			address.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, address); err != nil {
			return fmt.Errorf("adding address %s to %s: %w", a, name, err)
		}
	}
	return h.LinkSetUp(link)
}

// partition keeps a node and the API server apart, or brings them together: what the
// node sends there goes to nobody, and is lost without a word, as behind a broken
// switch. Pods of other nodes stay within reach.
func (f *fabric) partition(index int, apart bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	handle := f.nodes[index]
	if handle == nil {
		return fmt.Errorf("node %d is virtual: it cannot be kept apart", index)
	}
	link, err := handle.LinkByName(nodeLink)
	if err != nil {
		return err
	}
	for _, address := range serverAddresses {
		neighbour := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: address.AsSlice(), HardwareAddr: nobody,
		}
		if apart {
			err = errors.Join(err, handle.NeighSet(neighbour))
		} else {
			if failed := handle.NeighDel(neighbour); !errors.Is(failed, unix.ENOENT) {
				err = errors.Join(err, failed)
			}
		}
	}
	return err
}

// dial connects to an address from the control plane's place in the network.
func (f *fabric) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return dialIn(ctx, f.ns, network, address)
}

// dialIn connects from a network namespace.
func dialIn(ctx context.Context, ns netns.NsHandle, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := within(ns, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// within runs f on a thread of the namespace. A connection to one address is made on
// the thread that asks for it.
func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("entering a network namespace: %w", err)
			return
		}
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

// listen listens on an address of the control plane's.
func (f *fabric) listen(address string) (net.Listener, error) {
	var listener net.Listener
	err := within(f.ns, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	return listener, err
}

// gateway is a way between the cluster's network and this machine's own: it passes
// connections on.
type gateway struct {
	listener net.Listener
	to       func(context.Context) (net.Conn, error)
	ctx      context.Context
	cancel   context.CancelFunc
	wait     sync.WaitGroup
}

// openGateway passes what comes to a listener, which is its own from here on.
func openGateway(listener net.Listener, to func(context.Context) (net.Conn, error)) *gateway {
	g := &gateway{listener: listener, to: to}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.wait.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			g.wait.Go(func() { g.pass(client) })
		}
	})
	return g
}

// pass copies in both directions until one of them ends.
func (g *gateway) pass(client net.Conn) {
	defer client.Close()
	server, err := g.to(g.ctx)
	if err != nil {
		return // the client sees its connection closed, as from a server that is down
	}
	defer server.Close()
	stop := context.AfterFunc(g.ctx, func() { client.Close(); server.Close() })
	defer stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			_, err := io.Copy(way[0], way[1])
			if half, ok := way[0].(interface{ CloseWrite() error }); ok && (err == nil || errors.Is(err, syscall.EPIPE)) {
				_ = half.CloseWrite()
				return
			}
			way[0].Close()
			way[1].Close()
		})
	}
	both.Wait()
}

// close ends all connections. It may be called again.
func (g *gateway) close() error {
	g.cancel()
	err := g.listener.Close()
	g.wait.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
