// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	warning := func(message string) string {
		text, err := json.Marshal(map[string]any{"passed": true, "outputs": []any{map[string]string{"type": "warning", "message": message}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, tc := range map[string]struct{ printed, want string }{
		"clean":               {`{"passed": true, "outputs": null}`, ""},
		"its own deprecation": {warning(deprecated), ""},
		"a warning":           {warning("csv.Spec.Icon not specified"), "warning: csv.Spec.Icon not specified"},
		"an error":            {`{"passed": false, "outputs": [{"type": "error", "message": "no name"}]}`, "error: no name"},
		"failed, but silent":  {`{"passed": false, "outputs": null}`, "has problems"},
		"nothing":             {``, "reading the result"},
	} {
		t.Run(name, func(t *testing.T) {
			err := judge([]byte(tc.printed))
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("judge() = %v, want %q", err, tc.want)
			}
		})
	}
}
