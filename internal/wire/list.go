// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// Fields of every list type.
	listMeta  protowire.Number = 1
	listItems protowire.Number = 2

	// maxItem is more than any object takes: etcd takes requests of 1.5 MiB, and API
	// servers of 3 MiB. A malformed length must not make us ask for gigabytes.
	maxItem = 64 << 20
	// readAhead is how much is read from the connection at a time.
	readAhead = 64 << 10
)

// ReadList reads an encoded list as it arrives. Item is called with each item's bytes,
// which it must not keep. An answer that ends early is io.ErrUnexpectedEOF.
func ReadList(from io.Reader, item func(encoded []byte) error) (metav1.ListMeta, error) {
	l := &listReader{from: bufio.NewReaderSize(from, readAhead), item: item}
	var head [len(magic)]byte
	if _, err := io.ReadFull(l.from, head[:]); err != nil {
		return l.meta, fmt.Errorf("reading a list: %w", unexpected(err))
	}
	if string(head[:]) != magic {
		return l.meta, fmt.Errorf("reading a list: %w", errNotProtobuf)
	}
	if err := l.readEnvelope(); err != nil {
		return l.meta, fmt.Errorf("reading a list: %w", err)
	}
	return l.meta, nil
}

type listReader struct {
	from   *bufio.Reader
	at     uint64 // how many bytes were read
	item   func([]byte) error
	meta   metav1.ListMeta
	buffer []byte
}

// readEnvelope reads the runtime.Unknown, which ends with the answer.
func (l *listReader) readEnvelope() error {
	found := false
	for {
		if _, err := l.from.Peek(1); errors.Is(err, io.EOF) {
			if !found {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		number, size, err := l.next()
		if err != nil {
			return err
		}
		if number == unknownRaw {
			found = true
			err = l.readItems(size)
		} else {
			_, err = l.read(size)
		}
		if err != nil {
			return err
		}
	}
}

// readItems reads the list itself, of so many bytes.
func (l *listReader) readItems(size uint64) error {
	for end := l.at + size; l.at < end; {
		number, length, err := l.next()
		if err != nil {
			return err
		}
		if l.at > end || length > end-l.at {
			return errors.New("an item is longer than the list")
		}
		encoded, err := l.read(length)
		if err != nil {
			return err
		}
		switch number {
		case listMeta:
			err = l.meta.Unmarshal(encoded)
		case listItems:
			err = l.item(encoded)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// next reads a field's tag and the length of its bytes: no list has fields of another
// kind.
func (l *listReader) next() (number protowire.Number, length uint64, err error) {
	tag, err := binary.ReadUvarint(l)
	if err != nil {
		return 0, 0, unexpected(err)
	}
	number, kind := protowire.DecodeTag(tag)
	if kind != protowire.BytesType {
		return 0, 0, fmt.Errorf("field %d is of kind %d in place of bytes", number, kind)
	}
	length, err = binary.ReadUvarint(l)
	return number, length, unexpected(err)
}

// read returns the next bytes, until it is called again.
func (l *listReader) read(length uint64) ([]byte, error) {
	if length > maxItem {
		return nil, fmt.Errorf("an item of %d bytes: no object is that large", length)
	}
	if uint64(cap(l.buffer)) < length {
		l.buffer = make([]byte, length)
	}
	l.buffer = l.buffer[:length]
	n, err := io.ReadFull(l.from, l.buffer)
	l.at += uint64(n)
	return l.buffer, unexpected(err)
}

// ReadByte is part of io.ByteReader.
func (l *listReader) ReadByte() (byte, error) {
	b, err := l.from.ReadByte()
	if err == nil {
		l.at++
	}
	return b, err
}

// unexpected turns an end into one that is too early.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
