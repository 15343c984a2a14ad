// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"portolan.dev/portolan/test/world"
)

// resolverEnv makes the test binary a DNS client: its value is a query in JSON.
const resolverEnv = "PORTOLAN_TEST_RESOLVER"

// transport is how a query travels.
type transport string

const (
	udpConnected   transport = "udp, connected"
	udpUnconnected transport = "udp, unconnected"
	tcp            transport = "tcp"
)

// query is one question to the only DNS server its client knows.
type query struct {
	Server    string
	Transport transport
	Name      string
	Type      uint16
}

// answer is the data of the records that came back, in order of text.
type answer struct {
	Records []string
	Error   string
}

// resolverMain turns the process into a DNS client when it was started as one,
// and then never returns. A query has to come from a process in the pod's
// cgroup, so the test starts itself again there.
func resolverMain() {
	text := os.Getenv(resolverEnv)
	if text == "" {
		return
	}
	var q query
	var a answer
	err := json.Unmarshal([]byte(text), &q)
	if err == nil {
		a.Records, err = q.ask()
	}
	if err != nil {
		a.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func (q query) ask() ([]string, error) {
	msg := new(dns.Msg).SetQuestion(dns.Fqdn(q.Name), q.Type)
	reply, err := q.exchange(msg)
	if err != nil {
		return nil, err
	}
	if reply.Rcode != dns.RcodeSuccess {
		return nil, errors.New(dns.RcodeToString[reply.Rcode])
	}
	var records []string
	for _, rr := range reply.Answer {
		text := strings.TrimPrefix(rr.String(), rr.Header().String())
		records = append(records, dns.TypeToString[rr.Header().Rrtype]+" "+text)
	}
	slices.Sort(records)
	return records, nil
}

func (q query) exchange(msg *dns.Msg) (*dns.Msg, error) {
	const timeout = 2 * time.Second
	if q.Transport == udpUnconnected {
		return q.exchangeUnconnected(msg, timeout)
	}
	network := "udp"
	if q.Transport == tcp {
		network = "tcp"
	}
	client := dns.Client{Net: network, Timeout: timeout}
	reply, _, err := client.Exchange(msg, q.Server)
	return reply, err
}

// exchangeUnconnected uses sendto and recvfrom, as musl's resolver does. It
// drops, as that does, an answer from any address but the server's.
func (q query) exchangeUnconnected(msg *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	server, err := netip.ParseAddrPort(q.Server)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	wire, err := msg.Pack()
	if err != nil {
		return nil, err
	}
	if _, err := conn.WriteToUDPAddrPort(wire, server); err != nil {
		return nil, err
	}
	buf := make([]byte, dns.MaxMsgSize)
	n, from, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		return nil, err
	}
	if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != server {
		return nil, fmt.Errorf("answer from %v, want it from %v", from, server)
	}
	reply := new(dns.Msg)
	return reply, reply.Unpack(buf[:n])
}

// resolve asks q from a process in the pod.
func resolve(pod *world.Pod, q query) ([]string, error) {
	text, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), resolverEnv+"="+string(text))
	proc, err := pod.StartCmd(cmd)
	if err != nil {
		return nil, err
	}
	if err := proc.Wait(10 * time.Second); err != nil {
		return nil, fmt.Errorf("resolve %s: %w: %s", q.Name, err, proc.Output())
	}
	var a answer
	if err := json.Unmarshal([]byte(proc.Output()), &a); err != nil {
		return nil, fmt.Errorf("resolve %s: %w: %s", q.Name, err, proc.Output())
	}
	if a.Error != "" {
		return nil, fmt.Errorf("resolve %s over %s: %s", q.Name, q.Transport, a.Error)
	}
	return a.Records, nil
}
