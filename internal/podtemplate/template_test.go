// SPDX-License-Identifier: Apache-2.0

package podtemplate

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func pod() map[string]any {
	return map[string]any{
		"podName": "web-0", "namespace": "shop", "uid": "8f1c", "nodeName": "node-a", "phase": "Running",
		"podIP": "10.0.0.7", "podIPs": []string{"10.0.0.7", "fd00::7", "10.0.0.10"}, "hostIP": "192.168.0.1", "hostIPs": []string{"192.168.0.1"},
		"serviceAccountName": "default",
		"labels": map[string]string{
			"app": "web", "app.kubernetes.io/name": "shop-web", "replicas": "3", "empty": "",
		},
		"annotations": map[string]string{"config": `{"port":8080,"big":10000000,"ratio":0.5,"hosts":["a","b"]}`, "bad": "a\xffb"},
		"owner":       map[string]string{"kind": "StatefulSet", "name": "web"},
		"containers": []map[string]string{
			{"name": "main", "image": "registry.example/shop/web:1.2"}, {"name": "proxy", "image": "proxy:3"},
		},
		"startTime": "2026-01-02T03:04:05Z", "qosClass": "Burstable", "pcmcName": "settings",
	}
}

// unclocked compiles a template that only the counted limits stop: how a
// failing test fails must not depend on how busy the machine is.
func unclocked(text string) (*Template, error) {
	t, err := Compile("key", text)
	if err == nil {
		t.timeout = time.Hour
	}
	return t, err
}

func render(text string, data map[string]any) (string, error) {
	t, err := unclocked(text)
	if err != nil {
		return "", err
	}
	return t.Execute(data, 1<<20)
}

var ordinary = map[string]string{
	``:                                 "",
	`plain text`:                       "plain text",
	`{{ .podName }}-{{ .labels.app }}`: "web-0-web",
	`{{ index .labels "app.kubernetes.io/name" }}`:                                                "shop-web",
	`{{ index .labels "none" }}`:                                                                  "",
	`{{ get .labels "none" | default "none" }}`:                                                   "none",
	`{{ get .labels "app" | default "none" }}`:                                                    "web",
	`{{ default "none" .labels.empty }}`:                                                          "none",
	`{{ if hasKey .labels "empty" }}yes{{ end }}`:                                                 "yes",
	`{{ with get .labels "none" }}{{ . }}{{ else }}-{{ end }}`:                                    "-",
	`{{ get .owner "kind" | required "no owner" | lower }}/{{ .owner.name }}`:                     "statefulset/web",
	`{{ range .containers }}{{ .name }}={{ base .image }};{{ end }}`:                              "main=web:1.2;proxy=proxy:3;",
	`{{ range $i, $c := .containers }}{{ $i }}{{ $c.name }} {{ end }}`:                            "0main 1proxy ",
	`{{ range $k, $v := .labels }}{{ $k }}={{ $v | quote }},{{ end }}`:                            `app="web",app.kubernetes.io/name="shop-web",empty="",replicas="3",`,
	`{{ range .podIPs }}{{ if contains ":" . }}{{ continue }}{{ end }}{{ . }} {{ end }}`:          "10.0.0.7 10.0.0.10 ",
	`{{ range .podIPs }}{{ . }}{{ break }}{{ end }}`:                                              "10.0.0.7",
	`{{ range list }}x{{ else }}none{{ end }}`:                                                    "none",
	`{{ range 3 }}{{ . }}{{ end }}`:                                                               "012",
	`{{ range $i := until 3 }}{{ $i }}{{ end }}`:                                                  "012",
	`{{ $n := 0 }}{{ range .podIPs }}{{ $n = add $n 1 }}{{ end }}{{ $n }}`:                        "3",
	`{{ sortAlpha .podIPs | join "," }} {{ join "," .podIPs }}`:                                   "10.0.0.10,10.0.0.7,fd00::7 10.0.0.7,fd00::7,10.0.0.10",
	`{{ (fromJson .annotations.config).port }}`:                                                   "8080",
	`{{ (fromJson .annotations.config).big }}`:                                                    "10000000",
	`{{ (fromJson .annotations.config).ratio }}`:                                                  "0.5",
	`{{ (fromJson .annotations.config).hosts | toJson }}`:                                         `["a","b"]`,
	`{{ pick .labels "app" "none" | toJson }}`:                                                    `{"app":"web"}`,
	`{{ omit .labels "app" "empty" "replicas" | toRawJson }}`:                                     `{"app.kubernetes.io/name":"shop-web"}`,
	`{{ keys .owner | join "," }} {{ values .owner | join "," }}`:                                 "kind,name StatefulSet,web",
	`{{ dict "a" 1 "b" "x" | toPrettyJson }}`:                                                     "{\n  \"a\": 1,\n  \"b\": \"x\"\n}",
	`{{ int .labels.replicas | mul 2 | add 1 }} {{ div 7 2 }} {{ mod 7 2 }}`:                      "7 3 1",
	`{{ round 2.345 1 }} {{ ceil 1.2 }} {{ floor "1.8" }} {{ max 1 3 2 }}`:                        "2.3 2 1 3",
	`{{ printf "%s:%04d %5.1f%% %v" .podName 7 1.25 true }}`:                                      "web-0:0007   1.2% true",
	`{{ print "a" 1 2 "b" }}{{ println "x" 1 }}`:                                                  "a1 2bx 1\n",
	`{{ .podName | upper | replace "-" "_" }}`:                                                    "WEB_0",
	`{{ "a\nb" | indent 2 }}{{ "c" | nindent 1 }}`:                                                "  a\n  b\n c",
	`{{ trunc 4 "aéé" }}|{{ trunc -4 "aéé" }}|{{ trunc 9 "é" }}`:                                  "aé|éé|é",
	`{{ substr 0 2 "aéb" }}|{{ substr 2 -1 "aéb" }}|{{ substr 1 3 "abcd" }}`:                      "a|éb|bc",
	`{{ slice .podName 0 3 }} {{ slice .podIPs 1 2 }} {{ slice .podName 4 }}`:                     "web [fd00::7] 0",
	`{{ (split "-" .podName)._1 }} {{ splitList "-" .podName | last }}`:                           "0 0",
	`{{ ternary "y" "n" (eq .phase "Running" "Pending") }}`:                                       "y",
	`{{ coalesce "" .labels.empty .podName }} {{ any "" 0 }} {{ all 1 "a" }}`:                     "web-0 false true",
	`{{ and .podName .nodeName }} {{ or "" .nodeName }} {{ not "" }}`:                             "node-a node-a true",
	`{{ and false (index (list) 5) }}`:                                                            "false",
	`{{ b64enc "a" }} {{ b64dec "YQ==" }} {{ b32enc "a" | b32dec }}`:                              "YQ== a a",
	`{{ sha256sum "" | trunc 8 }} {{ sha512sum "" | trunc 8 }} {{ adler32sum "abc" }}`:            "e3b0c442 cf83e135 38600999",
	`{{ title "it is a-b" }} {{ untitle "It Is" }} {{ nospace " a é " }}`:                         "It Is A-B it is aé",
	`{{ html "<a>" }} {{ urlquery "a b" }}`:                                                       `&lt;a&gt; a+b`,
	`{{ append (list 1) 2 }} {{ prepend (list 1) 0 }} {{ concat .podIPs (list 1) | len }}`:        "[1 2] [0 1] 4",
	`{{ first .podIPs }} {{ rest (list 1 2) }} {{ initial (list 1 2) }} {{ reverse (list 1 2) }}`: "10.0.0.7 [2] [1] [2 1]",
	`{{ compact (list "" 1 0 "a") }} {{ has "fd00::7" .podIPs }} {{ kindOf .labels }}`:            "[1 a] true map",
	`{{ repeat 3 "ab" }} {{ trimAll "/" "/a/" }} {{ quote "a\"" nil 1 }} {{ squote "a" }}`:        `ababab a "a\"" "1" 'a'`,
	`{{- /* a comment */ -}} x`:                                                                   "x",
}

func TestExecute(t *testing.T) {
	for text, want := range ordinary {
		t.Run(text, func(t *testing.T) {
			if got, err := render(text, pod()); err != nil || got != want {
				t.Errorf("got %q (%v), want %q", got, err, want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for text, want := range map[string]Error{
		"a\n{{ .labels.none }}": {Line: 2, Kind: KindExecution, Msg: `at <.labels.none>: map has no entry for key "none"; read keys that may be absent with get and default`},
		`{{ .none }}`:           {Line: 1, Kind: KindExecution, Msg: `no entry for key "none"`},
		"\n\n{{ if }}{{ end }}": {Line: 3, Kind: KindParse, Msg: "missing value for if"},
		"{{ range .podIPs }}":   {Line: 1, Kind: KindParse, Msg: "unexpected EOF"},
		"{{ $x }}":              {Line: 1, Kind: KindParse, Msg: `undefined variable "$x"`},
		"\n{{ now }}":           {Line: 2, Kind: KindParse, Msg: `function "now" is not offered; use one of the documented functions`},
		"{{ _step 1 }}":         {Line: 1, Kind: KindParse, Msg: `function "_step" is not offered`},
		"{{ break }}":           {Line: 1, Kind: KindParse, Msg: "outside {{range}}"},
		"{{ div 1 0 }}":         {Line: 1, Kind: KindExecution, Msg: "division by zero; test the divisor with if"},
		`{{ int "x" }}`:         {Line: 1, Kind: KindExecution, Msg: `"x" is no whole number; use default`},
		"\n{{ get .labels `x` | required `set x` }}": {Line: 2, Kind: KindExecution, Msg: "error calling required: set x"},
		`{{ fail "stop here" }}`:                     {Line: 1, Kind: KindExecution, Msg: "error calling fail: stop here"},
		`{{ .annotations.bad }}`:                     {Kind: KindExecution, Msg: "not valid UTF-8; encode binary values with b64enc"},
		`{{ range .podName }}{{ . }}{{ end }}`:       {Line: 1, Kind: KindExecution, Msg: "range can't iterate over web-0"},
	} {
		t.Run(text, func(t *testing.T) {
			_, err := render(text, pod())
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if got.Key != "key" || got.Line != want.Line || got.Kind != want.Kind || !strings.Contains(got.Msg, want.Msg) {
				t.Errorf("got %#v, want %#v", *got, want)
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	_, err := render("{{ fail `one\ntwo` }}", pod())
	if want := "template \"key\", line 1: at <fail `one two`>: error calling fail: one two"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = render("{{ fail (repeat 1000 `é`) }}", pod())
	if msg := err.Error(); len(msg) > maxMsg+40 || !strings.Contains(msg, "fail") {
		t.Errorf("got %d bytes: %s", len(msg), msg)
	}
}

func TestOutputLimit(t *testing.T) {
	tmpl, err := Compile("key", "{{ .podName }}")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tmpl.Execute(pod(), len("web-0")); got != "web-0" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	var e *Error
	if _, err := tmpl.Execute(pod(), len("web-0")-1); !errors.As(err, &e) || e.Kind != KindOutput {
		t.Errorf("got %v", err)
	}
	// A run that failed is used again.
	if got, err := tmpl.Execute(pod(), 5); got != "web-0" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTimeout(t *testing.T) {
	for _, text := range []string{`{{ upper "a" }}`, `{{ range 2 }}{{ end }}`, `{{ range .labels }}{{ end }}`} {
		tmpl, err := Compile("key", text)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.timeout = -time.Second
		var e *Error
		if _, err := tmpl.Execute(pod(), 10); !errors.As(err, &e) || e.Kind != KindTimeout {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

type explosive struct{}

func (explosive) String() string { panic("boom") }

type fuse map[string]string

func (f fuse) Error() string { return string(f["none"][len(f)]) }

func TestPanicIsError(t *testing.T) {
	for _, text := range []string{`{{ .a }}`, `{{ print .a }}`, `{{ .b }}`, `{{ quote .b }}`} {
		if got, err := render(text, map[string]any{"a": explosive{}, "b": fuse{}}); err == nil && !strings.Contains(got, "PANIC") {
			t.Errorf("%s: got %q", text, got)
		}
	}
	r := run{} // no template: text/template dereferences nil
	if _, err := r.execute(nil); err == nil || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("got %v", err)
	}
}

// Data is shared: functions that build lists and maps must leave theirs alone.
func TestDataUnchanged(t *testing.T) {
	data := pod()
	for _, text := range []string{
		`{{ sortAlpha .podIPs }}{{ reverse .podIPs }}{{ append .podIPs 1 }}{{ prepend .podIPs 1 }}{{ compact .podIPs }}`,
		`{{ append (slice .podIPs 0 1) "x" }}{{ concat (initial .podIPs) (rest .podIPs) }}{{ toStrings .podIPs | sortAlpha }}`,
		`{{ omit .labels "app" }}{{ pick .labels "app" }}{{ keys .labels }}{{ values .labels }}`,
		`{{ $l := list 3 1 2 }}{{ reverse $l }}{{ append $l 4 }}{{ append $l 5 }}{{ if ne (print $l) "[3 1 2]" }}{{ fail "changed" }}{{ end }}`,
	} {
		if _, err := render(text, data); err != nil {
			t.Error(err)
		}
	}
	if !reflect.DeepEqual(data, pod()) {
		t.Errorf("data changed: %v", data)
	}
}

func TestConcurrentUse(t *testing.T) {
	tmpl, err := unclocked(`{{ range .podIPs }}{{ upper $.podName }}{{ end }}`)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			data := pod()
			data["podName"] = fmt.Sprint("p", i)
			want := strings.Repeat(fmt.Sprint("P", i), 3)
			for range 200 {
				if got, err := tmpl.Execute(data, 100); got != want || err != nil {
					t.Errorf("got %q (%v), want %q", got, err, want)
				}
			}
		})
	}
	wg.Wait()
}

// One execution's budget is not the next one's.
func TestBudgetIsPerExecution(t *testing.T) {
	tmpl, err := unclocked(`{{ range 30000 }}{{ end }}{{ len (repeat 500000 "x") }}`)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := tmpl.Execute(pod(), 100); err != nil {
			t.Fatal(err)
		}
	}
}
