// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// row is one figure. Limit is what it is compared with, Ratio is Value through
// Limit (or, of paired, a median of such); both are absent where there is nothing to
// compare with.
type row struct {
	Name  string   `json:"name"`
	Value float64  `json:"value"`
	Unit  string   `json:"unit"`
	Limit *float64 `json:"limit"`
	Ratio *float64 `json:"ratio"`

	wanted string
}

type table struct{ rows []row }

// add adds a figure that is compared with nothing.
func (t *table) add(name string, value float64, unit string) {
	t.rows = append(t.rows, row{Name: name, Value: value, Unit: unit})
	say("%s: %.5g %s", name, value, unit)
}

// compare adds a figure and its limit; wanted says, for people, what the ratio
// or the value should be.
func (t *table) compare(name string, value float64, unit string, limit float64, wanted string) {
	r := row{Name: name, Value: value, Unit: unit, Limit: &limit, wanted: wanted}
	if limit != 0 {
		ratio := value / limit
		r.Ratio = &ratio
	}
	t.rows = append(t.rows, r)
	say("%s: %.5g %s, limit %.5g", name, value, unit, limit)
}

// paired is compare with a ratio of its own: the median of ratios that were each
// measured at one time.
func (t *table) paired(name string, value float64, unit string, limit, ratio float64, wanted string) {
	t.rows = append(t.rows, row{Name: name, Value: value, Unit: unit, Limit: &limit, Ratio: &ratio, wanted: wanted})
	say("%s: %.5g %s, limit %.5g, ratio %.3f", name, value, unit, limit, ratio)
}

func (t *table) print(to io.Writer) {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tVALUE\tUNIT\tLIMIT\tRATIO\tWANTED")
	for _, r := range t.rows {
		fmt.Fprintf(w, "%s\t%.5g\t%s\t%s\t%s\t%s\n", r.Name, r.Value, r.Unit, orDash("%.5g", r.Limit), orDash("%.3f", r.Ratio), r.wanted)
	}
	w.Flush()
}

func orDash(format string, value *float64) string {
	if value == nil {
		return "-"
	}
	return fmt.Sprintf(format, *value)
}

func (t *table) write(path string) error {
	text, err := json.MarshalIndent(t.rows, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the folder of the results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}
