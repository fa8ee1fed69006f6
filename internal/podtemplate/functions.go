// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"maps"
	"reflect"
	"slices"
)

// Function documents one function that templates may call.
type Function struct {
	Name  string
	Group string // a heading, such as "Strings"
	Usage string // the call, its arguments in capitals
	Doc   string // one line
}

// Functions returns every function that templates may call, sorted by name.
func Functions() []Function {
	var all []Function
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		f := byName[name]
		all = append(all, Function{Name: name, Group: f.group, Usage: f.usage, Doc: f.doc})
	}
	return all
}

// function is one entry of the allow-list. An implementation may take time and
// memory in proportion to its arguments; if it can build more than that, it
// refuses by itself before it allocates.
type function struct {
	name, usage, doc string
	impl             any // nil for text/template's own, where that takes constant time
	// flat functions neither read what their arguments hold nor build values.
	flat bool
	// searching functions look for their first argument in their last, which
	// may compare the whole of the first at every place of the last.
	searching bool

	group   string
	wrapped reflect.Type
}

var byName = index(map[string][]function{
	"Strings":     stringFunctions,
	"Numbers":     numberFunctions,
	"Lists":       listFunctions,
	"Maps":        dictFunctions,
	"Logic":       logicFunctions,
	"Encoding":    encodingFunctions,
	"Conversions": conversionFunctions,
})

func index(groups map[string][]function) map[string]*function {
	byName := map[string]*function{}
	for group, functions := range groups {
		for _, f := range functions {
			f.group = group
			if f.impl != nil {
				f.wrapped = withError(reflect.TypeOf(f.impl))
			}
			byName[f.name] = &f
		}
	}
	return byName
}

var errorType = reflect.TypeFor[error]()

// withError is the signature of fn with an error as second result.
func withError(fn reflect.Type) reflect.Type {
	var in []reflect.Type
	for i := range fn.NumIn() {
		in = append(in, fn.In(i))
	}
	return reflect.FuncOf(in, []reflect.Type{fn.Out(0), errorType}, fn.IsVariadic())
}

// bind returns the function for one run: each call pays from its budget.
func (f *function) bind(b *budget) any {
	impl := reflect.ValueOf(f.impl)
	invoke := impl.Call
	if f.wrapped.IsVariadic() {
		invoke = impl.CallSlice
	}
	noError, noResult := reflect.Zero(errorType), reflect.Zero(f.wrapped.Out(0))
	return reflect.MakeFunc(f.wrapped, func(args []reflect.Value) []reflect.Value {
		if err := f.pay(b, args); err != nil {
			return []reflect.Value{noResult, reflect.ValueOf(&err).Elem()}
		}
		out := invoke(args)
		if len(out) == 2 && !out[1].IsNil() {
			return out
		}
		if err := f.payResult(b, out[0]); err != nil {
			return []reflect.Value{noResult, reflect.ValueOf(&err).Elem()}
		}
		return []reflect.Value{out[0], noError}
	}).Interface()
}

func (f *function) pay(b *budget, args []reflect.Value) error {
	if f.flat {
		return b.spend(callCost)
	}
	var m meter
	for _, arg := range args {
		if err := m.add(arg, 0); err != nil {
			return err
		}
	}
	cost := callCost + m.size
	if f.searching {
		cost += args[0].Len() * args[len(args)-1].Len() / 64
	}
	return b.spend(cost)
}

func (f *function) payResult(b *budget, result reflect.Value) error {
	if f.flat {
		return nil
	}
	var m meter
	if err := m.add(result, 0); err != nil {
		return err
	}
	return b.spend(m.size)
}
