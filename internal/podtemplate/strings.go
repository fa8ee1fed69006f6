// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"text/template"
	"unicode"
	"unicode/utf8"
)

var stringFunctions = []function{
	{name: "base", usage: "base PATH", doc: "The last element of a path: an image's name.", impl: path.Base},
	{name: "cat", usage: "cat VALUE...", doc: "The values, joined by spaces; absent ones are left out.", impl: cat},
	{name: "clean", usage: "clean PATH", doc: "The shortest path that means the same.", impl: path.Clean},
	{name: "contains", usage: "contains PART STRING", doc: "Whether the string contains the part.", impl: contains, searching: true},
	{name: "dir", usage: "dir PATH", doc: "All but the last element of a path.", impl: path.Dir},
	{name: "ext", usage: "ext PATH", doc: "The extension of a path, with its dot.", impl: path.Ext},
	{name: "hasPrefix", usage: "hasPrefix PREFIX STRING", doc: "Whether the string starts with the prefix.", impl: hasPrefix},
	{name: "hasSuffix", usage: "hasSuffix SUFFIX STRING", doc: "Whether the string ends with the suffix.", impl: hasSuffix},
	{name: "indent", usage: "indent SPACES STRING", doc: "The string with every line indented.", impl: indent},
	{name: "isAbs", usage: "isAbs PATH", doc: "Whether a path is absolute.", impl: path.IsAbs},
	{name: "lower", usage: "lower STRING", doc: "The string in lower case.", impl: strings.ToLower},
	{name: "nindent", usage: "nindent SPACES STRING", doc: "As indent, after a line break.", impl: nindent},
	{name: "nospace", usage: "nospace STRING", doc: "The string without white space.", impl: noSpace},
	{name: "plural", usage: "plural ONE MANY COUNT", doc: "ONE if the count is 1, otherwise MANY.", impl: plural},
	{name: "print", usage: "print VALUE...", doc: "The values as text; a space between two that are no strings.", impl: sprint},
	{name: "printf", usage: "printf FORMAT VALUE...", doc: "Formatted text as in Go; widths up to 1000; not *, [n] or %p.", impl: printf},
	{name: "println", usage: "println VALUE...", doc: "The values as text, with spaces between and a line break at the end.", impl: sprintln},
	{name: "quote", usage: "quote VALUE...", doc: "The values in double quotes, escaped.", impl: quote},
	{name: "repeat", usage: "repeat COUNT STRING", doc: "The string, COUNT times.", impl: repeat},
	{name: "replace", usage: "replace OLD NEW STRING", doc: "The string with every OLD made NEW.", impl: replace, searching: true},
	{name: "squote", usage: "squote VALUE...", doc: "The values in single quotes, not escaped.", impl: squote},
	{name: "substr", usage: "substr START END STRING", doc: "The bytes from START up to END (-1: to the end); never cuts a character.", impl: substr},
	{name: "title", usage: "title STRING", doc: "The string with every word's first letter in upper case.", impl: title},
	{name: "trim", usage: "trim STRING", doc: "The string without white space around it.", impl: strings.TrimSpace},
	{name: "trimAll", usage: "trimAll CHARS STRING", doc: "The string without any of the characters (64 bytes at most) around it.", impl: trimAll},
	{name: "trimPrefix", usage: "trimPrefix PREFIX STRING", doc: "The string without the prefix.", impl: trimPrefix},
	{name: "trimSuffix", usage: "trimSuffix SUFFIX STRING", doc: "The string without the suffix.", impl: trimSuffix},
	{name: "trunc", usage: "trunc N STRING", doc: "The first N bytes, or the last -N; never cuts a character.", impl: trunc},
	{name: "untitle", usage: "untitle STRING", doc: "The string with every word's first letter in lower case.", impl: untitle},
	{name: "upper", usage: "upper STRING", doc: "The string in upper case.", impl: strings.ToUpper},
	{name: "html", usage: "html VALUE...", doc: "The values as text, escaped for HTML.", impl: template.HTMLEscaper},
	{name: "urlquery", usage: "urlquery VALUE...", doc: "The values as text, escaped for a URL's query.", impl: template.URLQueryEscaper},
}

// fits refuses a result before it is built.
func fits(size int) error {
	if size < 0 || size > maxValue {
		return tooMuch("a value is larger than %d MiB; build less text in it", maxValue>>20)
	}
	return nil
}

func contains(part, s string) bool       { return strings.Contains(s, part) }
func hasPrefix(prefix, s string) bool    { return strings.HasPrefix(s, prefix) }
func hasSuffix(suffix, s string) bool    { return strings.HasSuffix(s, suffix) }
func trimPrefix(prefix, s string) string { return strings.TrimPrefix(s, prefix) }
func trimSuffix(suffix, s string) string { return strings.TrimSuffix(s, suffix) }
func sprint(values ...any) string        { return fmt.Sprint(values...) }
func sprintln(values ...any) string      { return fmt.Sprintln(values...) }
func nindent(n any, s string) (string, error) {
	s, err := indent(n, s)
	return "\n" + s, err
}

// trimAll is quadratic, hence the bound.
func trimAll(chars, s string) (string, error) {
	const most = 64
	if len(chars) > most {
		return "", fmt.Errorf("trimAll takes at most %d bytes of characters", most)
	}
	return strings.Trim(s, chars), nil
}

func repeat(count any, s string) (string, error) {
	n, err := natural("repeat", count)
	if err != nil {
		return "", err
	}
	if err := fits(n * len(s)); err != nil {
		return "", err
	}
	return strings.Repeat(s, n), nil
}

func replace(old, replacement, s string) (string, error) {
	if err := fits(len(s) + strings.Count(s, old)*(len(replacement)-len(old))); err != nil {
		return "", err
	}
	return strings.ReplaceAll(s, old, replacement), nil
}

func indent(spaces any, s string) (string, error) {
	n, err := natural("indent", spaces)
	if err != nil {
		return "", err
	}
	if err := fits(len(s) + n*(1+strings.Count(s, "\n"))); err != nil {
		return "", err
	}
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad), nil
}

func noSpace(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, s)
}

// firstLetters maps the first letter of every word.
func firstLetters(s string, change func(rune) rune, separates func(rune) bool) string {
	inWord := false
	return strings.Map(func(r rune) rune {
		first := !inWord
		inWord = !separates(r)
		if first {
			return change(r)
		}
		return r
	}, s)
}

func title(s string) string {
	return firstLetters(s, unicode.ToTitle, func(r rune) bool {
		if r <= unicode.MaxASCII {
			return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		}
		return unicode.IsSpace(r)
	})
}

func untitle(s string) string { return firstLetters(s, unicode.ToLower, unicode.IsSpace) }

func plural(one, many string, count any) (string, error) {
	n, err := toInt64(count)
	if n == 1 {
		return one, err
	}
	return many, err
}

func trunc(count any, s string) (string, error) {
	n, err := toInt64(count)
	switch {
	case err != nil:
		return "", err
	case n >= 0:
		return headBytes(s, int(min(n, int64(len(s))))), nil
	default:
		return tailBytes(s, int(-max(n, -int64(len(s))))), nil
	}
}

// headBytes is the longest start of s that has at most n bytes and ends between
// two characters.
func headBytes(s string, n int) string {
	if n >= len(s) {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// tailBytes is the longest such end of s.
func tailBytes(s string, n int) string {
	if n >= len(s) {
		return s
	}
	start := len(s) - n
	for start < len(s) && !utf8.RuneStart(s[start]) {
		start++
	}
	return s[start:]
}

func substr(start, end any, s string) (string, error) {
	from, err := toInt64(start)
	if err != nil {
		return "", err
	}
	to, err := toInt64(end)
	if err != nil {
		return "", err
	}
	if size := int64(len(s)); from < 0 || to < 0 || to > size {
		from = min(max(from, 0), size)
		if to < 0 || to > size {
			to = size
		}
	}
	if from >= to {
		return "", nil
	}
	head := headBytes(s, int(to))
	return head[len(headBytes(head, int(from))):], nil
}

// each formats the values that are there and joins them by spaces.
func each(values []any, format func(string) string) string {
	var texts []string
	for _, v := range values {
		if v != nil {
			texts = append(texts, format(toString(v)))
		}
	}
	return strings.Join(texts, " ")
}

func quote(values ...any) string { return each(values, strconv.Quote) }
func squote(values ...any) string {
	return each(values, func(s string) string { return "'" + s + "'" })
}
func cat(values ...any) string {
	return strings.TrimSpace(each(values, func(s string) string { return s }))
}
