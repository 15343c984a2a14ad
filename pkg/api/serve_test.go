// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// told is a provider with something to tell.
type told struct{}

func (told) Status() Status { return Status{Meta: Meta{Version, "Status"}, Node: "worker-2"} }
func (told) Services() ServiceList {
	return ServiceList{Meta: Meta{Version, "ServiceList"}, Items: []Service{{Name: "web"}}}
}
func (told) Tables() Tables {
	return Tables{Meta: Meta{Version, "Tables"}, ServiceCIDRs: []string{"10.96.0.0/12"}}
}

// serving runs Serve until the test or stop ends it, and waits for an answer.
func serving(t *testing.T, path string) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, path, Handler(told{})) }()
	stop = func() error { cancel(); return <-done }
	client := NewClient(path, 5*time.Second)
	for {
		_, err := client.Status()
		if err == nil {
			return stop
		}
		if !errors.Is(err, ErrNoAgent) {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Fatalf("serve: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestAClientReadsWhatTheAgentTells(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "agent.sock")
	stop := serving(t, path)
	client := NewClient(path, 5*time.Second)
	if s, err := client.Status(); err != nil || s.Node != "worker-2" || s.APIVersion != Version || s.Kind != "Status" {
		t.Errorf("status %+v: %v", s, err)
	}
	if s, err := client.Services(); err != nil || len(s.Items) != 1 || s.Items[0].Name != "web" {
		t.Errorf("services %+v: %v", s, err)
	}
	if s, err := client.Tables(); err != nil || len(s.ServiceCIDRs) != 1 {
		t.Errorf("tables %+v: %v", s, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestOnlyTheOwnerMayUseTheSocketAndItGoesWithTheAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	stop := serving(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: %v", info.Mode(), err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestTheSocketOfADeadAgentIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := NewClient(path, time.Second).Status(); !errors.Is(err, ErrNoAgent) {
		t.Errorf("asking a dead agent: %v", err)
	}
	if err := serving(t, path)(); err != nil {
		t.Error(err)
	}
}

func TestTheSocketOfALiveAgentIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	stop := serving(t, path)
	err := Serve(t.Context(), path, Handler(told{}))
	if err == nil || !strings.Contains(err.Error(), "--socket "+path+": another agent answers there") {
		t.Errorf("a second agent gets %v", err)
	}
	if _, err := NewClient(path, 5*time.Second).Status(); err != nil {
		t.Errorf("the first agent does not answer any more: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestAFileThatIsNoSocketIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), path, Handler(told{})); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("serving on a file gets %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "data" {
		t.Errorf("the file holds %q: %v", text, err)
	}
}

func TestWithoutASocketThereIsNoAgent(t *testing.T) {
	if _, err := NewClient(filepath.Join(t.TempDir(), "none"), time.Second).Tables(); !errors.Is(err, ErrNoAgent) {
		t.Errorf("got %v, want ErrNoAgent", err)
	}
}

func TestAnAgentThatDoesNotAnswerInTimeIsNotAnAbsentOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	mute, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	if _, err := NewClient(path, 50*time.Millisecond).Status(); err == nil || errors.Is(err, ErrNoAgent) {
		t.Errorf("got %v, want a timeout", err)
	}
}
