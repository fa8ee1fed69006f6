// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"fmt"
	"reflect"
	"time"
)

const (
	maxText    = 16 << 10 // characters, as the CRD's schema counts them
	maxNesting = 100
	maxSteps   = 100_000
	maxWork    = 8 << 20 // bytes
	maxValue   = 1 << 20 // bytes: no more than a ConfigMap holds
	maxDepth   = 32
	maxTime    = time.Second

	callCost = 128 // bytes that text/template itself allocates for a call
)

// budget is what one execution may still use.
type budget struct {
	steps, work int
	deadline    time.Time
}

// together is how many times one template's limits all templates of a config
// may use up for one pod.
const together = 4

// Allowance is what the templates of one config may use together, for one pod.
type Allowance struct{ steps, work int }

// NewAllowance returns a full one.
func NewAllowance() *Allowance {
	return &Allowance{steps: together * maxSteps, work: together * maxWork}
}

// budget takes one template's share out of the allowance.
func (a *Allowance) budget(limit time.Duration) budget {
	return budget{steps: min(maxSteps, a.steps), work: min(maxWork, a.work), deadline: time.Now().Add(limit)}
}

// settle takes off what was used of a budget that was taken out.
func (a *Allowance) settle(before, after budget) {
	a.steps -= before.steps - max(after.steps, 0)
	a.work -= before.work - max(after.work, 0)
}

// step pays for n nodes that are about to run.
func (b *budget) step(n int) error {
	if b.steps -= n; b.steps < 0 {
		return tooMuch("its loops take more than %d steps, or those of the config's templates together more than %d; loop over less", maxSteps, together*maxSteps)
	}
	return b.onTime()
}

// spend pays for n bytes read or written.
func (b *budget) spend(n int) error {
	if b.work -= n; b.work < 0 {
		return tooMuch("its functions handle more than %d MiB, or those of the config's templates together more than %d; build less text", maxWork>>20, together*maxWork>>20)
	}
	return b.onTime()
}

func (b *budget) onTime() error {
	if time.Now().After(b.deadline) {
		return &stop{KindTimeout, "it ran out of time; make it simpler"}
	}
	return nil
}

// meter adds up the bytes of values, counting what is shared as often as it is
// reachable: printing it costs that much.
type meter struct{ size int }

const (
	scalarSize = 16
	listSize   = 24
	dictSize   = 256 // a Go map with one entry takes about that
	entrySize  = 32
)

// add stops early, at maxValue, so measuring never costs more than that.
func (m *meter) add(v reflect.Value, depth int) error {
	switch kind := v.Kind(); {
	case kind == reflect.Interface:
		return m.add(v.Elem(), depth)
	case kind == reflect.String:
		m.size += scalarSize + v.Len()
	case kind <= reflect.Complex128:
		m.size += scalarSize
	case depth == maxDepth:
		return tooMuch("a value is nested more than %d deep; nest less", maxDepth)
	case kind == reflect.Slice:
		return m.addList(v, depth+1)
	case kind == reflect.Map:
		return m.addDict(v, depth+1)
	default:
		return fmt.Errorf("values of type %s are not offered to templates", v.Type())
	}
	return m.check()
}

func (m *meter) check() error {
	if m.size > maxValue {
		return tooMuch("a value is larger than %d MiB; build less text in it", maxValue>>20)
	}
	return nil
}

func (m *meter) addList(v reflect.Value, depth int) error {
	m.size += listSize
	if kind := v.Type().Elem().Kind(); kind <= reflect.Complex128 {
		m.size += scalarSize * v.Len()
		return m.check()
	}
	for i := range v.Len() {
		if err := m.add(v.Index(i), depth); err != nil {
			return err
		}
	}
	return m.check()
}

func (m *meter) addDict(v reflect.Value, depth int) error {
	m.size += dictSize + entrySize*v.Len()
	// Ranging by reflection allocates for every key.
	if plain, ok := v.Interface().(map[string]string); ok {
		for key, value := range plain {
			m.size += len(key) + len(value)
		}
		return m.check()
	}
	for entries := v.MapRange(); entries.Next(); {
		if err := m.add(entries.Key(), depth); err != nil {
			return err
		}
		if err := m.add(entries.Value(), depth); err != nil {
			return err
		}
	}
	return m.check()
}
