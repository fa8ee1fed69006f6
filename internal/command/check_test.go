// SPDX-License-Identifier: Apache-2.0

package command

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestCheck(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" && asked.Add(1) > 2 || r.URL.Path == "/fine" {
			return
		}
		http.Error(w, "not yet", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	for name, tc := range map[string]struct {
		args      []string
		out, want string
	}{
		"all answer":       {[]string{server.URL + "/fine", server.URL + "/late"}, server.URL + "/late answers\n", ""},
		"one never does":   {[]string{"--patience=2s", server.URL + "/fine", server.URL + "/never"}, server.URL + "/fine answers\n", "/never for up to 2s: it answers 503 Service Unavailable: not yet"},
		"nobody is there":  {[]string{"--patience=2s", "http://127.0.0.1:1/"}, "", "connection refused"},
		"not a URL at all": {[]string{"--patience=1s", "::"}, "", "missing protocol scheme"},
		"no time":          {[]string{"--patience=0s", server.URL + "/fine"}, "", "there was no time to ask"},
		"nothing to ask":   {nil, "", "requires at least 1 arg"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := run("", append([]string{"check"}, tc.args...)...)
			if !strings.HasSuffix(out, tc.out) || (err == nil) != (tc.want == "") {
				t.Errorf("printed %q, error %v", out, err)
			}
			if err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}
