// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// apiService is the Service by which everybody reaches the API servers, agents
// included.
var apiService = service.Name{Namespace: "default", Name: "kubernetes"}

// keeper keeps the API servers reachable. An update that leaves their Service
// without a ready endpoint is not believed, as the endpoints that there were
// are the only way to learn of others; it is for one goroutine.
type keeper struct {
	told map[service.Name]*service.EndpointSlice // as the source says
	used map[service.Name]*service.EndpointSlice // as was handed on
}

func newKeeper() *keeper {
	return &keeper{told: map[service.Name]*service.EndpointSlice{}, used: map[service.Name]*service.EndpointSlice{}}
}

// review takes from an update what must not be believed, and adds what was
// taken from an earlier one as soon as it may be. It tells whether the
// endpoints in use may be others now, and whether they are not those told.
func (k *keeper) review(u *source.Update) (changed, kept bool) {
	for name, sl := range u.Slices {
		if name.Namespace != apiService.Namespace {
			continue
		}
		_, known := k.told[name]
		switch {
		case sl != nil && sl.ServiceName() == apiService:
			k.told[name] = sl
		case known:
			delete(k.told, name)
		default:
			continue
		}
		changed = true
	}
	if !changed {
		return false, !equalSlices(k.told, k.used)
	}
	if len(endpoints(k.told)) == 0 && len(endpoints(k.used)) > 0 {
		for name, sl := range u.Slices {
			// A slice that went to another Service is theirs; its name is the
			// key, and what it was for us goes on under it.
			if k.used[name] != nil || sl != nil && sl.ServiceName() == apiService {
				delete(u.Slices, name)
			}
		}
		return false, true
	}
	for name := range k.used {
		if k.told[name] == nil {
			if _, said := u.Slices[name]; !said {
				u.Slices[name] = nil
			}
		}
	}
	for name, sl := range k.told {
		if k.used[name] != sl {
			u.Slices[name] = sl
		}
	}
	k.used = map[service.Name]*service.EndpointSlice{}
	for name, sl := range k.told {
		k.used[name] = sl
	}
	return true, false
}

func equalSlices(a, b map[service.Name]*service.EndpointSlice) bool {
	if len(a) != len(b) {
		return false
	}
	for name, sl := range a {
		if b[name] != sl {
			return false
		}
	}
	return true
}

// endpoints are the addresses at which ready API servers take connections,
// sorted.
func endpoints(all map[service.Name]*service.EndpointSlice) []netip.AddrPort {
	var out []netip.AddrPort
	for _, sl := range all {
		for i := range sl.Endpoints {
			for _, p := range sl.Ports {
				if sl.Endpoints[i].Ready && p.Protocol == service.TCP {
					out = append(out, netip.AddrPortFrom(sl.Endpoints[i].Addr, p.Port))
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// guardAPIServers reviews an update and has the API servers' endpoints
// remembered. The caller holds the lock.
func (a *Agent) guardAPIServers(u *source.Update) {
	changed, kept := a.keeper.review(u)
	var list []service.Problem
	if kept {
		list = append(list, service.Problem{Object: "Service " + apiService.String(), Reason: service.ReasonKept,
			Message: "its slices have no ready endpoint any more; those that it had stay in use, for nobody could learn of others without them"})
	}
	a.problems.set("API servers", list)
	if changed {
		a.apiServers = endpoints(a.keeper.used)
		notify(a.apiServersChanged)
	}
}

// apiServersFile has a line an endpoint.
const apiServersFile = "apiservers"

// rememberAPIServers writes the API servers' endpoints to --state-dir whenever
// they change, until ctx ends. What comes from files is no cluster's.
func (a *Agent) rememberAPIServers(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.apiServersChanged:
		}
		a.mu.Lock()
		known := a.apiServers
		a.mu.Unlock()
		if a.cfg.Options.StateDir == "" || a.cfg.Options.Manifests != "" || len(known) == 0 {
			continue
		}
		if err := writeAPIServers(a.cfg.Options.StateDir, known); err != nil {
			a.log.Warn("cannot remember the API servers' endpoints for the next boot; give a --state-dir that can be written (empty: off)", "error", err)
		}
	}
}

func writeAPIServers(dir string, list []netip.AddrPort) error {
	if had, err := ReadAPIServers(dir); err == nil && slices.Equal(had, list) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make --state-dir: %w", err)
	}
	var text strings.Builder
	for _, at := range list {
		text.WriteString(at.String() + "\n")
	}
	// Half a file is worse than an old one.
	path := filepath.Join(dir, apiServersFile)
	if err := os.WriteFile(path+".new", []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write API servers: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write API servers: %w", err)
	}
	return nil
}

// ReadAPIServers returns the API servers' endpoints that an agent has written
// to a directory, none if there are none or dir is empty.
func ReadAPIServers(dir string) ([]netip.AddrPort, error) {
	if dir == "" {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, apiServersFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read --state-dir: %w", err)
	}
	var out []netip.AddrPort
	for line := range strings.Lines(string(text)) {
		at, err := netip.ParseAddrPort(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("read --state-dir: %s in %s: %w; remove the file", line, dir, err)
		}
		out = append(out, at)
	}
	return out, nil
}
