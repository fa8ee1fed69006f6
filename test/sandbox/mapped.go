// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mappedSuffix ends the names of networks in which an IPv6 socket talks to an
// IPv4-mapped address. Go itself would connect an IPv4 socket.
const mappedSuffix = "4in6"

func dialMapped(network, remote string, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(remote)
	if err != nil {
		return nil, err
	}
	kind := unix.SOCK_STREAM
	if strings.HasPrefix(network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening an IPv6 socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), network)
	defer file.Close() // FileConn makes a descriptor of its own
	if err := connectMapped(fd, to, timeout); err != nil {
		return nil, fmt.Errorf("connecting an IPv6 socket to %s: %w", to, err)
	}
	return net.FileConn(file)
}

func connectMapped(fd int, to netip.AddrPort, timeout time.Duration) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		return err
	}
	err := unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	if !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for deadline := time.Now().Add(timeout); ; {
		n, err := unix.Poll(events, int(max(0, time.Until(deadline).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return os.ErrDeadlineExceeded
		}
		break
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}
