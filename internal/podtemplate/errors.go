// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"unicode"
)

// Kind says what sort of failure an [Error] is. Its values are few and stable:
// fit for a metric's label or a condition's reason.
type Kind string

const (
	// KindParse is a template that does not compile: only a new spec can help.
	KindParse Kind = "parse"
	// KindExecution is a template that does not fit this pod's data.
	KindExecution Kind = "execution"
	// KindLimit is a template that needs more than a counted limit. It fails the
	// same way for the same data.
	KindLimit Kind = "limit"
	// KindOutput is a template that writes more than the caller of Execute allows:
	// nothing is wrong with it but what else is to fit.
	KindOutput Kind = "output"
	// KindTimeout is a template stopped by the clock: on a less busy machine it
	// may pass, or meet one of the counted limits.
	KindTimeout Kind = "timeout"
)

// Error is the only error type that this package returns.
type Error struct {
	Key  string // the data key whose template failed
	Line int    // 1-based line within the template, 0 where none is to blame
	Kind Kind
	Msg  string // what is wrong and what to do; one line of at most 400 bytes
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("template %q: %s", e.Key, e.Msg)
	}
	return fmt.Sprintf("template %q, line %d: %s", e.Key, e.Line, e.Msg)
}

// stop is how a budget, or a function that would outgrow it, ends an execution.
type stop struct {
	kind Kind
	msg  string
}

func (s *stop) Error() string { return s.msg }

func tooMuch(format string, args ...any) error {
	return &stop{KindLimit, fmt.Sprintf(format, args...)}
}

const (
	treeName = "t"
	maxMsg   = 400
)

// text/template tells positions in its messages only.
var position = regexp.MustCompile(`^template: ` + treeName + `:(\d+):(?:\d+:)? (?:executing "` + treeName + `" )?`)

// newError turns what text/template said into an Error.
func newError(key string, kind Kind, err error) *Error {
	msg, line := err.Error(), 0
	if m := position.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
	}
	var s *stop
	if errors.As(err, &s) {
		kind, msg = s.kind, s.msg
	}
	return &Error{Key: key, Line: line, Kind: kind, Msg: oneLine(msg + remedy(err, msg))}
}

func remedy(err error, msg string) string {
	if _, ok := errors.AsType[template.ExecError](err); ok && strings.Contains(msg, "no entry for key") {
		return "; read keys that may be absent with get and default"
	}
	return ""
}

// planted is what the checker adds to a tree: users never wrote it.
var planted = regexp.MustCompile(` \| ` + rangeName + `|at <` + rangeName + `>: |{{if ` + stepName + ` \d+}}{{end}}`)

// oneLine makes a message fit for a condition: text/template quotes nodes and
// the pod's values in full.
func oneLine(msg string) string {
	msg = planted.ReplaceAllString(cutMiddle(msg, 8*maxMsg), "")
	msg = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(msg, "?"))
	return cutMiddle(msg, maxMsg)
}

// cutMiddle keeps the start, which tells the place, and the end, which tells
// the cause.
func cutMiddle(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const dots = " ... "
	half := (most - len(dots)) / 2
	return headBytes(s, half) + dots + tailBytes(s, half)
}
