// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"bytes"
	"fmt"
	"testing"
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

// differs lists what is meant to differ from sprig.
var differs = map[string]string{
	`atoi "x"`: "error, not 0", `int "x"`: "error, not 0", `float64 "x"`: "error, not 0",
	`b64dec "!"`: "error, not the error's text", `b32dec "!"`: "error, not the error's text",
	`fromJson "{"`: "error, not nothing", `dict "a"`: "error, not an empty value",
	`trunc 2 "aé"`: "never cuts a character", `substr 0 2 "aé"`: "never cuts a character",
	`nospace "é b"`: "sprig's takes bytes for characters", `fromJson "1e6"`: "as sprig", `fromJson "1000000"`: "whole numbers stay whole",
	`toString nil`: "as sprig",
}

// The functions are our own, bounded; these calls must give what sprig gives.
func TestLikeSprig(t *testing.T) {
	for _, call := range []string{
		`trim " a "`, `trimAll "$" "$5$"`, `trimPrefix "-" "-a"`, `trimSuffix "-" "a-"`, `upper "aé"`, `lower "AÉ"`,
		`title "a bc-d e_f it's éa"`, `untitle "A Bc-D  É"`, `trunc 2 "abc"`, `trunc -2 "abc"`, `trunc 9 "abc"`, `trunc -9 "abc"`,
		`substr 1 2 "abc"`, `substr 1 -1 "abc"`, `substr -1 2 "abc"`, `substr 0 99 "abc"`,
		`contains "b" "abc"`, `hasPrefix "a" "abc"`, `hasSuffix "a" "abc"`, `replace "a" "bb" "aca"`, `replace "" "-" "abc"`,
		`repeat 3 "ab"`, `indent 2 "a\nb"`, `nindent 2 "a\nb"`, `nospace " a b\t"`, `quote "a\"é\n" 1 nil true`, `squote "a'" 1 nil`,
		`cat "a" nil 1 "b"`, `plural "one" "many" 1`, `plural "one" "many" 2`, `toString 1.5`, `toString nil`, `toStrings (list 1 nil "a")`,
		`join "," (list 1 nil "a" true)`, `split "." "a.b."`, `splitList "." "a.b."`, `splitList "" "abc"`, `sortAlpha (list "b" "a" 1)`,
		`atoi "12"`, `int "12"`, `int 1.9`, `int64 "-3"`, `float64 "1.5"`, `float64 2`, `atoi "x"`, `int "x"`, `float64 "x"`,
		`add 1 2 "3"`, `add1 4`, `sub 1 2`, `mul 2 3 4`, `div 7 2`, `div -7 2`, `mod -7 2`, `max 1 5 3`, `min 4 2 3`, `floor 1.7`, `ceil "1.2"`,
		`round 123.5555 3`, `round 2.4 0`, `round 2.6 0`, `until 4`,
		`default "a" ""`, `default "a" "b"`, `default "a" 0`, `default "a"`, `empty ""`, `empty (list)`, `empty 1`, `coalesce "" 0 "a" "b"`,
		`all 1 ""`, `any "" 0 1`, `ternary 1 2 true`, `ternary 1 2 false`, `kindOf "a"`, `kindOf 1`, `kindOf (list)`, `kindOf (dict)`, `kindIs "map" (dict)`,
		`b64enc "aé"`, `b64dec "YQ=="`, `b32enc "ab"`, `b32dec "MFRA===="`, `b64dec "!"`, `b32dec "!"`,
		`sha256sum "a"`, `sha512sum "a"`, `adler32sum "a"`, `toJson (dict "a" (list 1 "<" nil))`, `toRawJson (dict "a" "<")`, `toPrettyJson (dict "a" (list 1))`,
		`fromJson "{\"a\":[1,\"x\",null,true,0.5]}"`, `fromJson "1e6"`, `fromJson "1000000"`, `fromJson "{"`,
		`list 1 "a"`, `first (list 1 2)`, `first (list)`, `last (list 1 2)`, `rest (list 1 2 3)`, `rest (list)`, `initial (list 1 2 3)`,
		`append (list 1) 2`, `prepend (list 1) 0`, `concat (list 1) (list 2 3)`, `reverse (list 1 2 3)`, `has 1 (list 1 2)`, `has "1" (list 1 2)`,
		`compact (list 0 1 "" "a" nil)`, `dict "a" 1 "b" 2`, `dict "a"`, `get (dict "a" 1) "a"`, `get (dict "a" 1) "b"`, `hasKey (dict "a" 1) "a"`,
		`pick (dict "a" 1 "b" 2) "a" "c"`, `omit (dict "a" 1 "b" 2) "a" "c"`, `keys (dict "a" 1)`, `values (dict "a" 1)`, `slice (list 1 2 3) 1 2`, `slice (list 1 2 3) 1`,
		`base "a/b.c"`, `dir "a/b.c"`, `clean "a//b/../c"`, `ext "a/b.c"`, `isAbs "/a"`, `fail "x"`,
		`trunc 2 "aé"`, `substr 0 2 "aé"`, `nospace "é b"`,
	} {
		want, wantErr := reference("{{ "+call+" }}", sprig.TxtFuncMap())
		got, err := render("{{ "+call+" }}", nil)
		why := differs[call]
		if same := got == want && (err == nil) == (wantErr == nil); same != (why == "" || why == "as sprig") {
			t.Errorf("%s: got %q (%v), sprig has %q (%v), meant to differ: %q", call, got, err, want, wantErr, why)
		}
	}
}

func reference(text string, funcs template.FuncMap) (string, error) {
	tmpl, err := template.New("").Funcs(funcs).Parse(text)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = tmpl.Execute(&out, nil)
	if err != nil {
		return "", err
	}
	return out.String(), nil
}

// The comparisons must do what text/template's do, for every pair of kinds.
func TestLikeTextTemplate(t *testing.T) {
	values := []string{`0`, `1`, `-1`, `1.5`, `0.0`, `"a"`, `"b"`, `""`, `true`, `false`, `nil`, `(len "a")`, `(index "a" 0)`, `1i`, `9223372036854775807`}
	for _, f := range []string{"eq", "ne", "lt", "le", "gt", "ge", "print", "println", "html", "urlquery"} {
		for _, a := range values {
			for _, b := range values {
				for _, text := range []string{fmt.Sprintf("{{ %s %s %s }}", f, a, b), fmt.Sprintf("{{ %s %s %s %s }}", f, a, b, a), fmt.Sprintf("{{ %s %s }}", f, a)} {
					want, wantErr := reference(text, nil)
					if got, err := render(text, nil); got != want || (err == nil) != (wantErr == nil) {
						t.Errorf("%s: got %q (%v), want %q (%v)", text, got, err, want, wantErr)
					}
				}
			}
		}
	}
}

func TestFunctionsAreDocumented(t *testing.T) {
	for _, f := range Functions() {
		if f.Group == "" || f.Usage == "" || f.Doc == "" || f.Usage != f.Name && f.Usage[:len(f.Name)+1] != f.Name+" " {
			t.Errorf("%+v", f)
		}
	}
}
