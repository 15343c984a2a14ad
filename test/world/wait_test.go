// SPDX-License-Identifier: Apache-2.0

package world_test

import (
	"syscall"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

func TestDeadlinesAreScaledByTheEnvironment(t *testing.T) {
	for scale, want := range map[string]time.Duration{
		"": time.Second, "10": 10 * time.Second, "2.5": 2500 * time.Millisecond, "0.5": time.Second, "-3": time.Second, "much": time.Second,
	} {
		t.Setenv(world.TimeScaleEnv, scale)
		if got := world.Scaled(time.Second); got != want {
			t.Errorf("by %q a second becomes %v, want %v", scale, got, want)
		}
	}
	client, _ := pair(t, "tcp:80")
	t.Setenv(world.TimeScaleEnv, "5")
	r := client.Dial("tcp", "203.0.113.1:80", world.Timeout(shortly))
	if r.Errno != syscall.ETIMEDOUT || r.Took < 5*shortly {
		t.Errorf("a dial that nobody answers: %v, want it to take %v", r, 5*shortly)
	}
}
