// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func FuzzCompileExecute(f *testing.F) {
	for _, a := range attacks {
		if len(a.text) < 2000 {
			f.Add(a.text)
		}
	}
	for _, text := range []string{
		`{{ .podName }}-{{ .labels.app }}`, `{{ range $k, $v := .labels }}{{ $k }}={{ $v | quote }}{{ else }}-{{ end }}`,
		`{{ with get .labels "x" }}{{ . }}{{ else with .owner.kind }}{{ lower . }}{{ end }}`, `{{ (fromJson .annotations.config).hosts | toPrettyJson }}`,
		`{{ if and (eq .phase "Running") (not (hasKey .labels "x")) }}{{ printf "%-10s|%6.2f" .podName 1.5 }}{{ end }}`,
		`{{ $x := list }}{{ range .podIPs }}{{ $x = append $x . }}{{ if gt (len $x) 1 }}{{ break }}{{ end }}{{ end }}{{ join "," $x }}`,
	} {
		f.Add(text)
	}
	f.Fuzz(compileAndExecute)
}

func compileAndExecute(t *testing.T, text string) {
	const most = 10_000
	start := time.Now()
	tmpl, err := unclocked(text)
	if err != nil {
		wellFormed(t, err)
		return
	}
	got, err := tmpl.Execute(pod(), most)
	again, errAgain := tmpl.Execute(pod(), most)
	if took := time.Since(start); took > mostTime {
		t.Errorf("took %v", took)
	}
	if got != again || (err == nil) != (errAgain == nil) {
		t.Errorf("got %q (%v), then %q (%v)", got, err, again, errAgain)
	}
	if len(got) > most || !utf8.ValidString(got) {
		t.Errorf("got %d bytes: %q", len(got), got)
	}
	if err != nil {
		wellFormed(t, err)
	}
}

// writer makes a template of every sequence of bytes: most texts that a fuzzer
// makes up do not parse.
type writer struct {
	choices []byte
	out     strings.Builder
}

func (w *writer) choose(n int) int {
	if len(w.choices) == 0 {
		return 0
	}
	c := int(w.choices[0])
	w.choices = w.choices[1:]
	return c % n
}

var terms = []string{
	`$x`, `.`, `$`, `$.labels`, `$.podIPs`, `$.containers`, `$.annotations.config`, `""`, `"a"`, `"%v%5d"`, `","`, `"é\xff"`, `nil`, `true`,
	`0`, `1`, `-1`, `3`, `100`, `70000`, `9223372036854775807`, `1.5`, `1e300`, `1i`, `(repeat 5000 $.podName)`, `(until 300)`,
}

func (w *writer) expression(depth int) {
	if depth == 0 || w.choose(3) == 0 {
		w.out.WriteString(terms[w.choose(len(terms))])
		return
	}
	names := Functions()
	w.out.WriteString("(" + names[w.choose(len(names))].Name)
	for range w.choose(4) {
		w.out.WriteString(" ")
		w.expression(depth - 1)
	}
	w.out.WriteString(")")
}

func (w *writer) statements(depth int) {
	for len(w.choices) > 0 {
		open := []string{"{{ ", "{{ $x = ", "{{ range ", "{{ if ", "{{ with ", "{{ range $k, $x := ", ""}[w.choose(7)]
		if open == "" || depth == 0 {
			return
		}
		w.out.WriteString(open)
		w.expression(3)
		w.out.WriteString(" }}")
		if open != "{{ " && open != "{{ $x = " {
			w.statements(depth - 1)
			w.out.WriteString("{{ end }}")
		}
	}
}

func FuzzExecute(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		choices := make([]byte, 40+random.IntN(100))
		for i := range choices {
			choices[i] = byte(random.Uint32())
		}
		f.Add(choices)
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		w := writer{choices: choices}
		w.out.WriteString("{{ $x := list }}")
		w.statements(5)
		compileAndExecute(t, w.out.String())
	})
}

func wellFormed(t *testing.T, err error) {
	var e *Error
	switch {
	case !errors.As(err, &e):
		t.Errorf("got %T: %v", err, err)
	case !slices.Contains([]Kind{KindParse, KindExecution, KindLimit, KindOutput}, e.Kind),
		e.Msg == "" || len(e.Msg) > maxMsg || !utf8.ValidString(e.Msg), e.Line < 0, e.Key != "key":
		t.Errorf("got %+v", *e)
	}
}
