// SPDX-License-Identifier: Apache-2.0

package podtemplate

import "testing"

func BenchmarkExecute(b *testing.B) {
	for name, text := range map[string]string{
		"fields":    `{{ .podName }}-{{ .labels.app }}`,
		"functions": `{{ get .labels "tier" | default "none" | upper }}`,
		"loop":      `{{ range .containers }}{{ .name }}={{ .image }};{{ end }}`,
		"json":      `{{ (fromJson .annotations.config).port }}`,
	} {
		tmpl, err := Compile("key", text)
		if err != nil {
			b.Fatal(err)
		}
		data := pod()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tmpl.Execute(data, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile("key", `{{ .podName }}-{{ get .labels "tier" | default "none" }}`); err != nil {
			b.Fatal(err)
		}
	}
}

// The cost of a template's first run, and of one more that runs at the same time.
func BenchmarkNewRun(b *testing.B) {
	tmpl, err := Compile("key", `{{ .podName }}-{{ get .labels "tier" | default "none" }}`)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tmpl.newRun(); err != nil {
			b.Fatal(err)
		}
	}
}
