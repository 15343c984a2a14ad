// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// listening is a server that only takes connections.
func listening(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// deaf is an address that refuses.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// silent is an address that never answers those who call heed first.
const silent = "127.66.0.9:443"

// heed makes a dialer wait for silent as for a host that drops packets.
func (d *dialer) heed() {
	d.net.ControlContext = func(ctx context.Context, _, address string, _ syscall.RawConn) error {
		if address == silent {
			<-ctx.Done()
		}
		return ctx.Err()
	}
}

func TestTheConfiguredAddressIsTakenWhenItAnswers(t *testing.T) {
	t.Parallel()
	server, other := listening(t), listening(t)
	d := newDialer("https://"+server.String(), []netip.AddrPort{other}, false)
	d.headStart = time.Hour
	conn, err := d.Dial(t.Context(), "tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != server.String() {
		t.Errorf("connected to %v, want %v", conn.RemoteAddr(), server)
	}
}

func TestARememberedEndpointIsTakenWhenTheConfiguredAddressIsNot(t *testing.T) {
	t.Parallel()
	server := listening(t)
	for name, configured := range map[string]string{"it refuses": deaf(t).String(), "it is silent": silent} {
		d := newDialer("https://"+configured, []netip.AddrPort{deaf(t), server, deaf(t)}, true)
		d.headStart = time.Millisecond
		d.heed()
		conn, err := d.Dial(t.Context(), "tcp", configured)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if conn.RemoteAddr().String() != server.String() {
			t.Errorf("%s: connected to %v, want %v", name, conn.RemoteAddr(), server)
		}
		conn.Close()
	}
}

func TestAProxyIsNotPassedBy(t *testing.T) {
	t.Parallel()
	d := newDialer("https://api.example:6443", []netip.AddrPort{listening(t)}, false)
	if conn, err := d.Dial(t.Context(), "tcp", deaf(t).String()); err == nil {
		conn.Close()
		t.Error("connected past a proxy that refuses")
	}
}

func TestWithoutAnyAddressTheErrorNamesTheMend(t *testing.T) {
	t.Parallel()
	at := deaf(t).String()
	_, err := newDialer("https://"+at, nil, true).Dial(t.Context(), "tcp", at)
	if err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") || !strings.Contains(err.Error(), at) {
		t.Errorf("in a cluster: %v", err)
	}
	if _, err = newDialer("https://"+at, nil, false).Dial(t.Context(), "tcp", at); err == nil || strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("with a kubeconfig: %v", err)
	}
}

func TestDialingEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	d := newDialer("https://"+silent, []netip.AddrPort{netip.MustParseAddrPort(silent)}, false)
	d.heed()
	if conn, err := d.Dial(ctx, "tcp", silent); err == nil {
		conn.Close()
		t.Error("connected although the context has ended")
	}
}

func TestTheAddressOfTheConfigurationIsThatOfTheTransport(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"https://10.96.0.1:443":  "10.96.0.1:443",
		"https://10.96.0.1":      "10.96.0.1:443",
		"https://[fd00::1]:6443": "[fd00::1]:6443",
		"https://[fd00::1]/path": "[fd00::1]:443",
		"http://api.example":     "api.example:80",
	} {
		if got := newDialer(host, nil, false).address; got != want {
			t.Errorf("%s is dialed as %s, want %s", host, got, want)
		}
	}
}

func TestASourceReachesItsAPIServerByARememberedEndpointAndTrustsItsName(t *testing.T) {
	a := &apiServer{t: t, status: http.StatusCreated}
	server := httptest.NewUnstartedServer(a)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	endpoint := netip.MustParseAddrPort(server.Listener.Addr().String())
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	configured := deaf(t).Port()
	a.follow(fmt.Sprintf(`server: "https://127.0.0.1:%d", certificate-authority-data: %s`, configured, ca), endpoint)
	if err := a.source.PostEvent(t.Context(), about("m", false)); err != nil || len(a.events) != 1 {
		t.Errorf("%d Events were posted: %v", len(a.events), err)
	}
	if a.protocol != "HTTP/2.0" {
		t.Errorf("watches share no connection: %s is spoken", a.protocol)
	}
	// The certificate is not of that name, whoever answers.
	a.follow(fmt.Sprintf(`server: "https://127.0.0.2:%d", certificate-authority-data: %s`, configured, ca), endpoint)
	if err := a.source.PostEvent(t.Context(), about("m", false)); err == nil || !strings.Contains(err.Error(), "certificate is valid for") {
		t.Errorf("an endpoint with the certificate of another name: %v", err)
	}
}
