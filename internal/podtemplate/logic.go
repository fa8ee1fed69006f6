// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"text/template"
)

var logicFunctions = []function{
	{name: "all", usage: "all VALUE...", doc: "Whether no value is empty.", impl: all, flat: true},
	{name: "and", usage: "and VALUE...", doc: "The first empty value, or the last one; stops there."},
	{name: "any", usage: "any VALUE...", doc: "Whether some value is not empty.", impl: some, flat: true},
	{name: "coalesce", usage: "coalesce VALUE...", doc: "The first value that is not empty.", impl: coalesce, flat: true},
	{name: "default", usage: "default DEFAULT VALUE", doc: "The value, or the default if it is empty.", impl: defaultTo, flat: true},
	{name: "empty", usage: "empty VALUE", doc: "Whether the value is \"\", 0, false, nothing, or has no element.", impl: empty, flat: true},
	{name: "eq", usage: "eq A B...", doc: "Whether A equals one of the others.", impl: eq},
	{name: "fail", usage: "fail MESSAGE", doc: "Stops with the message.", impl: fail},
	{name: "ge", usage: "ge A B", doc: "Whether A >= B.", impl: ge},
	{name: "gt", usage: "gt A B", doc: "Whether A > B.", impl: gt},
	{name: "le", usage: "le A B", doc: "Whether A <= B.", impl: le},
	{name: "lt", usage: "lt A B", doc: "Whether A < B.", impl: lt},
	{name: "ne", usage: "ne A B", doc: "Whether A and B differ.", impl: ne},
	{name: "not", usage: "not VALUE", doc: "Whether the value is empty."},
	{name: "or", usage: "or VALUE...", doc: "The first value that is not empty, or the last one; stops there."},
	{name: "required", usage: "required MESSAGE VALUE", doc: "The value; stops with the message if it is empty.", impl: required, flat: true},
	{name: "ternary", usage: "ternary YES NO CONDITION", doc: "YES if the condition is true, otherwise NO.", impl: ternary, flat: true},
}

func empty(v any) bool {
	truth, _ := template.IsTrue(v)
	return !truth
}

func all(values ...any) bool {
	for _, v := range values {
		if empty(v) {
			return false
		}
	}
	return true
}

func coalesce(values ...any) any {
	for _, v := range values {
		if !empty(v) {
			return v
		}
	}
	return nil
}

func some(values ...any) bool { return !empty(coalesce(values...)) }

// defaultTo has its value last, and optional, as sprig has.
func defaultTo(other any, value ...any) any {
	if len(value) == 0 || empty(value[0]) {
		return other
	}
	return value[0]
}

func ternary(yes, no any, condition bool) any {
	if condition {
		return yes
	}
	return no
}

func fail(message string) (string, error) { return "", errors.New(message) }

func required(message string, v any) (any, error) {
	if empty(v) {
		return nil, errors.New(message)
	}
	return v, nil
}

// The comparisons do what text/template's do (a test compares them); those
// cannot be made to pay.

func eq(a any, others ...any) (bool, error) {
	if len(others) == 0 {
		return false, errors.New("eq takes two values or more")
	}
	for _, b := range others {
		if equal, err := equals(a, b); equal || err != nil {
			return equal, err
		}
	}
	return false, nil
}

func equals(a, b any) (bool, error) {
	if isNil(a) || isNil(b) {
		return isNil(a) && isNil(b), nil
	}
	x, y, err := comparables(a, b)
	return err == nil && x == y, err
}

func isNil(a any) bool {
	v := reflect.ValueOf(a)
	return !v.IsValid() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.IsNil()
}

// comparables makes two values of one sort the same type: int64 (uint64 where
// that is too small), float64, complex128, string or bool.
func comparables(a, b any) (x, y any, err error) {
	x, y = widest(reflect.ValueOf(a)), widest(reflect.ValueOf(b))
	if x == nil || sortOf(x) != sortOf(y) {
		return nil, nil, fmt.Errorf("cannot compare %s with %s; convert one with toString or int", kindOf(a), kindOf(b))
	}
	return x, y, nil
}

func widest(v reflect.Value) any {
	switch {
	case v.CanInt():
		return v.Int()
	case v.CanUint() && v.Uint() <= math.MaxInt64:
		return int64(v.Uint())
	case v.CanUint():
		return v.Uint()
	case v.CanFloat():
		return v.Float()
	case v.CanComplex():
		return v.Complex()
	case v.Kind() == reflect.String:
		return v.String()
	case v.Kind() == reflect.Bool:
		return v.Bool()
	}
	return nil
}

func sortOf(v any) reflect.Kind {
	kind := reflect.ValueOf(v).Kind()
	if kind == reflect.Uint64 {
		return reflect.Int64
	}
	return kind
}

func ne(a, b any) (bool, error) {
	equal, err := eq(a, b)
	return !equal && err == nil, err
}

func lt(a, b any) (bool, error) {
	x, y, err := comparables(a, b)
	if err != nil {
		return false, err
	}
	switch x := x.(type) {
	case int64:
		y, small := y.(int64)
		return !small || x < y, nil
	case uint64:
		y, large := y.(uint64)
		return large && x < y, nil
	case float64:
		return x < y.(float64), nil
	case string:
		return x < y.(string), nil
	}
	return false, fmt.Errorf("a value of kind %s has no order; use eq", kindOf(a))
}

func le(a, b any) (bool, error) {
	if smaller, err := lt(a, b); smaller || err != nil {
		return smaller, err
	}
	return eq(a, b)
}

func gt(a, b any) (bool, error) {
	smaller, err := le(a, b)
	return !smaller && err == nil, err
}

func ge(a, b any) (bool, error) {
	smaller, err := lt(a, b)
	return !smaller && err == nil, err
}
