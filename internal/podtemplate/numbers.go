// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
)

var numberFunctions = []function{
	{name: "add", usage: "add A B...", doc: "The sum of whole numbers.", impl: add},
	{name: "add1", usage: "add1 A", doc: "A + 1.", impl: func(a any) (int64, error) { return add(a, 1) }},
	{name: "ceil", usage: "ceil A", doc: "The nearest whole number that is not smaller.", impl: ceil},
	{name: "div", usage: "div A B", doc: "A / B, whole; B is not 0.", impl: div},
	{name: "floor", usage: "floor A", doc: "The nearest whole number that is not greater.", impl: floor},
	{name: "max", usage: "max A B...", doc: "The greatest of whole numbers.", impl: maximum},
	{name: "min", usage: "min A B...", doc: "The smallest of whole numbers.", impl: minimum},
	{name: "mod", usage: "mod A B", doc: "The remainder of A / B; B is not 0.", impl: mod},
	{name: "mul", usage: "mul A B...", doc: "The product of whole numbers.", impl: mul},
	{name: "round", usage: "round A PLACES", doc: "A, rounded to a number of decimal places (0 to 15).", impl: round},
	{name: "sub", usage: "sub A B", doc: "A - B.", impl: sub},
}

var errNoNumber = errors.New("the value is no number; use default for values that may be absent")

// toInt64 takes numbers and decimal texts. Fractions are cut off.
func toInt64(v any) (int64, error) {
	value := reflect.ValueOf(v)
	switch {
	case value.CanInt():
		return value.Int(), nil
	case value.CanUint() && value.Uint() <= math.MaxInt64:
		return int64(value.Uint()), nil
	// Out of these bounds the result depends on the processor.
	case value.CanFloat() && math.Abs(value.Float()) < math.MaxInt64:
		return int64(value.Float()), nil
	case value.Kind() == reflect.String:
		if n, err := strconv.ParseInt(value.String(), 10, 64); err == nil {
			return n, nil
		}
		return 0, fmt.Errorf("%q is no whole number; use default for values that may be absent", headBytes(value.String(), 40))
	}
	return 0, errNoNumber
}

func toFloat64(v any) (float64, error) {
	value := reflect.ValueOf(v)
	switch {
	case value.CanFloat():
		return value.Float(), nil
	case value.Kind() == reflect.String:
		n, err := strconv.ParseFloat(value.String(), 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no number; use default for values that may be absent", headBytes(value.String(), 40))
		}
		return n, nil
	}
	n, err := toInt64(v)
	return float64(n), err
}

// natural is a count or a width that the caller multiplies with a length: larger
// ones are cut so that this cannot overflow, and are refused by their size.
func natural(name string, v any) (int, error) {
	n, err := toInt64(v)
	if err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, fmt.Errorf("%s takes no negative number", name)
	}
	return int(min(n, maxValue+1)), nil
}

// fold combines whole numbers from left to right.
func fold(first any, others []any, combine func(a, b int64) int64) (int64, error) {
	result, err := toInt64(first)
	for i := 0; i < len(others) && err == nil; i++ {
		var n int64
		n, err = toInt64(others[i])
		result = combine(result, n)
	}
	return result, err
}

func add(a any, others ...any) (int64, error) {
	return fold(a, others, func(a, b int64) int64 { return a + b })
}

func sub(a, b any) (int64, error) {
	return fold(a, []any{b}, func(a, b int64) int64 { return a - b })
}

func mul(a any, others ...any) (int64, error) {
	return fold(a, others, func(a, b int64) int64 { return a * b })
}

func maximum(a any, others ...any) (int64, error) {
	return fold(a, others, func(a, b int64) int64 { return max(a, b) })
}

func minimum(a any, others ...any) (int64, error) {
	return fold(a, others, func(a, b int64) int64 { return min(a, b) })
}

var errDivision = errors.New("division by zero; test the divisor with if")

func div(a, b any) (int64, error) { return divide(a, b, func(a, b int64) int64 { return a / b }) }
func mod(a, b any) (int64, error) { return divide(a, b, func(a, b int64) int64 { return a % b }) }

func divide(a, b any, by func(a, b int64) int64) (int64, error) {
	if n, err := toInt64(b); err != nil {
		return 0, err
	} else if n == 0 {
		return 0, errDivision
	}
	return fold(a, []any{b}, by)
}

func ceil(a any) (float64, error) {
	n, err := toFloat64(a)
	return math.Ceil(n), err
}

func floor(a any) (float64, error) {
	n, err := toFloat64(a)
	return math.Floor(n), err
}

func round(a, places any) (float64, error) {
	n, err := toFloat64(a)
	if err != nil {
		return 0, err
	}
	digits, err := toInt64(places)
	if err != nil || digits < 0 || digits > 15 {
		return 0, errors.New("round takes 0 to 15 places")
	}
	if math.Abs(n) > 1<<52 { // it has no fraction, and the product might overflow
		return n, nil
	}
	power := math.Pow10(int(digits))
	return math.Round(n*power) / power, nil
}
