// SPDX-License-Identifier: Apache-2.0

package neighbours_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"time"
)

// unseen asks a server from a pod's namespace but outside its cgroup: no
// socket program sees it, as with a virtual machine in the pod, and its packets
// are translated on the pod's device.
func unseen(p *pod, addr string) error {
	var conn net.Conn
	err := p.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: 3 * time.Second}).Dial("tcp", addr)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, "who"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, p.Name()+" ") {
		err = fmt.Errorf("answer %q, want one of %s", line, p.Name())
	}
	return err
}
