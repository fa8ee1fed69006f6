// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Sparing returns serializers that decode of some kinds only some fields, where the
// encoding is protobuf. The kinds have to be unique among what is read.
func Sparing(serializers runtime.NegotiatedSerializer, fields map[string]*Fields) runtime.NegotiatedSerializer {
	return &sparing{serializers, fields}
}

type sparing struct {
	runtime.NegotiatedSerializer
	fields map[string]*Fields
}

// SupportedMediaTypes is part of runtime.NegotiatedSerializer.
func (s *sparing) SupportedMediaTypes() []runtime.SerializerInfo {
	all := slices.Clone(s.NegotiatedSerializer.SupportedMediaTypes())
	for i := range all {
		if all[i].MediaType == ContentType {
			all[i].Serializer = &sparingSerializer{Serializer: all[i].Serializer, fields: s.fields}
		}
	}
	return all
}

type sparingSerializer struct {
	runtime.Serializer
	fields  map[string]*Fields
	buffers sync.Pool // of *[]byte: decoding copies what it keeps
}

// Decode is part of runtime.Decoder.
func (s *sparingSerializer) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	fields := s.fields[kindOf(data)]
	if fields == nil {
		return s.Serializer.Decode(data, defaults, into)
	}
	buffer, _ := s.buffers.Get().(*[]byte)
	if buffer == nil {
		buffer = new([]byte)
	}
	defer s.buffers.Put(buffer)
	var err error
	envelope := Fields{of: []*Fields{unknownTypeMeta: whole, unknownRaw: fields}}
	if *buffer, err = envelope.Prune(append((*buffer)[:0], magic...), data[len(magic):]); err != nil {
		return nil, nil, err
	}
	return s.Serializer.Decode(*buffer, defaults, into)
}

// kindOf returns the kind that an encoded object names, or an empty string.
func kindOf(data []byte) string {
	envelope, isProtobuf := bytes.CutPrefix(data, []byte(magic))
	if !isProtobuf {
		return ""
	}
	return string(find(find(envelope, unknownTypeMeta), typeMetaKind))
}

// find returns a field's bytes, or nil if the message has no such field.
func find(message []byte, wanted protowire.Number) []byte {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return nil
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return nil
		}
		if number == wanted && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message[tag:])
			return value
		}
		message = message[tag+size:]
	}
	return nil
}
