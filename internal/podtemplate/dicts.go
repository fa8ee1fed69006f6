// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

var dictFunctions = []function{
	{name: "dict", usage: "dict KEY VALUE...", doc: "A map of the keys and values.", impl: dict},
	{name: "get", usage: "get MAP KEY", doc: "The key's value, an empty string if it is absent.", impl: get, flat: true},
	{name: "hasKey", usage: "hasKey MAP KEY", doc: "Whether the map has the key.", impl: hasKey, flat: true},
	{name: "index", usage: "index VALUE KEY...", doc: "The element of a map (empty if absent) or a list (an error if out of range)."},
	{name: "keys", usage: "keys MAP", doc: "The keys, in a sorted list.", impl: keys},
	{name: "omit", usage: "omit MAP KEY...", doc: "A new map without the keys.", impl: omit},
	{name: "pick", usage: "pick MAP KEY...", doc: "A new map of those of the keys that are there.", impl: pick},
	{name: "values", usage: "values MAP", doc: "The values, in the order of the sorted keys.", impl: values},
}

// toDict returns a map's entries in a map that is new.
func toDict(m any) (map[string]any, error) {
	value, err := stringMap(m)
	if err != nil {
		return nil, err
	}
	all := make(map[string]any, value.Len())
	for entries := value.MapRange(); entries.Next(); {
		all[entries.Key().String()] = entries.Value().Interface()
	}
	return all, nil
}

func stringMap(m any) (reflect.Value, error) {
	value := reflect.ValueOf(m)
	if value.Kind() != reflect.Map || value.Type().Key().Kind() != reflect.String {
		return value, fmt.Errorf("a map is needed, not %s", kindOf(m))
	}
	return value, nil
}

func lookup(m any, key string) (value any, found bool, err error) {
	all, err := stringMap(m)
	if err != nil {
		return nil, false, err
	}
	entry := all.MapIndex(reflect.ValueOf(key).Convert(all.Type().Key()))
	if !entry.IsValid() {
		return nil, false, nil
	}
	return entry.Interface(), true, nil
}

func get(m any, key string) (any, error) {
	value, found, err := lookup(m, key)
	if !found {
		return "", err
	}
	return value, nil
}

func hasKey(m any, key string) (bool, error) {
	_, found, err := lookup(m, key)
	return found, err
}

func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, errors.New("dict takes a value after every key")
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		m[toString(pairs[i])] = pairs[i+1]
	}
	return m, nil
}

func keys(m any) ([]string, error) {
	all, err := toDict(m)
	return slices.Sorted(maps.Keys(all)), err
}

func values(m any) ([]any, error) {
	all, err := toDict(m)
	var sorted []any
	for _, key := range slices.Sorted(maps.Keys(all)) {
		sorted = append(sorted, all[key])
	}
	return sorted, err
}

func pick(m any, names ...string) (map[string]any, error) {
	picked := map[string]any{}
	for _, name := range names {
		value, found, err := lookup(m, name)
		if err != nil {
			return nil, err
		}
		if found {
			picked[name] = value
		}
	}
	return picked, nil
}

func omit(m any, names ...string) (map[string]any, error) {
	all, err := toDict(m)
	for _, name := range names {
		delete(all, name)
	}
	return all, err
}
