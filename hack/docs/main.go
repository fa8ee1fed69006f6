// SPDX-License-Identifier: Apache-2.0

// Command docs writes the pages of docs/ that the code knows best: settings,
// metrics, and the functions of templates. What stands around their tables is
// beside it, in NAME.md.tmpl.
package main

import (
	"embed"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/podconfigmap/podconfigmap-controller/controllers/nodeagent"
	"github.com/podconfigmap/podconfigmap-controller/internal/agent"
	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
	"github.com/podconfigmap/podconfigmap-controller/internal/manager"
	"github.com/podconfigmap/podconfigmap-controller/internal/podtemplate"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

//go:embed *.md.tmpl
var heads embed.FS

// group is one table of functions.
type group struct {
	Name      string
	Functions []podtemplate.Function
}

// facts are what the pages are made of.
type facts struct {
	Variables  []settings.Variable
	Metrics    []telemetry.Definition
	ErrorTypes []apifailure.Type
	// AgentMetrics and AgentErrorTypes are those of the node agent.
	AgentMetrics    []telemetry.Definition
	AgentErrorTypes []nodeagent.ErrorType
	Functions       []group
}

func main() {
	log.SetFlags(0)
	if err := write("docs"); err != nil {
		log.Fatal(err)
	}
}

func write(folder string) error {
	pages, err := template.New("").Funcs(template.FuncMap{"cell": cell, "code": code}).ParseFS(heads, "*.md.tmpl")
	if err != nil {
		return fmt.Errorf("reading the pages' texts: %w", err)
	}
	facts := collect()
	for _, page := range pages.Templates() {
		var out strings.Builder
		if err := page.Execute(&out, facts); err != nil {
			return fmt.Errorf("making %s: %w", page.Name(), err)
		}
		path := filepath.Join(folder, strings.TrimSuffix(page.Name(), ".tmpl"))
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			return fmt.Errorf("writing a page: %w", err)
		}
	}
	return nil
}

func collect() facts {
	f := facts{Variables: settings.Variables(), Metrics: manager.Metrics(), ErrorTypes: apifailure.Types(),
		AgentMetrics: agent.Metrics(), AgentErrorTypes: nodeagent.ErrorTypes()}
	for _, function := range podtemplate.Functions() {
		at := slices.IndexFunc(f.Functions, func(g group) bool { return g.Name == function.Group })
		if at < 0 {
			at = len(f.Functions)
			f.Functions = append(f.Functions, group{Name: function.Group})
		}
		f.Functions[at].Functions = append(f.Functions[at].Functions, function)
	}
	slices.SortFunc(f.Functions, func(a, b group) int { return strings.Compare(a.Name, b.Name) })
	return f
}

// cell makes text fit for a table of Markdown.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", ">", "&gt;").Replace(text)
}

// code is a cell with code in it, or nothing.
func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(text, "|", `\|`) + "`"
}
