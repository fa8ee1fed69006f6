// SPDX-License-Identifier: Apache-2.0

// Package wire reads Kubernetes' protobuf encoding sparingly: of an object only the
// fields that are asked for, of a list one item at a time.
//
// The encoding: four bytes of magic, then a message runtime.Unknown with the type's
// name and the object as bytes. Source: k8s.io/apimachinery/pkg/runtime/generated.proto.
package wire

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// ContentType is the media type of the encoding.
const ContentType = "application/vnd.kubernetes.protobuf"

const magic = "k8s\x00"

// Fields of runtime.Unknown, and of the runtime.TypeMeta in it.
const (
	unknownTypeMeta protowire.Number = 1
	unknownRaw      protowire.Number = 2
	typeMetaKind    protowire.Number = 2
)

var errNotProtobuf = errors.New("no Kubernetes protobuf: the magic bytes are missing")
