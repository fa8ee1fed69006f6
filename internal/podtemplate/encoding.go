// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"reflect"
	"strings"
)

var encodingFunctions = []function{
	{name: "adler32sum", usage: "adler32sum STRING", doc: "The Adler-32 checksum, a decimal number.", impl: adler32sum},
	{name: "b32dec", usage: "b32dec STRING", doc: "Decodes base32.", impl: b32dec},
	{name: "b32enc", usage: "b32enc STRING", doc: "Encodes as base32.", impl: b32enc},
	{name: "b64dec", usage: "b64dec STRING", doc: "Decodes base64.", impl: b64dec},
	{name: "b64enc", usage: "b64enc STRING", doc: "Encodes as base64.", impl: b64enc},
	{name: "fromJson", usage: "fromJson STRING", doc: "The value that a JSON text (256 KiB at most) means.", impl: fromJSON},
	{name: "sha256sum", usage: "sha256sum STRING", doc: "The SHA-256 hash, in hexadecimal.", impl: sha256sum},
	{name: "sha512sum", usage: "sha512sum STRING", doc: "The SHA-512 hash, in hexadecimal.", impl: sha512sum},
	{name: "toJson", usage: "toJson VALUE", doc: "The value as JSON, with <, > and & escaped.", impl: toJSON},
	{name: "toPrettyJson", usage: "toPrettyJson VALUE", doc: "As toJson, indented.", impl: toPrettyJSON},
	{name: "toRawJson", usage: "toRawJson VALUE", doc: "The value as JSON.", impl: toRawJSON},
}

var conversionFunctions = []function{
	{name: "atoi", usage: "atoi STRING", doc: "The whole number that a text means.", impl: func(s string) (int, error) { return toInt(s) }},
	{name: "float64", usage: "float64 VALUE", doc: "The value as a number with a fraction.", impl: toFloat64},
	{name: "int", usage: "int VALUE", doc: "The value as a whole number; fractions are cut off.", impl: toInt},
	{name: "int64", usage: "int64 VALUE", doc: "As int.", impl: toInt64},
	{name: "kindIs", usage: "kindIs KIND VALUE", doc: "Whether the value is of that kind.", impl: func(kind string, v any) bool { return kindOf(v) == kind }, flat: true},
	{name: "kindOf", usage: "kindOf VALUE", doc: "The value's kind: string, int, int64, float64, bool, slice, map or invalid.", impl: kindOf, flat: true},
	{name: "toString", usage: "toString VALUE", doc: "The value as text.", impl: toString},
	{name: "toStrings", usage: "toStrings LIST", doc: "The elements as texts; absent ones are left out.", impl: toStrings},
}

func toInt(v any) (int, error) {
	n, err := toInt64(v)
	return int(n), err
}

func kindOf(v any) string { return reflect.ValueOf(v).Kind().String() }

func toString(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return fmt.Sprint(v)
}

func toStrings(l any) ([]string, error) {
	all, err := elements(l)
	if err != nil {
		return nil, err
	}
	texts := make([]string, 0, len(all))
	for _, v := range all {
		if v != nil {
			texts = append(texts, toString(v))
		}
	}
	return texts, nil
}

func b64enc(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
func b32enc(s string) string { return base32.StdEncoding.EncodeToString([]byte(s)) }

func b64dec(s string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(s)
	return string(data), err
}

func b32dec(s string) (string, error) {
	data, err := base32.StdEncoding.DecodeString(s)
	return string(data), err
}

func sha256sum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func sha512sum(s string) string {
	sum := sha512.Sum512([]byte(s))
	return hex.EncodeToString(sum[:])
}

func adler32sum(s string) string { return fmt.Sprint(adler32.Checksum([]byte(s))) }

func toJSON(v any) (string, error) {
	data, err := json.Marshal(v)
	return string(data), err
}

func toPrettyJSON(v any) (string, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	return string(data), err
}

func toRawJSON(v any) (string, error) {
	var data bytes.Buffer
	encoder := json.NewEncoder(&data)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return strings.TrimSuffix(data.String(), "\n"), err
}

// maxJSON is lower than maxValue: seven bytes of JSON can take 300 of memory.
const maxJSON = 256 << 10

func fromJSON(s string) (any, error) {
	if len(s) > maxJSON {
		return nil, tooMuch("fromJson takes at most %d KiB; pass less", maxJSON>>10)
	}
	decoder := json.NewDecoder(strings.NewReader(s))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil {
		return nil, fmt.Errorf("reading JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading JSON: there is text after the value; pass one value")
	}
	return plainNumbers(v)
}

// plainNumbers keeps whole numbers whole: as float64, 1000000 prints as 1e+06.
func plainNumbers(v any) (_ any, err error) {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, nil
		}
		n, err := v.Float64()
		if err != nil {
			return nil, errors.New("reading JSON: a number is too large; write it as a string")
		}
		return n, nil
	case []any:
		for i := 0; i < len(v) && err == nil; i++ {
			v[i], err = plainNumbers(v[i])
		}
	case map[string]any:
		for key := range v {
			if v[key], err = plainNumbers(v[key]); err != nil {
				break
			}
		}
	}
	return v, err
}
