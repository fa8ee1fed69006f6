// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Fields are some fields of a message, and of the messages in them.
type Fields struct {
	// of has an entry for each field number: nil where the field is not wanted,
	// whole where all of it is.
	of []*Fields
}

var whole = &Fields{}

// FieldsOf returns the fields of an API type at the paths: JSON names joined by dots,
// through lists, too. A path to a message means all of it. It panics where the type has
// no such field, so it is for package variables.
func FieldsOf[T any](paths ...string) *Fields {
	f := &Fields{}
	for _, path := range paths {
		f.add(reflect.TypeFor[T](), path)
	}
	return f
}

func (f *Fields) add(t reflect.Type, path string) {
	name, rest, deeper := strings.Cut(path, ".")
	number, inner := fieldOf(t, name)
	if missing := int(number) + 1 - len(f.of); missing > 0 {
		f.of = append(f.of, make([]*Fields, missing)...)
	}
	switch {
	case !deeper:
		f.of[number] = whole
	case f.of[number] == nil:
		f.of[number] = &Fields{}
		fallthrough
	case f.of[number] != whole:
		f.of[number].add(inner, rest)
	}
}

// fieldOf finds a field by its JSON name. The API types tell the numbers in tags such
// as `protobuf:"bytes,1,opt,name=metadata"`.
func fieldOf(t reflect.Type, name string) (protowire.Number, reflect.Type) {
	for field := range t.Fields() {
		if json, _, _ := strings.Cut(field.Tag.Get("json"), ","); json != name {
			continue
		}
		parts := strings.Split(field.Tag.Get("protobuf"), ",")
		if len(parts) < 2 {
			break
		}
		number, err := strconv.ParseInt(parts[1], 10, 32)
		if err != nil {
			break
		}
		inner := field.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		return protowire.Number(number), inner
	}
	panic(fmt.Sprintf("%v has no field %q in protobuf", t, name))
}

func (f *Fields) wanted(number protowire.Number) *Fields {
	if int(number) < len(f.of) {
		return f.of[number]
	}
	return nil
}

// Prune appends to dst what the message has of the fields. It is an error if the
// message is malformed.
func (f *Fields) Prune(dst, message []byte) ([]byte, error) {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return dst, protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return dst, protowire.ParseError(size)
		}
		switch inner := f.wanted(number); {
		case inner == nil:
		case inner == whole || kind != protowire.BytesType:
			dst = append(dst, message[:tag+size]...)
		default:
			var err error
			value, _ := protowire.ConsumeBytes(message[tag:])
			if dst, err = inner.pruneInner(append(dst, message[:tag]...), value); err != nil {
				return dst, err
			}
		}
		message = message[tag+size:]
	}
	return dst, nil
}

// pruneInner prunes a message within another one, which its length precedes.
func (f *Fields) pruneInner(dst, message []byte) ([]byte, error) {
	start := len(dst)
	dst, err := f.Prune(dst, message)
	if err != nil {
		return dst, err
	}
	var length [10]byte
	return slices.Insert(dst, start, protowire.AppendVarint(length[:0], uint64(len(dst)-start))...), nil
}
