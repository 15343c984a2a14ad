// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// Tests are not parallel: klog and client-go have one logger and one place for
// metrics a process, which New sets.

// apiServer answers as an API server does that has the Service shop/store and
// takes Events with a status. What was posted is in events.
type apiServer struct {
	t      *testing.T
	status int
	events []*eventsv1.Event
	// protocol of the last request.
	protocol string
	source   *Source
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	a := &apiServer{t: t, status: http.StatusCreated}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	a.follow(fmt.Sprintf("server: %q", server.URL))
	return a
}

// follow makes a source of a kubeconfig with this cluster.
func (a *apiServer) follow(cluster string, remembered ...netip.AddrPort) {
	t := a.t
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {%s}}]
users: [{name: u, user: {}}]
`, cluster)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	a.source, err = New(Config{Kubeconfig: kubeconfig, NodeName: "worker-1", Logger: slog.New(slog.DiscardHandler), APIServers: remembered})
	if err != nil {
		t.Fatal(err)
	}
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	a.protocol = r.Proto
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/api/v1/namespaces/shop/services":
		items := ""
		if r.URL.Query().Get("fieldSelector") == "metadata.name=store" {
			items = `{"metadata":{"namespace":"shop","name":"store","uid":"d6f0"}}`
		}
		fmt.Fprintf(w, `{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[%s]}`, items)
	case r.Method == http.MethodPost && r.URL.Path == "/apis/events.k8s.io/v1/namespaces/shop/events":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			a.t.Error(err)
		}
		obj, _, err := serializer.NewCodecFactory(a.source.scheme).UniversalDeserializer().Decode(body, nil, nil)
		if err != nil {
			a.t.Error(err)
		} else {
			a.events = append(a.events, obj.(*eventsv1.Event))
		}
		reason := map[int]string{http.StatusConflict: "AlreadyExists", http.StatusForbidden: "Forbidden", http.StatusServiceUnavailable: "ServiceUnavailable"}[a.status]
		w.WriteHeader(a.status)
		if a.status >= 400 {
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, a.status)
			return
		}
		fmt.Fprint(w, `{"kind":"Event","apiVersion":"events.k8s.io/v1","metadata":{"namespace":"shop","name":"x"}}`)
	default:
		a.t.Errorf("unexpected request %s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusNotFound)
	}
}

func about(note string, onNode bool) source.Event {
	return source.Event{Service: service.Name{Namespace: "shop", Name: "store"}, Reason: "FrontendConflict", Note: note, OnNode: onNode}
}

func TestAnEventIsWhatAnAPIServerTakesAndKubectlFinds(t *testing.T) {
	a := newAPIServer(t)
	long := strings.Repeat("ä", 1000)
	if err := a.source.PostEvent(t.Context(), about(long, true)); err != nil {
		t.Fatal(err)
	}
	e := a.events[0]
	if e.Regarding.Kind != "Service" || e.Regarding.Namespace != "shop" || e.Regarding.Name != "store" || e.Regarding.UID != "d6f0" {
		t.Errorf("it regards %+v", e.Regarding)
	}
	if e.Type != "Warning" || e.Reason != "FrontendConflict" || e.Action == "" || e.ReportingController != "portolan.dev/agent" ||
		e.ReportingInstance != "worker-1" || e.EventTime.IsZero() || e.Namespace != "shop" || !strings.HasPrefix(e.Name, "store.") {
		t.Errorf("it is %+v", e)
	}
	if len(e.Note) > longestNote || !utf8.ValidString(e.Note) || !strings.HasPrefix(long, e.Note) || len(e.Note) < longestNote-2 {
		t.Errorf("of a note of %d bytes it has %d", len(long), len(e.Note))
	}
}

func TestWhatIsSaidTwiceIsOneEvent(t *testing.T) {
	a := newAPIServer(t)
	other := newAPIServer(t)
	other.source.cfg.NodeName = "worker-2"
	names := func(e source.Event) (here, there string) {
		t.Helper()
		if err := errors.Join(a.source.PostEvent(t.Context(), e), other.source.PostEvent(t.Context(), e)); err != nil {
			t.Fatal(err)
		}
		return a.events[len(a.events)-1].Name, other.events[len(other.events)-1].Name
	}
	if here, there := names(about("m", false)); here != there {
		t.Errorf("two nodes say one thing by %s and %s", here, there)
	}
	if here, there := names(about("m", true)); here == there {
		t.Errorf("what is so on each of two nodes is one Event, %s", here)
	}
	if one, _ := names(about("m", false)); one == a.events[1].Name {
		t.Error("different things have one name")
	}
	a.status = http.StatusConflict
	if err := a.source.PostEvent(t.Context(), about("m", false)); err != nil {
		t.Errorf("an Event that is there already: %v", err)
	}
}

func TestAnEventThatIsNotTakenSaysWhy(t *testing.T) {
	a := newAPIServer(t)
	a.status = http.StatusForbidden
	if err := a.source.PostEvent(t.Context(), about("m", false)); !errors.Is(err, source.ErrMayNotPost) {
		t.Errorf("forbidden: %v", err)
	}
	a.status = http.StatusServiceUnavailable
	if err := a.source.PostEvent(t.Context(), about("m", false)); err == nil || errors.Is(err, source.ErrMayNotPost) || !strings.Contains(err.Error(), "Service shop/store") {
		t.Errorf("unavailable: %v", err)
	}
	gone := about("m", false)
	gone.Service.Name = "gone"
	before := len(a.events)
	if err := a.source.PostEvent(t.Context(), gone); err != nil || len(a.events) != before {
		t.Errorf("a Service that is gone: %v, %d Events", err, len(a.events)-before)
	}
}
