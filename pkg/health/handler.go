// SPDX-License-Identifier: Apache-2.0

package health

import (
	"encoding/json"
	"net/http"
	"time"
)

// Handler answers /healthz, /livez and /readyz.
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, q := range []Question{Health, Live, Ready} {
		mux.HandleFunc(string(q), func(w http.ResponseWriter, _ *http.Request) {
			r := p.Answer(q, time.Now())
			p.count(Answers{q, r.Code()})
			h := w.Header()
			h.Set("Content-Type", "application/json")
			h.Set("X-Content-Type-Options", "nosniff")
			w.WriteHeader(r.Code())
			// A Report can always be marshalled, and a peer that has gone
			// cannot be told.
			body, _ := json.Marshal(r)
			_, _ = w.Write(body)
		})
	}
	return mux
}

func (p *Proxy) count(a Answers) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[a]++
}
