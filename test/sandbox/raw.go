// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// sendRaw sends a packet that has its IP header.
func sendRaw(packet []byte) error {
	var domain int
	var to unix.Sockaddr
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		domain, to = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])}
	case len(packet) >= 40 && packet[0]>>4 == 6:
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])}
	default:
		return fmt.Errorf("%d bytes without an IP header", len(packet))
	}
	// IPPROTO_RAW: the header is the sender's.
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("opening a raw socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, packet, 0, to)
}

// ICMP message types.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	echoHeader               = 8
)

// echo sends an ICMP or ICMPv6 echo request and waits for its reply.
func echo(r request) error {
	address, err := netip.ParseAddr(r.Remote)
	if err != nil {
		return err
	}
	network, ask, answer := "ip4:1", byte(echoRequest4), byte(echoReply4)
	if address.Is6() {
		network, ask, answer = "ip6:58", echoRequest6, echoReply6
	}
	conn, err := net.Dial(network, r.Remote)
	if err != nil {
		return err
	}
	defer conn.Close()
	socket, ok := conn.(*net.IPConn)
	if !ok {
		return fmt.Errorf("a raw socket is a %T", conn)
	}
	if err := conn.SetDeadline(time.Now().Add(r.Timeout)); err != nil {
		return err
	}
	message := make([]byte, echoHeader+r.Size)
	message[0] = ask
	id := rand.Uint32()
	binary.BigEndian.PutUint32(message[4:], id)
	if address.Is4() { // the kernel sums up ICMPv6 itself
		binary.BigEndian.PutUint16(message[2:], checksum(message))
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	return awaitEcho(socket, answer, id, r.Size)
}

func awaitEcho(socket *net.IPConn, answer byte, id uint32, size int) error {
	buffer := make([]byte, maxDatagram)
	for {
		n, _, err := socket.ReadFrom(buffer) // Read would keep the IPv4 header
		if err != nil {
			return err
		}
		if n < echoHeader || buffer[0] != answer || binary.BigEndian.Uint32(buffer[4:]) != id {
			continue // a raw socket sees all ICMP of its namespace
		}
		if n != echoHeader+size {
			return errors.New("other bytes came back than were sent")
		}
		return nil
	}
}

// checksum is the Internet checksum (RFC 1071).
func checksum(data []byte) uint16 {
	var sum uint32
	for i, b := range data {
		sum += uint32(b) << (8 * (1 - uint(i)%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
