// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// controllers are those that make Services work, by their long names.
func controllers() string {
	return strings.Join([]string{
		"daemonset-controller",
		"deployment-controller",
		"endpoints-controller",
		"endpointslice-controller",
		"endpointslice-mirroring-controller",
		"garbage-collector-controller",
		"namespace-controller",
		"node-ipam-controller",
		"pod-garbage-collector-controller",
		"replicaset-controller",
		"serviceaccount-controller",
	}, ",")
}

func (p *Plane) apiServerArgs() []string {
	dir, ip := p.cfg.Dir, p.cfg.Address.String()
	key := filepath.Join(dir, "sa.key")
	return []string{
		"kube-apiserver",
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcdPort),
		"--cert-dir=" + filepath.Join(dir, "certs"),
		"--bind-address=" + ip,
		"--advertise-address=" + ip,
		fmt.Sprintf("--secure-port=%d", p.port),
		"--service-cluster-ip-range=" + ServiceCIDR4 + "," + ServiceCIDR6,
		"--service-node-port-range=30000-32767",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + key,
		"--service-account-signing-key-file=" + key,
		"--token-auth-file=" + filepath.Join(dir, "tokens.csv"),
		"--authorization-mode=AlwaysAllow",
		// Pods need no service account tokens: nothing in them is Kubernetes.
		"--disable-admission-plugins=ServiceAccount",
		"--allow-privileged",
	}
}

func (p *Plane) controllerManagerArgs() []string {
	return []string{
		"kube-controller-manager",
		"--kubeconfig=" + p.Kubeconfig(),
		"--authentication-kubeconfig=" + p.Kubeconfig(),
		"--authorization-kubeconfig=" + p.Kubeconfig(),
		"--cert-dir=" + filepath.Join(p.cfg.Dir, "certs-kcm"),
		"--bind-address=" + p.cfg.Address.String(),
		fmt.Sprintf("--secure-port=%d", kcmPort),
		"--leader-elect=false",
		"--use-service-account-credentials=false",
		"--controllers=" + controllers(),
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + ClusterCIDR4 + "," + ClusterCIDR6,
		"--service-cluster-ip-range=" + ServiceCIDR4 + "," + ServiceCIDR6,
		// The defaults (20 requests a second) would make rollouts wait.
		"--kube-api-qps=1000",
		"--kube-api-burst=1000",
	}
}

// writeCredentials writes the service account key, the token file and the
// kubeconfig.
func (p *Plane) writeCredentials() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate service account key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key) // PKCS #8 is refused as a public key file.
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	files := map[string][]byte{
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens.csv": []byte(adminToken + `,admin,admin,"system:masters"` + "\n"),
		"kubeconfig": []byte(Kubeconfig(p.hostPort(p.cfg.Port))),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(p.cfg.Dir, name), content, 0o600); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
	}
	return nil
}

// Kubeconfig is the text of an admin's kubeconfig for the API server that is
// found at address, "IP:PORT".
func Kubeconfig(address string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {server: "https://%s", insecure-skip-tls-verify: true}
users:
- name: admin
  user: {token: %s}
contexts:
- name: test
  context: {cluster: test, user: admin}
current-context: test
`, address, adminToken)
}

// waitHealthy asks url until it answers 200, the child ends or ctx does.
func (p *Plane) waitHealthy(ctx context.Context, child *process, url string) error {
	client := &http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{
			DialContext:       p.cfg.Dial,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		},
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		last := askHealth(ctx, client, url)
		if last == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-child.Done():
			return fmt.Errorf("wait for %s: process ended; end of its log:\n%s", child.name, child.tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last answer: %w); end of its log:\n%s",
				child.name, ctx.Err(), last, child.tail())
		}
	}
}

func askHealth(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
