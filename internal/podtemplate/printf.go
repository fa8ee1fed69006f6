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

const maxWidth = 1000

// printf keeps the padding that a format asks for within bounds, and what is
// not a function of the values out.
func printf(format string, values ...any) (string, error) {
	padding := 0
	_, rest, found := strings.Cut(format, "%")
	for ; found; _, rest, found = strings.Cut(rest, "%") {
		var width int
		var err error
		if width, rest, err = readVerb(rest); err != nil {
			return "", err
		}
		padding += width
	}
	// It would pad every element.
	if padding > 0 && slices.ContainsFunc(values, isComposite) {
		return "", errors.New("printf takes no width or precision next to a list or a map; use range")
	}
	if err := fits(padding); err != nil {
		return "", err
	}
	return fmt.Sprintf(format, values...), nil
}

// readVerb reads what follows a % up to its letter, and returns how much its
// width and precision can add and the text from the letter on, or from behind
// it for a second %.
func readVerb(s string) (padding int, rest string, err error) {
	width, s, err := readNumber(strings.TrimLeft(s, "-+# 0"))
	if err != nil {
		return 0, "", err
	}
	precision := 0
	if strings.HasPrefix(s, ".") {
		if precision, s, err = readNumber(s[1:]); err != nil {
			return 0, "", err
		}
	}
	switch {
	case strings.HasPrefix(s, "*") || strings.HasPrefix(s, "["):
		return 0, "", errors.New("printf takes neither * nor [n]; write the number into the format")
	case strings.HasPrefix(s, "p"):
		return 0, "", errors.New("printf takes no %p: addresses differ at every run; use %v")
	}
	return width + precision, strings.TrimPrefix(s, "%"), nil
}

func readNumber(s string) (n int, rest string, err error) {
	rest = strings.TrimLeft(s, "0123456789")
	digits := s[:len(s)-len(rest)]
	if digits == "" {
		return 0, rest, nil
	}
	if n, err = strconv.Atoi(digits); err != nil || n > maxWidth {
		return 0, "", tooMuch("printf takes widths and precisions up to %d; use a smaller one", maxWidth)
	}
	return n, rest, nil
}

func isComposite(v any) bool {
	kind := reflect.ValueOf(v).Kind()
	return kind > reflect.Complex128 && kind != reflect.String
}
