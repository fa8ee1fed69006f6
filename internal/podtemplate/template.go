// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"sync"
	"text/template"
	"time"
	"unicode/utf8"
)

// Template is one compiled template. It is safe for concurrent use.
type Template struct {
	key     string
	base    *template.Template
	used    []*function
	charged bool // it has functions or loops, so runs need a budget of their own
	timeout time.Duration
	pool    sync.Pool
}

// Compile parses the template of one data key and refuses what is not offered.
// Its errors are of type [*Error] and KindParse or, for a text over the limit,
// KindLimit.
func Compile(key, text string) (*Template, error) {
	if utf8.RuneCountInString(text) > maxText {
		return nil, &Error{Key: key, Kind: KindLimit, Msg: fmt.Sprintf("it is longer than %d characters; split it over several keys", maxText)}
	}
	tree, err := parseTree(text)
	if err != nil {
		return nil, newError(key, KindParse, err)
	}
	c := &checker{text: text, used: map[string]*function{}}
	if err := c.check(tree); err != nil {
		err.Key = key
		return nil, err
	}
	base, err := template.New(treeName).Option("missingkey=error").AddParseTree(treeName, tree)
	if err != nil {
		return nil, newError(key, KindParse, err)
	}
	t := &Template{key: key, base: base, timeout: maxTime}
	for _, f := range c.used {
		t.charged = true
		if f.impl != nil {
			t.used = append(t.used, f)
		}
	}
	return t, nil
}

// Key is the data key that the template is for.
func (t *Template) Key() string { return t.key }

// run is what one execution writes to and pays from. text/template binds
// functions to a template, not to an execution, so each run has a clone whose
// functions know it; the parsed tree is shared.
type run struct {
	budget
	tmpl *template.Template
	out  []byte
	max  int
}

func (t *Template) newRun() (*run, error) {
	r := &run{tmpl: t.base}
	if !t.charged {
		return r, nil
	}
	tmpl, err := t.base.Clone()
	if err != nil {
		return nil, err
	}
	funcs := template.FuncMap{
		stepName:  func(n int) (bool, error) { return false, r.step(n) },
		rangeName: r.enterRange,
	}
	for _, f := range t.used {
		funcs[f.name] = f.bind(&r.budget)
	}
	r.tmpl = tmpl.Funcs(funcs)
	return r, nil
}

func (r *run) Write(p []byte) (int, error) {
	if len(r.out)+len(p) > r.max {
		return 0, &stop{KindOutput, fmt.Sprintf("its output is larger than the %d bytes left in the ConfigMap; write less", r.max)}
	}
	r.out = append(r.out, p...)
	return len(p), nil
}

// maxKept bounds what an idle run keeps of its output buffer.
const maxKept = 64 << 10

// Execute renders the template over one pod's data (see the package comment),
// which it does not change. An output of more than maxBytes bytes is an error.
// Errors are of type [*Error].
func (t *Template) Execute(data map[string]any, maxBytes int) (string, error) {
	return t.ExecuteWithin(NewAllowance(), data, maxBytes)
}

// ExecuteWithin is Execute for a template that shares an allowance with others.
func (t *Template) ExecuteWithin(a *Allowance, data map[string]any, maxBytes int) (string, error) {
	r, _ := t.pool.Get().(*run)
	if r == nil {
		var err error
		if r, err = t.newRun(); err != nil {
			return "", newError(t.key, KindExecution, err)
		}
	}
	r.out, r.max = r.out[:0], maxBytes
	if t.charged {
		r.budget = a.budget(t.timeout)
	}
	before := r.budget
	out, err := r.execute(data)
	a.settle(before, r.budget)
	if cap(r.out) <= maxKept {
		t.pool.Put(r)
	}
	if err != nil {
		return "", newError(t.key, KindExecution, err)
	}
	return out, nil
}

// execute keeps a panic of text/template, or in the data, from the manager.
func (r *run) execute(data map[string]any) (out string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panicked: %v; this is a defect of the controller, please report it", p)
		}
	}()
	if err := r.tmpl.Execute(r, data); err != nil {
		return "", err
	}
	if !utf8.Valid(r.out) {
		return "", errors.New("its output is not valid UTF-8; encode binary values with b64enc")
	}
	return string(r.out), nil
}
