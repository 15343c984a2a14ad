// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"portolan.dev/portolan/pkg/service"
)

// Servers listen on addresses of 127.0.0.0/8 that no other test uses, and on
// ::1 with a port that was free a moment ago.

func newServers(t *testing.T, healthy func() bool) *Servers {
	t.Helper()
	s := NewServers(Config{Healthy: healthy, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	return s
}

func yes() bool { return true }

// freePort returns a port that nobody listens on at addr.
func freePort(t *testing.T, addr string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// answer is what a load balancer is told.
type answer struct {
	code   int
	body   string
	header http.Header
}

func get(t *testing.T, addr string, port uint16, path string) answer {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(fmt.Sprintf("http://%s%s", net.JoinHostPort(addr, fmt.Sprint(port)), path))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{r.StatusCode, string(body), r.Header}
}

func refused(t *testing.T, addr string, port uint16) {
	t.Helper()
	if c, err := net.Dial("tcp", net.JoinHostPort(addr, fmt.Sprint(port))); err == nil {
		c.Close()
		t.Errorf("%s port %d still answers", addr, port)
	}
}

func TestAHealthCheckIsAnsweredAsKubeProxyAnswersIt(t *testing.T) {
	t.Parallel()
	const addr = "127.66.0.1"
	port := freePort(t, addr)
	var healthy atomic.Bool
	s := newServers(t, healthy.Load)
	for _, c := range []struct {
		local   int
		healthy bool
		code    int
	}{{2, true, 200}, {0, true, 503}, {2, false, 503}, {0, false, 503}, {1, true, 200}} {
		healthy.Store(c.healthy)
		if problems := s.Sync([]Check{{web, service.IPv4, port, c.local}}, addrs(addr)); len(problems) > 0 {
			t.Fatal(problems)
		}
		for _, path := range []string{"/", "/healthz", "/any/path?x=1"} {
			got := get(t, addr, port, path)
			want := fmt.Sprintf(`{
	"service": {
		"namespace": "prod",
		"name": "web"
	},
	"localEndpoints": %d,
	"serviceProxyHealthy": %v
}`, c.local, c.healthy)
			if got.code != c.code || got.body != want {
				t.Errorf("%+v: answer %d, want %d:\n%s\nwant:\n%s", c, got.code, c.code, got.body, want)
			}
			for key, value := range map[string]string{
				"X-Load-Balancing-Endpoint-Weight": fmt.Sprint(c.local),
				"Content-Type":                     "application/json", "X-Content-Type-Options": "nosniff",
			} {
				if got.header.Get(key) != value {
					t.Errorf("%+v: header %s is %q, want %q", c, key, got.header.Get(key), value)
				}
			}
		}
	}
}

func TestServersFollowChecksAndAddresses(t *testing.T) {
	t.Parallel()
	const a, b = "127.66.1.1", "127.66.1.2"
	port, other := freePort(t, a), freePort(t, b)
	s := newServers(t, yes)
	sync := func(checks []Check, on ...string) {
		t.Helper()
		if problems := s.Sync(checks, addrs(on...)); len(problems) > 0 {
			t.Fatal(problems)
		}
	}
	sync([]Check{{web, service.IPv4, port, 1}}, a)
	refused(t, b, port)
	sync([]Check{{web, service.IPv4, port, 1}}, a, b)
	get(t, a, port, "/")
	get(t, b, port, "/")
	sync([]Check{{web, service.IPv4, port, 1}}, b)
	refused(t, a, port)
	sync([]Check{{web, service.IPv4, other, 1}}, b)
	refused(t, b, port)
	// The port moves to another Service in one change.
	api := service.Name{Namespace: "prod", Name: "api"}
	sync([]Check{{api, service.IPv4, other, 3}}, b)
	if got := get(t, b, other, "/"); !strings.Contains(got.body, `"api"`) || !strings.Contains(got.body, `"localEndpoints": 3`) {
		t.Errorf("the other Service's check says %s", got.body)
	}
	sync(nil, b)
	refused(t, b, other)
}

func TestOneAddressGivesWayToAllAndBack(t *testing.T) {
	t.Parallel()
	const addr = "127.66.2.1"
	port := freePort(t, "0.0.0.0")
	s := newServers(t, yes)
	for _, on := range []string{addr, "0.0.0.0", addr} {
		if problems := s.Sync([]Check{{web, service.IPv4, port, 1}}, addrs(on)); len(problems) > 0 {
			t.Fatal(problems)
		}
		get(t, addr, port, "/")
	}
}

func TestEachFamilyAnswersForItself(t *testing.T) {
	t.Parallel()
	const v4, v6 = "127.66.3.1", "::1"
	port := freePort(t, v6)
	s := newServers(t, yes)
	checks := []Check{{web, service.IPv4, port, 2}, {web, service.IPv6, port, 0}}
	if problems := s.Sync(checks, addrs(v4, v6)); len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := get(t, v4, port, "/"); got.code != 200 {
		t.Errorf("IPv4 answers %d: %s", got.code, got.body)
	}
	if got := get(t, v6, port, "/"); got.code != 503 {
		t.Errorf("IPv6 answers %d: %s", got.code, got.body)
	}
}

func TestABusyPortIsNamedAndTakenOnceItIsFree(t *testing.T) {
	t.Parallel()
	const addr, free = "127.66.4.1", "127.66.4.2"
	holder, err := net.Listen("tcp4", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	port := netip.MustParseAddrPort(holder.Addr().String()).Port()
	s := newServers(t, yes)
	checks := []Check{{web, service.IPv4, port, 1}}
	problems := s.Sync(checks, addrs(addr, free))
	want := fmt.Sprintf("healthCheckNodePort %d is not answered, so that a load balancer passes this node by: "+
		"listen on %s:%d: bind: address already in use; end what holds the port: it is tried again", port, addr, port)
	if len(problems) != 1 || problems[0].Object != "Service prod/web" || problems[0].Reason != service.ReasonHealthPort || problems[0].Message != want {
		t.Errorf("problems are %v\nwant %s", problems, want)
	}
	get(t, free, port, "/") // the other address is answered
	holder.Close()
	if problems = s.Sync(checks, addrs(addr, free)); len(problems) > 0 {
		t.Error(problems)
	}
	get(t, addr, port, "/")
}

func TestCloseFreesEveryPort(t *testing.T) {
	t.Parallel()
	const addr = "127.66.5.1"
	port := freePort(t, addr)
	s := newServers(t, yes)
	if problems := s.Sync([]Check{{web, service.IPv4, port, 1}}, addrs(addr)); len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := s.Listening(); !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("%s:%d", addr, port))}) {
		t.Errorf("listening on %v", got)
	}
	s.Close()
	refused(t, addr, port)
}
