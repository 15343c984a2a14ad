// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/health"
	"portolan.dev/portolan/pkg/metrics"
	"portolan.dev/portolan/pkg/reconcile"
)

func TestWhatCannotBeWrittenIsSickWhateverElseIsWritten(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		unfinished unfinished
		sick       bool
	}{
		"nothing fails":     {unfinished{}, false},
		"the node fails":    {unfinished{node: errors.New("write device")}, true},
		"growth fails":      {unfinished{ports: errors.New("switch to larger tables")}, true},
		"both of them fail": {unfinished{node: errors.New("write device"), ports: errors.New("switch to larger tables")}, true},
	} {
		a := &Agent{reconciler: &reconcile.Reconciler{}, proxy: health.NewProxy(false), recorder: metrics.NewRecorder(), synced: true, unfinished: c.unfinished}
		a.proxy.Update(time.Now())
		for range 2 { // a change comes, and something is looked at
			a.proxy.Queue(time.Now())
			if err := a.noteProgress(); (err != nil) != c.sick {
				t.Errorf("%s: progress is %v", name, err)
			}
		}
		report := a.proxy.Answer(health.Live, time.Now().Add(health.StaleAfter))
		if report.Healthy == c.sick {
			t.Errorf("%s: after a minute /livez says %+v", name, report)
		}
	}
}
