// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// page is a template as it is written: objects as YAML, with holes in them that
// become expressions.
type page struct {
	text  strings.Builder
	holes []hole
	// permanent are the ClusterRoles that are always there.
	permanent map[string]bool
}

func (p *page) String() string { return p.text.String() }

// hole is a place of an object that is not as it is in the manifest.
type hole struct {
	// inline replaces the hole alone, anywhere in a text.
	inline string
	// lines replaces the whole line of the hole. The line was "KEY: HOLE" or
	// "- HOLE" (key is empty then), indented by so many spaces.
	lines func(indent int, key string) string
}

// mark is how a hole looks in YAML until it is filled.
const mark = "HOLE%dELOH"

var (
	marks = regexp.MustCompile(`HOLE(\d+)ELOH`)
	// alone is a line that has nothing but a hole and its key or dash.
	alone = regexp.MustCompile(`^( *)(?:- |([A-Za-z0-9]+): )HOLE(\d+)ELOH$`)
)

func (p *page) hole(h hole) string {
	p.holes = append(p.holes, h)
	return fmt.Sprintf(mark, len(p.holes)-1)
}

// value is what an expression gives, in its place in the text.
func (p *page) value(expression string) string {
	return p.hole(hole{inline: "{{ " + expression + " }}"})
}

// block is a field whose value is that of an expression, as YAML; absent where it
// is empty.
func (p *page) block(expression string) string {
	return p.hole(hole{lines: func(indent int, key string) string {
		return text(indent, "{{- with "+expression+" }}", key+":", fmt.Sprintf("  {{- toYaml . | nindent %d }}", indent+2), "{{- end }}")
	}})
}

// scalar is a field whose value is that of an expression; absent where it is empty.
func (p *page) scalar(expression string) string {
	return p.hole(hole{lines: func(indent int, key string) string {
		return text(indent, "{{- with "+expression+" }}", key+": {{ . | quote }}", "{{- end }}")
	}})
}

// blockOr is a field whose value is that of an expression, as YAML, or where it is
// empty the manifest's.
func (p *page) blockOr(expression string, otherwise any) string {
	return p.hole(hole{lines: func(indent int, key string) string {
		return text(indent, "{{- with "+expression+" }}", key+":", fmt.Sprintf("  {{- toYaml . | nindent %d }}", indent+2), "{{- else }}", key+":") +
			text(indent+2, strings.Split(strings.TrimSpace(mustYAML(otherwise)), "\n")...) + text(indent, "{{- end }}")
	}})
}

// more adds lines to a list or, under a key that only the page sees, to a map.
func (p *page) more(lines ...string) string {
	return p.hole(hole{lines: func(indent int, _ string) string { return text(indent, lines...) }})
}

// merged adds what an expression gives, a map as YAML or text of one, to a map.
func (p *page) merged(into map[string]any, expression string) {
	key := fmt.Sprintf("zz%d", len(p.holes))
	into[key] = p.hole(hole{lines: func(indent int, _ string) string {
		return text(indent, fmt.Sprintf("{{- %s | nindent %d }}", expression, indent))
	}})
}

// mergedIf is merged for a map of the values that may be empty.
func (p *page) mergedIf(into map[string]any, values string) {
	key := fmt.Sprintf("zz%d", len(p.holes))
	into[key] = p.hole(hole{lines: func(indent int, _ string) string {
		return text(indent, "{{- with "+values+" }}", fmt.Sprintf("{{- toYaml . | nindent %d }}", indent), "{{- end }}")
	}})
}

// text writes lines, indented.
func text(indent int, lines ...string) string {
	b := &strings.Builder{}
	for _, line := range lines {
		fmt.Fprintf(b, "%*s%s\n", indent, "", line)
	}
	return b.String()
}

// raw adds a line of the template's own.
func (p *page) raw(line string) { p.text.WriteString(line + "\n") }

// add adds an object, with its holes filled. Braces of the object's own, such as
// those of alerts, stay as they are.
func (p *page) add(o object) {
	for line := range strings.Lines(mustYAML(o)) {
		line = escape(line)
		if m := alone.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
			if h := p.holes[number(m[3])]; h.lines != nil {
				p.text.WriteString(h.lines(len(m[1]), m[2]))
				continue
			}
		}
		p.text.WriteString(marks.ReplaceAllStringFunc(line, func(m string) string {
			return p.holes[number(marks.FindStringSubmatch(m)[1])].inline
		}))
	}
}

func number(digits string) (n int) {
	if _, err := fmt.Sscan(digits, &n); err != nil {
		panic(err) // the pattern has digits only
	}
	return n
}

// escape lets text pass through a template unchanged.
func escape(s string) string {
	return strings.NewReplacer("{{", `{{ "{{" }}`, "}}", `{{ "}}" }}`).Replace(s)
}

// mustYAML encodes what was decoded from YAML before.
func mustYAML(v any) string {
	b, err := yaml.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
