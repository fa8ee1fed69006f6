// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// proxy stands between a manager and the API server, delays calls, and counts
// how many are under way at once.
type proxy struct {
	kubeconfig string
	delay      func(verb, path string) time.Duration

	mu        sync.Mutex
	now, most map[string]int // of calls that are held up, by verb
}

// newProxy starts a proxy; delay tells how long a call is held up before it is
// passed on.
func newProxy(t *testing.T, delay func(verb, path string) time.Duration) *proxy {
	t.Helper()
	config := cluster.Config()
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{delay: delay, now: map[string]int{}, most: map[string]int{}}
	forward := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1, // watches
		ErrorLog:      log.New(io.Discard, "", 0),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.hold(r)
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	text := clientcmdapi.NewConfig()
	text.Clusters["c"] = &clientcmdapi.Cluster{Server: server.URL}
	text.Contexts["x"] = &clientcmdapi.Context{Cluster: "c"}
	text.CurrentContext = "x"
	p.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*text, p.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *proxy) hold(r *http.Request) {
	wait := p.delay(r.Method, r.URL.Path)
	if wait == 0 {
		return
	}
	// Only when the body has been read does the server notice that the client left.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // it left already
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	p.count(r.Method, 1)
	defer p.count(r.Method, -1)
	select {
	case <-time.After(wait):
	case <-r.Context().Done():
	}
}

func (p *proxy) count(verb string, change int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now[verb] += change
	p.most[verb] = max(p.most[verb], p.now[verb])
}

// atOnce tells how many calls were held up at once at most.
func (p *proxy) atOnce(verb string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.most[verb]
}

// statusEvent is a config's status, and when the watch brought it.
type statusEvent struct {
	at     time.Time
	status v1alpha1.PodConfigMapConfigStatus
}

// statuses reads a watch of configs.
func statuses(t *testing.T, watch io.Reader) <-chan statusEvent {
	t.Helper()
	out := make(chan statusEvent, 100)
	go func() {
		decoder := json.NewDecoder(watch)
		for {
			var event struct{ Object v1alpha1.PodConfigMapConfig }
			if decoder.Decode(&event) != nil {
				return // the test ended
			}
			out <- statusEvent{time.Now(), event.Object.Status}
		}
	}()
	return out
}
