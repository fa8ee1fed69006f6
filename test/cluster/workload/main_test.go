// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

func listening(t *testing.T) (s *server, tcp, udp string) {
	t.Helper()
	s = &server{name: "somebody", received: map[string]int{}, loops: map[string]*loop{}}
	for network, port := range map[string]*string{"tcp": &tcp, "udp": &udp} {
		*port = freePort(t, network)
		listen := s.listenTCP
		if network == "udp" {
			listen = s.listenUDP
		}
		if err := listen(*port); err != nil {
			t.Fatal(err)
		}
	}
	return s, tcp, udp
}

func freePort(t *testing.T, network string) string {
	t.Helper()
	var address string
	if network == "udp" {
		conn, err := net.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		address = conn.LocalAddr().String()
	} else {
		listener, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		address = listener.Addr().String()
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestServersAreReached(t *testing.T) {
	s, tcp, udp := listening(t)
	for network, port := range map[string]string{"tcp": tcp, "udp": udp} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			result, told := try(network, net.JoinHostPort(host, port), 10*time.Second)
			if result != reached || told != "somebody" {
				t.Errorf("%s by %s: %s, %s", network, host, result, told)
			}
		}
		if got := s.received[network+"/"+port]; got != 2 {
			t.Errorf("%s: received %d, want 2", network, got)
		}
	}
}

func TestNobodyIsThere(t *testing.T) {
	port := freePort(t, "tcp")
	var got tries
	got.add(try("tcp", "127.0.0.1:"+port, 10*time.Second))
	if got.Results[refused] != 1 || !strings.HasSuffix(got.Missed[refused], got.Last) || got.Last == "" {
		t.Errorf("%+v", got)
	}
}

func TestControl(t *testing.T) {
	s, tcp, _ := listening(t)
	web := httptest.NewServer(s.handler())
	defer web.Close()
	ask := func(path string, query url.Values, into any) string {
		t.Helper()
		response, err := web.Client().Get(web.URL + path + "?" + query.Encode())
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if into != nil {
			if err := json.NewDecoder(response.Body).Decode(into); err != nil {
				t.Fatalf("%s: %s: %v", path, response.Status, err)
			}
		}
		return response.Status
	}
	target := url.Values{"network": {"tcp"}, "address": {"127.0.0.1:" + tcp}, "timeout": {"10s"}, "count": {"3"}, "every": {"1ms"}, "id": {"a"}}
	var got tries
	ask("/dial", target, &got)
	if got.Results[reached] != 3 || got.Last != "somebody" {
		t.Errorf("/dial: %+v", got)
	}
	received := map[string]int{}
	if ask("/received", nil, &received); received["tcp/"+tcp] != 3 {
		t.Errorf("/received: %v", received)
	}
	ask("/loop", target, nil)
	for end := time.Now().Add(time.Minute); got.Results[reached] < 10; time.Sleep(time.Millisecond) {
		ask("/loop/count", target, &got)
		if time.Now().After(end) {
			t.Fatalf("/loop: %+v", got)
		}
	}
	loops := map[string]tries{}
	if ask("/loops", nil, &loops); len(loops) != 1 || loops["a"].Results[reached] < got.Results[reached] || len(loops["a"].Missed) > 0 {
		t.Errorf("/loops: %+v", loops)
	}
	before := got.Results[reached]
	ask("/loop/stop", target, &got)
	received = map[string]int{}
	if ask("/received", nil, &received); got.Results[reached] < before || received["tcp/"+tcp] != 3+got.Results[reached] {
		t.Errorf("/loop/stop: %+v, after %d; received %v", got, before, received)
	}
	if status := ask("/loop/stop", target, nil); !strings.HasPrefix(status, "400") {
		t.Errorf("a loop that was stopped twice: %s", status)
	}
	if status := ask("/loop/count", target, nil); !strings.HasPrefix(status, "400") {
		t.Errorf("a loop that was stopped: %s", status)
	}
	if status := ask("/dial", url.Values{"timeout": {"soon"}}, nil); !strings.HasPrefix(status, "400") {
		t.Errorf("no duration: %s", status)
	}
	var m made
	if ask("/calls", url.Values{"number": {"39"}, "count": {"5"}}, &m); m.Count != 5 {
		t.Errorf("/calls: %+v", m)
	}
}

func TestCallsRefuse(t *testing.T) {
	for _, args := range [][]string{{"39"}, {"x", "1"}, {"39", "x"}, {"100000", "1"}} {
		if _, err := calls(args); err == nil {
			t.Errorf("calls %v: no error", args)
		}
	}
}

func TestUnknownCommand(t *testing.T) {
	for _, args := range [][]string{nil, {"dance"}, {"exit"}, {"exit", "soon"}} {
		if err := run(args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
