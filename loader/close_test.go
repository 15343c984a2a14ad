// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2, and bpffs at /sys/fs/bpf; tells most with -race.

package loader

import "testing"

func TestStaleSocketsMayBeClosedWhileProgramsAreReplaced(t *testing.T) {
	l := open(t, place(t))
	defer l.Close()
	set := tablesFor(t)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if _, err := l.CloseStaleUDP(""); err != nil {
				ended <- err
				return
			}
		}
	}()
	for range 3 {
		if err := l.Attach(set); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
