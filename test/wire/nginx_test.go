// SPDX-License-Identifier: Apache-2.0

// Needs nginx.

package wire_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

const nginxConfig = `daemon off;
master_process off;
error_log %[1]s/error.log;
pid %[1]s/pid;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	sendfile on;
	keepalive_requests 100000;
	server {
		listen 8080;
		listen [::]:8080;
		root %[1]s/www;
	}
}
`

// nginx makes a pod that serves /name, its name, and /large, size bytes.
func (s *stage) nginx(n *dataplane, name string, large []byte) *world.Pod {
	s.t.Helper()
	pod := world.Must(n.AddPod(name))(s.t)
	dir := s.t.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	if err := errors.Join(
		os.Mkdir(filepath.Join(dir, "www"), 0o755), os.Chmod(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "www", "name"), []byte(name), 0o644),
		os.WriteFile(filepath.Join(dir, "www", "large"), large, 0o644),
		os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir), 0o644),
	); err != nil {
		s.t.Fatal(err)
	}
	world.Must(pod.Start("nginx", "-c", config, "-e", filepath.Join(dir, "error.log")))(s.t)
	err := world.Wait(10*time.Second, func() error {
		conn, err := unseen(pod, "tcp", net.JoinHostPort(pod.IPv4().String(), "8080"))
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
		s.t.Fatalf("nginx in %s: %v; it says %s", name, err, log)
	}
	return pod
}

// browser is a client outside that keeps connections alive.
func (s *stage) browser(keepAlive bool) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: !keepAlive, MaxIdleConnsPerHost: 8,
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) { return s.dial(network, addr) },
	}}
}

func get(c *http.Client, url string) ([]byte, error) {
	resp, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return body, err
}

// A real server behind a LoadBalancer Service, as an ingress controller runs
// it: kept connections, new ones, and large answers, while endpoints change.
func TestARealNginxLosesNoRequest(t *testing.T) {
	for _, forwarding := range []service.Forwarding{service.SNAT, service.DSR} {
		for _, m := range []mode{modes[0], modes[3]} {
			t.Run(fmt.Sprintf("%s, mode %d", m.name, forwarding), func(t *testing.T) {
				t.Parallel()
				s := newStage(t, m)
				large := random(24 << 20)
				sum := sha256.Sum256(large)
				near, far := s.nginx(s.here, "nginx1", large), s.nginx(s.there, "nginx2", large)
				svc := webService()
				svc.Forwarding = forwarding
				s.serve(svc, near, far)
				var total atomic.Int64
				var clients sync.WaitGroup
				stop := make(chan struct{})
				for _, addr := range []string{"203.0.113.10:80", "[2001:db8:1b::10]:80"} {
					for _, keepAlive := range []bool{true, false} {
						clients.Go(func() {
							c := s.browser(keepAlive)
							defer c.CloseIdleConnections()
							for {
								select {
								case <-stop:
									return
								default:
								}
								if _, err := get(c, "http://"+addr+"/name"); err != nil {
									t.Errorf("%s, keep-alive %v: %v", addr, keepAlive, err)
									return
								}
								total.Add(1)
							}
						})
					}
				}
				for i := range 10 { // draining endpoints keep what they have
					s.serve(svc, []*world.Pod{near, far}[i%2])
					s.serve(svc, near, far)
					c := s.browser(false)
					body, err := get(c, "http://203.0.113.10:80/large")
					if err != nil || sha256.Sum256(body) != sum {
						t.Errorf("a large answer: %d bytes, %v", len(body), err)
					}
				}
				close(stop)
				clients.Wait()
				if total.Load() == 0 {
					t.Error("no request was made")
				}
				t.Logf("%d requests", total.Load())
			})
		}
	}
}
