// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

var listFunctions = []function{
	{name: "append", usage: "append LIST VALUE", doc: "A new list with the value at its end.", impl: appendTo},
	{name: "compact", usage: "compact LIST", doc: "A new list without empty values.", impl: compact},
	{name: "concat", usage: "concat LIST...", doc: "One new list of all elements.", impl: concat},
	{name: "first", usage: "first LIST", doc: "The first element, nothing if there is none.", impl: first, flat: true},
	{name: "has", usage: "has VALUE LIST", doc: "Whether the list holds the value.", impl: has},
	{name: "initial", usage: "initial LIST", doc: "A new list of all but the last element.", impl: initial},
	{name: "join", usage: "join SEPARATOR LIST", doc: "The elements as one text.", impl: join},
	{name: "last", usage: "last LIST", doc: "The last element, nothing if there is none.", impl: last, flat: true},
	{name: "len", usage: "len VALUE", doc: "The length of a string (in bytes), a list or a map."},
	{name: "list", usage: "list VALUE...", doc: "A list of the values.", impl: list},
	{name: "prepend", usage: "prepend LIST VALUE", doc: "A new list with the value at its start.", impl: prepend},
	{name: "rest", usage: "rest LIST", doc: "A new list of all but the first element.", impl: rest},
	{name: "reverse", usage: "reverse LIST", doc: "A new list in the opposite order.", impl: reverse},
	{name: "slice", usage: "slice VALUE START END", doc: "A part of a string or a list; START and END may be left out.", impl: slice, flat: true},
	{name: "sortAlpha", usage: "sortAlpha LIST", doc: "The elements as texts, in a new sorted list.", impl: sortAlpha},
	{name: "split", usage: "split SEPARATOR STRING", doc: "The parts as a map: _0, _1 and so on.", impl: split, searching: true},
	{name: "splitList", usage: "splitList SEPARATOR STRING", doc: "The parts as a list.", impl: splitList, searching: true},
	{name: "until", usage: "until COUNT", doc: "The list 0, 1 ... COUNT-1.", impl: until},
}

// elements returns the elements of a list in a slice that is new.
func elements(v any) ([]any, error) {
	value := reflect.ValueOf(v)
	if value.Kind() != reflect.Slice {
		return nil, fmt.Errorf("a list is needed, not %s", kindOf(v))
	}
	result := make([]any, value.Len())
	for i := range result {
		result[i] = value.Index(i).Interface()
	}
	return result, nil
}

func list(values ...any) []any { return values }

func appendTo(l, v any) ([]any, error) {
	all, err := elements(l)
	return append(all, v), err
}

func prepend(l, v any) ([]any, error) {
	all, err := elements(l)
	return slices.Insert(all, 0, v), err
}

func concat(lists ...any) ([]any, error) {
	var all []any
	for _, l := range lists {
		some, err := elements(l)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

func compact(l any) ([]any, error) {
	all, err := elements(l)
	return slices.DeleteFunc(all, empty), err
}

func reverse(l any) ([]any, error) {
	all, err := elements(l)
	slices.Reverse(all)
	return all, err
}

func rest(l any) ([]any, error) {
	all, err := elements(l)
	return all[min(1, len(all)):], err
}

func initial(l any) ([]any, error) {
	all, err := elements(l)
	return all[:max(0, len(all)-1)], err
}

func first(l any) (any, error) { return at(l, func(int) int { return 0 }) }
func last(l any) (any, error)  { return at(l, func(size int) int { return size - 1 }) }

func at(l any, place func(size int) int) (any, error) {
	value := reflect.ValueOf(l)
	if value.Kind() != reflect.Slice {
		return nil, fmt.Errorf("a list is needed, not %s", kindOf(l))
	}
	if value.Len() == 0 {
		return nil, nil
	}
	return value.Index(place(value.Len())).Interface(), nil
}

func has(needle, l any) (bool, error) {
	all, err := elements(l)
	return slices.ContainsFunc(all, func(v any) bool { return reflect.DeepEqual(v, needle) }), err
}

func join(separator string, l any) (string, error) {
	texts, err := toStrings(l)
	if err != nil {
		return "", err
	}
	size := len(separator) * max(0, len(texts)-1)
	for _, text := range texts {
		size += len(text)
	}
	if err := fits(size); err != nil {
		return "", err
	}
	return strings.Join(texts, separator), nil
}

func sortAlpha(l any) ([]string, error) {
	texts, err := toStrings(l)
	slices.Sort(texts)
	return texts, err
}

// slice is text/template's, except that a list is never extended over its end.
func slice(v any, places ...any) (any, error) {
	value := reflect.ValueOf(v)
	if value.Kind() != reflect.Slice && value.Kind() != reflect.String {
		return nil, fmt.Errorf("a string or a list is needed, not %s", kindOf(v))
	}
	if len(places) > 2 {
		return nil, errors.New("slice takes a start and an end")
	}
	bounds := [2]int64{0, int64(value.Len())}
	for i, place := range places {
		n, err := toInt64(place)
		if err != nil {
			return nil, err
		}
		bounds[i] = n
	}
	if bounds[0] < 0 || bounds[0] > bounds[1] || bounds[1] > int64(value.Len()) {
		return nil, fmt.Errorf("slice bounds %d and %d are out of range for length %d; test it with len", bounds[0], bounds[1], value.Len())
	}
	return value.Slice(int(bounds[0]), int(bounds[1])).Interface(), nil
}

func splitList(separator, s string) ([]string, error) {
	if err := fits(len(s) + scalarSize*(1+strings.Count(s, separator))); err != nil {
		return nil, err
	}
	return strings.Split(s, separator), nil
}

func split(separator, s string) (map[string]string, error) {
	if err := fits(len(s) + 2*entrySize*(1+strings.Count(s, separator))); err != nil {
		return nil, err
	}
	parts := map[string]string{}
	for i, part := range strings.Split(s, separator) {
		parts["_"+strconv.Itoa(i)] = part
	}
	return parts, nil
}

func until(count any) ([]int, error) {
	n, err := natural("until", count)
	if err != nil {
		return nil, err
	}
	if err := fits(n * scalarSize); err != nil {
		return nil, err
	}
	numbers := make([]int, n)
	for i := range numbers {
		numbers[i] = i
	}
	return numbers, nil
}
