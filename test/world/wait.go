// SPDX-License-Identifier: Apache-2.0

package world

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

const (
	// TimeScaleEnv multiplies every deadline of the package, for machines
	// that are slow: emulated ones, say.
	TimeScaleEnv = "PORTOLAN_TIME_SCALE"
	// poll is how often a condition is looked at.
	poll = 5 * time.Millisecond
	// patience is how long Eventually waits before scaling. It only matters
	// to tests that fail.
	patience = 10 * time.Second
)

// Scaled multiplies a deadline by the environment's time scale; values below 1
// and nonsense count as 1. Wait, Eventually, Timeout and the limits of processes
// are scaled already.
func Scaled(d time.Duration) time.Duration {
	scale, err := strconv.ParseFloat(os.Getenv(TimeScaleEnv), 64)
	if err != nil || scale < 1 {
		return d
	}
	return time.Duration(float64(d) * scale)
}

// Wait calls f until it returns nil, and returns its last error when limit
// (scaled) has gone by. f is called at least once.
func Wait(limit time.Duration, f func() error) error {
	limit = Scaled(limit)
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
		time.Sleep(poll)
	}
}
