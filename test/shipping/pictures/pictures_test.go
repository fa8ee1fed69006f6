// SPDX-License-Identifier: Apache-2.0

// Package pictures takes the pictures of docs/monitoring.md: a real browser draws
// each row of the dashboard, from what a real Prometheus has seen of managers and
// agents at work. `make pictures` runs it.
package pictures

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"flag"
	"fmt"
	"html/template"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/monitored"
)

var (
	chart   = flag.String("chart", "build/pictures/node_modules/uplot/dist", "the chart library's folder, from the repository's root")
	folder  = flag.String("folder", "docs/images", "where the pictures go, from the repository's root")
	browser = flag.String("browser", "chromium", "the browser")
	length  = flag.Duration("length", 6*time.Minute, "how long the cluster works first")
)

const (
	step = 5 * time.Second
	// settling is what the first rates need.
	settling = 40 * time.Second
	// width of a picture, and the height of the grid's lines, in pixels, as in
	// page.js; headHeight is what stands above the panels.
	width, lineHeight, headHeight = 1192, 30, 40
	// maxBytes is how big a picture may be.
	maxBytes = 150 << 10
)

// files of the pictures, by the title of the row.
var files = map[string]string{
	"At a glance": "glance", "Convergence": "convergence", "Errors": "errors", "Managers": "managers",
	"Node agents (with EBPF_ENABLED)": "agents", "Pods (of configs with metricsExport)": "pods",
}

//go:embed page
var pages embed.FS

// panel is a panel's JSON as it is, and what of it matters here.
type panel struct {
	raw     json.RawMessage
	Title   string
	Type    string
	GridPos struct{ Y, H int }
	Targets []struct {
		Expr, LegendFormat string
		Instant            bool
	}
}

// drawn is a panel with its data, as page.js wants it.
type drawn struct {
	Panel  json.RawMessage `json:"panel"`
	Series []series        `json:"series"`
}

type series struct {
	Label  string    `json:"label"`
	Times  []float64 `json:"times"`
	Values []float64 `json:"values"`
}

// row is a row of the dashboard, as page.js wants it.
type row struct {
	title  string
	panels []panel
	From   int64   `json:"from"`
	To     int64   `json:"to"`
	Step   float64 `json:"step"`
	Panels []drawn `json:"panels"`
}

func TestPictures(t *testing.T) {
	root, err := harness.Root()
	must(t, err)
	rows := readRows(t)
	style := look(t, root)
	w := monitored.Start(t, step)
	time.Sleep(settling + *length)
	to := time.Now()
	for _, r := range rows {
		// All of them of the same minutes.
		r.To, r.Step = to.Unix(), step.Seconds()
		r.From = to.Add(-*length).Unix()
		r.ask(t, w.Prometheus)
		r.draw(t, root, style)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readRows reads the dashboard's rows.
func readRows(t *testing.T) (rows []*row) {
	t.Helper()
	_, text, err := monitored.ReadDashboard()
	must(t, err)
	var d struct{ Panels []json.RawMessage }
	must(t, json.Unmarshal(text, &d))
	for _, raw := range d.Panels {
		p := panel{raw: raw}
		must(t, json.Unmarshal(raw, &p))
		if p.Type == "row" {
			rows = append(rows, &row{title: p.Title})
			continue
		}
		last := rows[len(rows)-1]
		last.panels = append(last.panels, p)
	}
	if len(rows) != len(files) {
		t.Fatalf("the dashboard has %d rows, %d have a picture", len(rows), len(files))
	}
	return rows
}

// ask asks Prometheus for the data of all panels.
func (r *row) ask(t *testing.T, p *monitored.Prometheus) {
	t.Helper()
	variables := map[string]string{"namespace": ".*", "node": ".*", "__rate_interval": "30s"}
	for _, one := range r.panels {
		d := drawn{Panel: one.raw}
		for _, target := range one.Targets {
			expr, err := monitored.Substitute(target.Expr, variables)
			must(t, err)
			found, err := p.QueryRange(t.Context(), expr, time.Since(time.Unix(r.From, 0)), step)
			if target.Instant {
				found, err = p.Query(t.Context(), expr)
			}
			must(t, err)
			for _, s := range found {
				d.Series = append(d.Series, plain(s, target.LegendFormat))
			}
		}
		if len(d.Series) == 0 {
			t.Errorf("panel %s has no data", one.Title)
		}
		r.Panels = append(r.Panels, d)
	}
}

var labelInLegend = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

// plain makes a series fit for JSON, which has no NaN.
func plain(s monitored.Series, legend string) series {
	out := series{Label: labelInLegend.ReplaceAllStringFunc(legend, func(use string) string {
		return s.Labels[labelInLegend.FindStringSubmatch(use)[1]]
	})}
	for i, v := range s.Values {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			out.Times, out.Values = append(out.Times, s.Times[i]), append(out.Values, v)
		}
	}
	return out
}

// look is what all pages have in common.
func look(t *testing.T, root string) map[string]any {
	t.Helper()
	text := func(bytes []byte, err error) string {
		must(t, err)
		return string(bytes)
	}
	library := filepath.Join(root, *chart)
	return map[string]any{
		"Chart":      template.JS(text(os.ReadFile(filepath.Join(library, "uPlot.iife.min.js")))),
		"ChartStyle": template.CSS(text(os.ReadFile(filepath.Join(library, "uPlot.min.css")))),
		"Script":     template.JS(text(pages.ReadFile("page/page.js"))),
		"Style":      template.CSS(text(pages.ReadFile("page/page.css"))),
	}
}

// draw has the browser draw the row, and checks its picture.
func (r *row) draw(t *testing.T, root string, page map[string]any) {
	t.Helper()
	page["Title"], page["Row"] = r.title, r
	parsed, err := template.ParseFS(pages, "page/page.html")
	must(t, err)
	var out bytes.Buffer
	must(t, parsed.Execute(&out, page))
	html := filepath.Join(t.TempDir(), "row.html")
	must(t, os.WriteFile(html, out.Bytes(), 0o644))

	dom := browse(t, html, r.height(), "--dump-dom")
	if want := fmt.Sprintf("<title>drawn: %d</title>", len(r.panels)); !strings.Contains(dom, want) {
		t.Fatalf("the row %s was not drawn to its end: open %s", r.title, html)
	}
	picture := filepath.Join(root, *folder, files[r.title]+".png")
	must(t, os.MkdirAll(filepath.Dir(picture), 0o755))
	browse(t, html, r.height(), "--screenshot="+picture)
	text, err := os.ReadFile(picture)
	must(t, err)
	whole, err := png.Decode(bytes.NewReader(text))
	must(t, err)
	if size := whole.Bounds().Size(); size != (image.Point{X: width, Y: r.height()}) {
		t.Errorf("%s is %v, want %d×%d", picture, size, width, r.height())
	}
	out.Reset()
	must(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, paletted(whole)))
	must(t, os.WriteFile(picture, out.Bytes(), 0o644))
	if out.Len() > maxBytes {
		t.Errorf("%s has %d bytes, want at most %d", picture, out.Len(), maxBytes)
	}
	t.Logf("%s: %d KiB", picture, out.Len()>>10)
}

// paletted reduces a picture to its 256 most frequent colors, which drawings are
// hardly different for, and half as big.
func paletted(whole image.Image) *image.Paletted {
	bounds := whole.Bounds()
	counts := map[color.Color]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			counts[whole.At(x, y)]++
		}
	}
	colors := slices.SortedFunc(maps.Keys(counts), func(a, b color.Color) int {
		return cmp.Or(counts[b]-counts[a], cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	few := image.NewPaletted(bounds, color.Palette(colors[:min(256, len(colors))]))
	draw.Draw(few, bounds, whole, bounds.Min, draw.Src)
	return few
}

// height of the row's picture, in pixels.
func (r *row) height() int {
	top, end := r.panels[0].GridPos.Y, 0
	for _, p := range r.panels {
		end = max(end, p.GridPos.Y+p.GridPos.H)
	}
	return headHeight + (end-top)*lineHeight
}

// browse opens a page in the browser, which has a profile of its own.
func browse(t *testing.T, page string, height int, what string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), monitored.Patience)
	defer cancel()
	// --no-sandbox: root cannot have one; the page is ours and needs no network.
	command := exec.CommandContext(ctx, *browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
		"--user-data-dir="+t.TempDir(), fmt.Sprintf("--window-size=%d,%d", width, height), "--virtual-time-budget=5000", what, "file://"+page)
	var errors bytes.Buffer
	command.Stderr = &errors
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", what, err, errors.String())
	}
	return string(out)
}
