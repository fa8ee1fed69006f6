// SPDX-License-Identifier: Apache-2.0

// Package docs checks that the hand-written pages tell the truth.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

const api = "../api/v1alpha1"

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEveryFieldIsDocumented(t *testing.T) {
	for kind, least := range map[string]int{"podconfigmapconfig": 20, "ebpfnode": 15} {
		crdFile := "podconfig.example.com_" + kind + "s.yaml"
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.Unmarshal([]byte(read(t, filepath.Join("../config/crd/bases", crdFile))), crd); err != nil {
			t.Fatal(err)
		}
		page, found := read(t, kind+".md"), 0
		root := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
		for _, part := range []string{"spec", "status"} {
			for _, path := range leaves(root.Properties[part], "") {
				found++
				if !strings.Contains(page, "`"+path+"`") && !strings.Contains(page, "`"+path[strings.LastIndex(path, ".")+1:]+"`") {
					t.Errorf("%s.md does not tell of %s.%s", kind, part, path)
				}
			}
		}
		if found < least {
			t.Errorf("only %d fields found in the CRD of %s", found, kind)
		}
	}
}

// leaves lists the paths of a schema's fields; a condition's own are standard.
func leaves(schema apiextensionsv1.JSONSchemaProps, path string) []string {
	if schema.Items != nil && schema.Items.Schema != nil && path != "conditions" {
		return append([]string{path}, leaves(*schema.Items.Schema, path)...)
	}
	if len(schema.Properties) == 0 || path == "conditions" {
		if path == "" {
			return nil
		}
		return []string{path}
	}
	var all []string
	for name, property := range schema.Properties {
		all = append(all, leaves(property, strings.TrimPrefix(path+"."+name, "."))...)
	}
	return all
}

func TestEveryReasonIsExplained(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(api, "conditions.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, found := read(t, "troubleshooting.md")+read(t, "podconfigmapconfig.md")+read(t, "ebpfnode.md"), 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if found++; !strings.Contains(page, "`"+value+"`") {
			t.Errorf("no page explains %s", value)
		}
		return true
	})
	if found < 15 {
		t.Errorf("only %d conditions and reasons found", found)
	}
}

// Events have the reasons of conditions, or such as stand in the call or in a
// constant of its package.
func TestEveryEventIsExplained(t *testing.T) {
	page, calls, reasons := read(t, "troubleshooting.md"), 0, 0
	folders, err := filepath.Glob("../controllers/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		files, constants := parsed(t, folder)
		for _, file := range files {
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) < 6 {
					return true
				}
				if called, ok := call.Fun.(*ast.SelectorExpr); !ok || called.Sel.Name != "Eventf" {
					return true
				}
				calls++
				reason := ""
				switch arg := call.Args[3].(type) {
				case *ast.BasicLit:
					reason = arg.Value
				case *ast.Ident:
					reason = constants[arg.Name]
				default:
					return true // a condition's: TestEveryReasonIsExplained
				}
				if text, err := strconv.Unquote(reason); err != nil || !strings.Contains(page, "`"+text+"`") {
					t.Errorf("%s: no page explains the Event %s (%v)", folder, reason, err)
				}
				reasons++
				return true
			})
		}
	}
	if calls < 10 || reasons < 7 {
		t.Errorf("only %d Events and %d reasons of their own found", calls, reasons)
	}
}

// parsed returns a package's files but its tests, and its constants of text.
func parsed(t *testing.T, folder string) (files []*ast.File, constants map[string]string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	constants = map[string]string{}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Names) == 1 && len(spec.Values) == 1 {
				if value, ok := spec.Values[0].(*ast.BasicLit); ok {
					constants[spec.Names[0].Name] = value.Value
				}
			}
			return true
		})
	}
	return files, constants
}

var (
	link       = regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	makeTarget = regexp.MustCompile("(?m)(?:^|`)make ((?:[a-z][a-z0-9-]* ?)+)")
)

func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "decisions/*.md", "../*.md"} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, matches...)
	}
	return all
}

func TestLinksLead(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
}

func TestMakeTargetsExist(t *testing.T) {
	makefiles := read(t, "../Makefile")
	included, err := filepath.Glob("../hack/make/*.mk")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range included {
		makefiles += read(t, file)
	}
	for _, page := range pages(t) {
		for _, m := range makeTarget.FindAllStringSubmatch(read(t, page), -1) {
			for target := range strings.FieldsSeq(m[1]) {
				if !regexp.MustCompile(`(?m)^` + target + `:`).MatchString(makefiles) {
					t.Errorf("%s names `make %s`, which does not exist", page, target)
				}
			}
		}
	}
}
