// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	mostMemory = 64 << 20
	mostTime   = 2 * time.Minute // on a busy machine; the limits hold it far below
	ok         = Kind("")        // allowed, but cheap
)

type attack struct {
	text string
	kind Kind
	msg  string
}

// doubled is a text that doubles $x n times.
func doubled(start, double string, n int) string {
	return "{{ $x := " + start + " }}" + strings.Repeat("{{ $x = "+double+" }}", n)
}

func nested(open, inner, closing string, n int) string {
	return strings.Repeat(open, n) + inner + strings.Repeat(closing, n)
}

// Strings that collide in the hash of strings.Index's Rabin-Karp search, so that
// it compares them at every place.
var searches = `{{ $s := repeat 500000 "a" }}{{ $n := print (repeat 200000 "a") "asuxxtqd" }}`

var attacks = map[string]attack{
	"endless loop":             {`{{ range 1000000000000 }}{{ end }}`, KindLimit, "steps"},
	"endless loop, unsigned":   {`{{ range 0x7fffffffffffffff }}{{ continue }}{{ end }}`, KindLimit, "steps"},
	"endless loop with output": {`{{ range 1000000000000 }}x{{ end }}`, KindLimit, "steps"},
	"nested empty loops":       {nested(`{{ range 1000 }}`, ``, `{{ end }}`, 10), KindLimit, "steps"},
	"nested loops that break":  {`{{ range 1000000000 }}{{ range 1000000000 }}{{ break }}{{ end }}{{ end }}`, KindLimit, "steps"},
	"continue below many ifs":  {`{{ range 1000000000 }}` + nested(`{{ if 1 }}`, `{{ continue }}`, `{{ end }}`, 99) + `{{ end }}`, KindLimit, "steps"},
	"endless loop of a big if": {`{{ range 1000000000 }}{{ if 0 }}` + strings.Repeat(`{{ $ }}`, 2000) + `{{ end }}{{ end }}`, KindLimit, "steps"},
	"many variables looked up": {strings.Repeat(`{{$a:=1}}`, 900) + `{{ range 1000000000 }}` + strings.Repeat(`{{$b:=$}}`, 800) + `{{ end }}`, KindLimit, "steps"},
	"sorting a map for nothing": {`{{ $m := split "," (repeat 15000 ",") }}{{ range 1000000 }}{{ range $m }}{{ break }}{{ end }}{{ end }}`,
		KindLimit, ""},
	"loop over a big list":   {`{{ range until 60000 }}{{ range until 60000 }}{{ end }}{{ end }}`, KindLimit, ""},
	"long field chains":      {`{{ range 1000000000 }}{{ if $.a` + strings.Repeat(`.a`, 1000) + `}}{{ end }}{{ end }}`, KindExecution, "no entry"},
	"recursion by define":    {`{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`, KindParse, "define"},
	"recursion by own name":  {`{{ template "t" . }}`, KindParse, "template and block are not offered"},
	"define of own name":     {`{{ define "t" }}x{{ end }}`, KindParse, "define"},
	"block":                  {`{{ block "b" . }}x{{ end }}`, KindParse, "define and block"},
	"env":                    {`{{ env "HOME" }}`, KindParse, `"env" is not offered`},
	"expandenv":              {`{{ expandenv "$HOME" }}`, KindParse, `"expandenv" is not offered`},
	"getHostByName":          {`{{ getHostByName "localhost" }}`, KindParse, `"getHostByName" is not offered`},
	"readFile":               {`{{ readFile "/etc/passwd" }}`, KindParse, `"readFile" is not offered`},
	"now":                    {`{{ now }}`, KindParse, `"now" is not offered`},
	"randAlpha":              {`{{ randAlpha 5 }}`, KindParse, `"randAlpha" is not offered`},
	"genPrivateKey":          {`{{ genPrivateKey "rsa" }}`, KindParse, `"genPrivateKey" is not offered`},
	"regexMatch":             {`{{ regexMatch "(a*)*" "a" }}`, KindParse, `"regexMatch" is not offered`},
	"set":                    {`{{ set . "podName" "x" }}`, KindParse, `"set" is not offered`},
	"call":                   {`{{ call .podName }}`, KindParse, `"call" is not offered`},
	"unknown in a dead part": {`{{ if false }}{{ env "HOME" }}{{ end }}`, KindParse, `"env" is not offered`},
	"planted step":           {`{{ if _step -1000000 }}{{ end }}`, KindParse, `"_step" is not offered`},
	"planted range":          {`{{ 1 | _range }}`, KindParse, `"_range" is not offered`},
	"method call":            {`{{ .startTime.String }}`, KindExecution, "can't evaluate field String"},
	"arguments to a field":   {`{{ .podName 1 }}`, KindExecution, "has arguments"},

	"repeat":                  {`{{ repeat 1000000000000 "x" }}`, KindLimit, "1 MiB"},
	"repeat, overflowing":     {`{{ repeat 4611686018427387904 "abcd" }}`, KindLimit, "1 MiB"},
	"repeat, negative":        {`{{ repeat -1 "x" }}`, KindExecution, "negative"},
	"repeat of repeat":        {`{{ repeat 1000 (repeat 1000 (repeat 1000 "x")) }}`, KindLimit, "1 MiB"},
	"repeat of nothing":       {`{{ repeat 1000000000000 "" }}`, ok, ""},
	"repeats, each below":     {strings.Repeat(`{{ $x := repeat 1000000 "x" }}`, 500), KindLimit, "8 MiB"},
	"indent":                  {`{{ indent 1000000000 "x" }}`, KindLimit, "1 MiB"},
	"indent of many lines":    {`{{ repeat 1000 "\n" | indent 100000 }}`, KindLimit, "1 MiB"},
	"nindent":                 {`{{ repeat 1000 "\n" | nindent 100000 }}`, KindLimit, "1 MiB"},
	"replace":                 {`{{ $x := repeat 100000 "x" }}{{ replace "x" $x $x }}`, KindLimit, ""},
	"replace of nothing":      {`{{ replace "" (repeat 1000 "y") (repeat 100000 "x") }}`, KindLimit, "1 MiB"},
	"join":                    {`{{ until 10000 | join (repeat 100000 "x") }}`, KindLimit, "1 MiB"},
	"until":                   {`{{ until 1000000000000 }}`, KindLimit, "1 MiB"},
	"split":                   {`{{ split "," (repeat 900000 ",") }}`, KindLimit, "1 MiB"},
	"splitList by characters": {`{{ splitList "" (repeat 900000 "x") }}`, KindLimit, "1 MiB"},
	"search, colliding":       {searches + `{{ contains $n $s }}`, KindLimit, "8 MiB"},
	"replace, colliding":      {searches + `{{ replace $n "" $s }}`, KindLimit, "8 MiB"},
	"split, colliding":        {searches + `{{ splitList $n $s }}`, KindLimit, "8 MiB"},
	"trimAll":                 {`{{ trimAll (repeat 900000 "é") (repeat 900000 "x") }}`, KindLimit, ""},
	"trimAll, smaller":        {`{{ trimAll (repeat 100000 "é") (repeat 100000 "x") }}`, KindExecution, "at most 64"},

	"printf width":              {`{{ printf "%1000000000d" 1 }}`, KindLimit, "widths"},
	"printf width, huge":        {`{{ printf "%99999999999999999999d" 1 }}`, KindLimit, "widths"},
	"printf precision":          {`{{ printf "%.1000000f" 1.0 }}`, KindLimit, "widths"},
	"printf star":               {`{{ printf "%*d" 1000000 1 }}`, KindExecution, "neither"},
	"printf precision star":     {`{{ printf "%5.*f" 1000000 1.0 }}`, KindExecution, "neither"},
	"printf index":              {`{{ printf "%[1]s%[1]s" "x" }}`, KindExecution, "neither"},
	"printf star by index":      {`{{ printf "%[1]*d" 1000000 1 }}`, KindExecution, "neither"},
	"printf width of a list":    {`{{ printf "%1000d" (until 60000) }}`, KindExecution, "list or a map"},
	"printf width behind %%":    {`{{ printf "%%%1000d" (until 60000) }}`, KindExecution, "list or a map"},
	"printf many widths":        {`{{ printf (repeat 10000 "%1000d") ` + strings.Repeat("1 ", 5000) + `}}`, KindLimit, "1 MiB"},
	"printf without values":     {`{{ printf (repeat 450000 "%d") }}`, KindLimit, "1 MiB"},
	"printf address":            {`{{ printf "%p" .labels }}`, KindExecution, "%p"},
	"printf address with flags": {`{{ printf "%#-10p" .labels }}`, KindExecution, "%p"},

	"doubling by print":       {doubled(`"x"`, `print $x $x`, 40), KindLimit, "1 MiB"},
	"doubling by printf":      {doubled(`"x"`, `printf "%s%s" $x $x`, 40), KindLimit, "1 MiB"},
	"doubling by cat":         {doubled(`"x"`, `cat $x $x`, 40), KindLimit, "1 MiB"},
	"doubling by join":        {doubled(`"x"`, `list $x $x | join $x`, 40), KindLimit, "1 MiB"},
	"doubling by list":        {doubled(`list 1`, `list $x $x`, 200), KindLimit, ""},
	"doubling by list, shown": {doubled(`list 1`, `list $x $x`, 14) + `{{ $x }}`, ok, ""},
	"doubling by dict":        {doubled(`dict`, `dict "a" $x "b" $x`, 200), KindLimit, ""},
	"doubling by concat":      {doubled(`list 1`, `concat $x $x`, 60), KindLimit, "1 MiB"},
	"doubling by append":      {doubled(`list 1`, `append (append $x $x) $x`, 60), KindLimit, ""},
	"doubling in a loop":      {`{{ $x := "x" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}`, KindLimit, "1 MiB"},
	"nesting by list":         {doubled(`list 1`, `list $x`, 200), KindLimit, "32 deep"},
	"appending in a loop":     {`{{ $x := list }}{{ range 100000 }}{{ $x = append $x 1 }}{{ end }}`, KindLimit, "8 MiB"},
	"quote of quote":          {doubled("`\"`", `quote $x`, 40), KindLimit, "1 MiB"},
	"html of html":            {doubled(`"&"`, `html $x $x`, 40), KindLimit, "1 MiB"},
	"html":                    {`{{ repeat 900000 "\"" | html }}`, KindLimit, "1 MiB"},
	"js":                      {`{{ js "x" }}`, KindParse, `"js" is not offered`},
	"urlquery":                {`{{ repeat 900000 "&" | urlquery }}`, KindLimit, "1 MiB"},
	"toJson":                  {`{{ repeat 900000 "\x01" | toJson }}`, KindLimit, "1 MiB"},
	"toPrettyJson":            {doubled(`list 1`, `list $x $x`, 14) + strings.Repeat(`{{ $x = list $x }}`, 9) + `{{ toPrettyJson $x }}`, KindLimit, "1 MiB"},
	"toJson of a NaN":         {`{{ float64 "NaN" | toJson }}`, KindExecution, "NaN"},
	"fromJson, deep":          {`{{ fromJson (print (repeat 9000 "[") (repeat 9000 "]")) }}`, KindLimit, "32 deep"},
	"fromJson, deeper":        {`{{ fromJson (repeat 200000 "[") }}`, KindExecution, "JSON"},
	"fromJson, wide":          {`{{ fromJson (print "[" (repeat 37000 "{\"\":0},") "0]") }}`, KindLimit, "1 MiB"},
	"fromJson, big":           {`{{ fromJson (print "[" (repeat 200000 "0,") "0]") }}`, KindLimit, "256 KiB"},
	"fromJson, numbers":       {`{{ fromJson "[1e999]" }}`, KindExecution, "too large"},
	"float out of range":      {`{{ int (float64 "1e300") }}`, KindExecution, "no number"},

	"eq of large strings":     {`{{ $a := repeat 400000 "x" }}{{ $b := repeat 400000 "x" }}{{ range 100000000 }}{{ if eq $a $b }}{{ end }}{{ end }}`, KindLimit, "8 MiB"},
	"eq of lists":             {doubled(`list 1`, `list $x $x`, 13) + `{{ eq $x $x }}`, KindExecution, "cannot compare"},
	"has of large values":     {`{{ $a := repeat 400000 "x" }}{{ range 100000000 }}{{ if has $a (list (print $a "y")) }}{{ end }}{{ end }}`, KindLimit, "8 MiB"},
	"sorting over and over":   {`{{ $l := until 30000 }}{{ range 100000000 }}{{ $x := sortAlpha $l }}{{ end }}`, KindLimit, "8 MiB"},
	"hashing over and over":   {`{{ $x := repeat 900000 "x" }}{{ range 100000000 }}{{ $y := sha512sum $x }}{{ end }}`, KindLimit, "8 MiB"},
	"flat calls in a loop":    {`{{ range 100000000 }}{{ $x := get $.labels "app" }}{{ end }}`, KindLimit, ""},
	"output in a loop":        {`{{ $x := repeat 1000 "x" }}{{ range 100000 }}{{ $x }}{{ end }}`, KindOutput, "output"},
	"output of a large value": {`{{ $x := repeat 1000000 "x" }}{{ $x }}{{ $x }}`, KindOutput, "output"},

	"divide by zero":        {`{{ div 1 0 }}`, KindExecution, "division by zero"},
	"modulo zero":           {`{{ mod 1 "0" }}`, KindExecution, "division by zero"},
	"least number":          {`{{ div -9223372036854775808 -1 }}`, ok, ""},
	"giant index":           {`{{ index .podIPs 1000000000000 }}`, KindExecution, "out of range"},
	"negative index":        {`{{ index .podIPs -1 }}`, KindExecution, "out of range"},
	"slice out of range":    {`{{ slice .podIPs 0 1000000 }}`, KindExecution, "out of range"},
	"slice backwards":       {`{{ slice .podName 3 1 }}`, KindExecution, "out of range"},
	"substr out of range":   {`{{ substr 1000 2000 .podName }}{{ substr -5 -7 .podName }}`, ok, ""},
	"trunc, least number":   {`{{ trunc -9223372036854775808 .podName }}`, ok, ""},
	"index of nothing":      {`{{ index nil 1 }}`, KindExecution, "nil"},
	"len of nothing":        {`{{ len nil }}`, KindExecution, ""},
	"first of a number":     {`{{ first 1 }}`, KindExecution, "a list is needed"},
	"list functions on nil": {`{{ sortAlpha nil }}`, KindExecution, "a list is needed"},
	"map functions on nil":  {`{{ keys nil }}`, KindExecution, "a map is needed"},
	"not UTF-8":             {`{{ b64dec "/w==" }}`, KindExecution, "UTF-8"},
	"not UTF-8, by escape":  {`{{ "\xff" }}`, KindExecution, "UTF-8"},

	"deep parentheses":       {`{{ ` + nested("(", "1", ")", 8000) + ` }}`, KindParse, "parentheses"},
	"deep open parentheses":  {`{{ ` + strings.Repeat("(", 16000), KindParse, "depth"},
	"deep ifs":               {nested(`{{if 1}}`, ``, `{{end}}`, 1000), KindParse, "100 deep"},
	"deep open ifs":          {strings.Repeat(`{{if 1}}`, 2000), KindParse, "EOF"},
	"deep withs":             {nested(`{{with 1}}`, ``, `{{end}}`, 900), KindParse, "100 deep"},
	"deep ranges":            {nested(`{{range 1}}`, ``, `{{end}}`, 850), KindParse, "100 deep"},
	"deep ranges that fail":  {nested(`{{range 1}}`, `{{ fail "x" }}`, `{{end}}`, 100), KindExecution, "error calling fail: x"},
	"deep chains":            {`{{ ` + nested("(", ".a", ").a", 3000) + ` }}`, KindParse, "deep"},
	"long else if":           {`{{if 0}}` + strings.Repeat(`{{else if 0}}`, 1200) + `{{end}}`, ok, ""},
	"long pipe":              {`{{ ""` + strings.Repeat(`|print`, 2500) + ` }}`, ok, ""},
	"many arguments":         {`{{ print ` + strings.Repeat(`1 `, 8000) + `}}`, ok, ""},
	"too long":               {strings.Repeat("x", maxText+1), KindLimit, "16384 characters"},
	"error with a long text": {`{{ range (repeat 1000000 "x") }}{{ end }}`, KindExecution, "can't iterate"},
	"error with a long node": {`{{ range .podName }}` + strings.Repeat("{{ . }}", 2000) + `{{ end }}`, KindExecution, "can't iterate"},
	"number without end":     {`{{ 1` + strings.Repeat("0", 10000) + ` }}`, KindParse, ""},
	"huge exponent":          {`{{ 1e1000000000 }}`, KindParse, ""},
	"complex numbers":        {`{{ printf "%v" 1e308i }}`, ok, ""},
}

func TestHostile(t *testing.T) {
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			out, err := render(a.text, pod())
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			used := after.TotalAlloc - before.TotalAlloc
			t.Logf("%v, %d KiB, %d bytes of output: %v", took, used>>10, len(out), err)
			if took > mostTime || used > mostMemory {
				t.Errorf("took %v and %d MiB, more than %v or %d MiB", took, used>>20, mostTime, mostMemory>>20)
			}
			checkRefusal(t, a, err)
		})
	}
}

func checkRefusal(t *testing.T, a attack, err error) {
	t.Helper()
	var e *Error
	switch {
	case a.kind == ok && err == nil:
	case !errors.As(err, &e):
		t.Errorf("got %v, want kind %q", err, a.kind)
	case e.Kind != a.kind || !strings.Contains(e.Msg, a.msg):
		t.Errorf("got %s: %v, want %q: %s", e.Kind, err, a.kind, a.msg)
	case len(e.Msg) > maxMsg || strings.Contains(e.Msg, stepName+" ") && a.kind != KindParse:
		t.Errorf("the message is too long or shows planted calls: %v", err)
	}
}

// Every function is run on large arguments of several shapes: none may take
// long for what it is charged.
func TestEveryFunctionPaysForItsTime(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("it measures time")
	}
	args := []string{
		`(repeat 200000 "a")`, `(repeat 100000 "é")`, `(repeat 60000 "a B-")`, `(repeat 100000 "\xff")`, `(repeat 60000 "\"<\n")`,
		`(repeat 60000 "%d")`, `(until 10000)`, `(split "," (repeat 2000 ","))`, `(list (until 100) .labels "x" 1 nil)`, `$`, `3`, `""`, `nil`,
	}
	calls := []string{`%s $d`, `%s $d $d`, `%s "a" $d`, `%s "a" "bb" $d`, `%s 5 $d`, `%s $d 5`, `%s 1 2 $d`}
	for _, f := range Functions() {
		for _, arg := range args {
			for _, call := range calls {
				text := "{{ $d := " + arg + " }}{{ $x := " + fmt.Sprintf(call, f.Name) + " }}"
				if full := fullBudget(t, text); full > time.Second {
					t.Errorf("%s: a full budget of it takes %v", text, full)
				}
			}
		}
	}
}

// fullBudget tells how long the template's functions would run if they used the
// whole budget.
func fullBudget(t *testing.T, text string) time.Duration {
	t.Helper()
	tmpl, err := Compile("key", text)
	if err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for range 8 {
		r, err := tmpl.newRun()
		if err != nil {
			t.Fatal(err)
		}
		r.budget = NewAllowance().budget(time.Minute)
		start := time.Now()
		_, _ = r.execute(pod())
		took := max(0, time.Since(start)-time.Millisecond) // what a call may cost at least
		if best = min(best, took*maxWork/time.Duration(maxWork-r.work+1)); best < time.Second/2 {
			break
		}
	}
	return best
}

// TestTemplatesOfAConfigShareAnAllowance: each of them alone stays within its
// limits, and nothing else may stop the crowd.
func TestTemplatesOfAConfigShareAnAllowance(t *testing.T) {
	for name, text := range map[string]string{
		"steps": `{{ range 45000 }}{{ end }}`,
		"work":  `{{ $x := repeat 1000 "x" }}{{ range 3000 }}{{ $y := print $x }}{{ end }}`,
	} {
		t.Run(name, func(t *testing.T) {
			template, err := Compile("key", text)
			if err != nil {
				t.Fatal(err)
			}
			template.timeout = time.Hour // the counted limits are what this is about
			allowance := NewAllowance()
			for round := range 64 {
				if _, err = template.ExecuteWithin(allowance, nil, 10); err == nil {
					continue
				}
				var bad *Error
				if !errors.As(err, &bad) || bad.Kind != KindLimit {
					t.Fatalf("round %d ends with %v, want a KindLimit", round, err)
				}
				if round < together {
					t.Errorf("stopped in round %d already: %v", round, err)
				}
				if _, err := template.Execute(nil, 10); err != nil {
					t.Errorf("alone it fails, too: %v", err)
				}
				return
			}
			t.Error("64 templates at their limits were not stopped")
		})
	}
}
