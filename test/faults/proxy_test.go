// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// fault is what the proxy does to one call; the zero value does nothing.
type fault struct {
	kind kind
	// late tells that the API server has written what was asked for before the
	// client is told otherwise.
	late bool
}

type kind string

const (
	conflict  kind = "409"
	throttled kind = "429" // with Retry-After
	broken    kind = "500"
	hang      kind = "hang"  // no answer until the client gives up
	reset     kind = "reset" // of the call's stream
)

func (f fault) String() string {
	if f.late {
		return string(f.kind) + " after the write"
	}
	return string(f.kind)
}

// hangLimit ends calls that a client never gives up: lists and watches of
// informers have no time-out of their own.
const hangLimit = 6 * time.Second

// proxy stands between managers and the API server, and does what decide says.
// Watches stream through it.
type proxy struct {
	server  *httptest.Server
	forward *httputil.ReverseProxy
	conns   *connections

	mu     sync.Mutex
	decide func(*http.Request) fault
	counts map[string]int
	writes []time.Time // of ConfigMaps, as they arrived
}

func startProxy(t *testing.T, c *harness.Cluster) *proxy {
	t.Helper()
	config := rest.CopyConfig(c.Config())
	target, err := url.Parse(config.Host)
	must(t, err)
	tlsConfig, err := rest.TLSConfigFor(config)
	must(t, err)
	p := &proxy{decide: func(*http.Request) fault { return fault{} }, counts: map[string]int{}}
	silent := log.New(io.Discard, "", 0)
	p.forward = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true},
		FlushInterval: -1, // each event of a watch at once
		ErrorLog:      silent,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p.server = httptest.NewUnstartedServer(p)
	p.conns = &connections{Listener: p.server.Listener, open: map[net.Conn]bool{}}
	p.server.Listener = p.conns
	p.server.Config.ErrorLog = silent
	p.server.EnableHTTP2 = true
	p.server.StartTLS()
	t.Cleanup(func() {
		p.conns.cut()
		p.server.Close()
	})
	return p
}

// kubeconfig writes one that leads through the proxy.
func (p *proxy) kubeconfig(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
	config := clientcmdapi.NewConfig()
	config.Clusters["proxy"] = &clientcmdapi.Cluster{Server: p.server.URL, CertificateAuthorityData: authority}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: c.Config().BearerToken}
	config.Contexts["proxy"] = &clientcmdapi.Context{Cluster: "proxy", AuthInfo: "admin"}
	config.CurrentContext = "proxy"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	must(t, clientcmd.WriteToFile(*config, path))
	return path
}

// set changes what becomes of the calls from now on.
func (p *proxy) set(decide func(*http.Request) fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decide = decide
}

// judge decides about a call and keeps count.
func (p *proxy) judge(r *http.Request) fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.decide(r)
	p.counts["calls"]++
	f.late = f.late && r.Method != http.MethodGet // only what was written is a puzzle
	if f.kind != "" {
		p.counts[f.String()]++
	}
	if writesConfigMap(r) {
		p.writes = append(p.writes, time.Now())
	}
	return f
}

func writesConfigMap(r *http.Request) bool {
	return r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/configmaps")
}

// count is how often something happened.
func (p *proxy) count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[what]
}

// summary lists all counts.
func (p *proxy) summary() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, what := range slices.Sorted(maps.Keys(p.counts)) {
		all = append(all, fmt.Sprintf("%s: %d", what, p.counts[what]))
	}
	return strings.Join(all, ", ")
}

// writesAfter is how many writes of ConfigMaps arrived after a moment.
func (p *proxy) writesAfter(moment time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, at := range p.writes {
		if at.After(moment) {
			n++
		}
	}
	return n
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.judge(r)
	if f.kind == "" {
		p.forward.ServeHTTP(w, r)
		return
	}
	if f.late {
		p.forward.ServeHTTP(httptest.NewRecorder(), r)
	}
	switch f.kind {
	case conflict:
		reason := "Conflict"
		if r.Method == http.MethodPost {
			reason = "AlreadyExists"
		}
		answer(w, http.StatusConflict, reason)
	case throttled:
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusTooManyRequests, "TooManyRequests")
	case broken:
		answer(w, http.StatusInternalServerError, "InternalError")
	case hang:
		select {
		case <-r.Context().Done():
		case <-time.After(hangLimit):
		}
		panic(http.ErrAbortHandler)
	case reset:
		panic(http.ErrAbortHandler)
	}
}

func answer(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"message":"injected"}`, reason, code)
}

// connections is a listener that can reset all connections it accepted.
type connections struct {
	net.Listener
	mu   sync.Mutex
	open map[net.Conn]bool
}

func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn] = true
	return &tracked{conn, c}, nil
}

type tracked struct {
	net.Conn
	of *connections
}

func (t *tracked) Close() error {
	t.of.mu.Lock()
	delete(t.of.open, t.Conn)
	t.of.mu.Unlock()
	return t.Conn.Close()
}

// cut resets every connection, as a load balancer that restarts does, and tells
// how many there were.
func (c *connections) cut() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.open)
	for conn := range c.open {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, not an orderly end
		}
		_ = conn.Close()
	}
	clear(c.open)
	return n
}
