// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Extension is an IPv6 extension header that UDPPacket can put in.
type Extension byte

// The extension headers, by their protocol numbers.
const (
	HopByHop           Extension = unix.IPPROTO_HOPOPTS
	DestinationOptions Extension = unix.IPPROTO_DSTOPTS
)

const (
	headerLength4, headerLength6 = 20, 40
	udpHeader                    = 8
	// extensionLength: each is as short as one can be, and holds only padding.
	extensionLength = 8
	hopLimit        = 64
)

// UDPPacket is an IP packet with a UDP datagram and correct checksums. IPv6
// packets get the extension headers in the order given; IPv4 knows none.
func UDPPacket(from, to netip.AddrPort, payload []byte, extensions ...Extension) []byte {
	datagram := udp(from, to, payload)
	if to.Addr().Is4() {
		return append(Header4(from.Addr(), to.Addr(), unix.IPPROTO_UDP, 0, len(datagram)), datagram...)
	}
	next := byte(unix.IPPROTO_UDP)
	if len(extensions) > 0 {
		next = byte(extensions[0])
	}
	packet := Header6(from.Addr(), to.Addr(), next, len(extensions)*extensionLength+len(datagram))
	for i := range extensions {
		next = unix.IPPROTO_UDP
		if i+1 < len(extensions) {
			next = byte(extensions[i+1])
		}
		packet = append(packet, next, 0, 1, 4, 0, 0, 0, 0) // PadN
	}
	return append(packet, datagram...)
}

// FragmentPacket is a non-first fragment, at an offset in bytes (a multiple of
// 8), of a UDP datagram between two addresses.
func FragmentPacket(from, to netip.Addr, offset uint16, payload []byte) []byte {
	if to.Is4() {
		return append(Header4(from, to, unix.IPPROTO_UDP, offset/8, len(payload)), payload...)
	}
	packet := Header6(from, to, unix.IPPROTO_FRAGMENT, 8+len(payload))
	packet = append(packet, unix.IPPROTO_UDP, 0)
	packet = binary.BigEndian.AppendUint16(packet, offset)
	packet = append(packet, 0, 0, 0, 1) // identification
	return append(packet, payload...)
}

// Header4 is an IPv4 header. fragment is its field of flags and offset (in units
// of 8 bytes), length that of what follows.
func Header4(from, to netip.Addr, protocol byte, fragment uint16, length int) []byte {
	h := make([]byte, headerLength4)
	h[0] = 4<<4 | headerLength4/4
	binary.BigEndian.PutUint16(h[2:], uint16(headerLength4+length))
	h[5] = 1 // identification
	binary.BigEndian.PutUint16(h[6:], fragment)
	h[8], h[9] = hopLimit, protocol
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

// Header6 is an IPv6 header. next is the protocol number of what follows, length
// its length.
func Header6(from, to netip.Addr, next byte, length int) []byte {
	h := make([]byte, headerLength6)
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(length))
	h[6], h[7] = next, hopLimit
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return h
}

func udp(from, to netip.AddrPort, payload []byte) []byte {
	length := udpHeader + len(payload)
	d := make([]byte, udpHeader, length)
	binary.BigEndian.PutUint16(d[0:], from.Port())
	binary.BigEndian.PutUint16(d[2:], to.Port())
	binary.BigEndian.PutUint16(d[4:], uint16(length))
	d = append(d, payload...)
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_UDP, d[4], d[5])
	sum := checksum(append(pseudo, d...))
	if sum == 0 {
		sum = 0xffff // 0 would mean none
	}
	binary.BigEndian.PutUint16(d[6:], sum)
	return d
}
