// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/service"
)

// filter is which Services are shown, and in which order.
type filter struct {
	namespace   string
	kind        string
	noEndpoints bool
	sortBy      string
	what        string // NS/NAME, VIP or VIP:PORT
}

func newServices(env *environment) *cobra.Command {
	var f filter
	var all bool
	cmd := &cobra.Command{
		Use:     "services [NAMESPACE/NAME | VIP[:PORT]]",
		Aliases: []string{"service", "svc"},
		Short:   "List Services as kubectl does, with their endpoints",
		Long:    "List Services as kubectl does, with their endpoints. Naming one shows each endpoint,\nwhether it is used, and why. Without an agent the pinned tables are read.",
		Example: `  portolan services
  portolan services -n prod --no-endpoints
  portolan services prod/cart
  portolan services 10.96.0.10:80
  portolan services -o jsonpath='{.items[*].name}'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				f.what = args[0]
			}
			if f.sortBy != "name" && f.sortBy != "backends" {
				return fmt.Errorf("--sort-by %s: use name or backends", f.sortBy)
			}
			return listServices(env, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.namespace, "namespace", "n", "", "only this `NAMESPACE`")
	flags.BoolVarP(&all, "all-namespaces", "A", true, "all namespaces (the default)")
	flags.StringVar(&f.kind, "type", "", "only this `TYPE`: ClusterIP, NodePort, LoadBalancer, ExternalName")
	flags.BoolVar(&f.noEndpoints, "no-endpoints", false, "only Services without a usable endpoint")
	flags.StringVar(&f.sortBy, "sort-by", "name", "name or backends")
	return cmd
}

func listServices(env *environment, f *filter) error {
	list, err := env.client().Services()
	if errors.Is(err, api.ErrNoAgent) {
		list, err = servicesFromTables(env)
	}
	if err != nil {
		return err
	}
	list.Items = slices.DeleteFunc(list.Items, func(s api.Service) bool { return !f.wants(&s) })
	if f.sortBy == "backends" {
		slices.SortStableFunc(list.Items, func(a, b api.Service) int { return cmp.Compare(len(b.Endpoints), len(a.Endpoints)) })
	}
	done, err := env.machine(list)
	if err == nil && !done {
		err = printServices(env, &list, f.what != "")
	}
	if err == nil && f.what != "" && len(list.Items) == 0 {
		env.note("no Service is %s", f.what)
		return errFinding
	}
	return err
}

func (f *filter) wants(s *api.Service) bool {
	if f.namespace != "" && s.Namespace != f.namespace || f.kind != "" && !strings.EqualFold(s.Type, f.kind) {
		return false
	}
	if f.noEndpoints && usable(s) > 0 {
		return false
	}
	return f.what == "" || f.names(s)
}

// names tells whether the argument means this Service.
func (f *filter) names(s *api.Service) bool {
	if f.what == s.Namespace+"/"+s.Name {
		return true
	}
	addr, port := f.what, uint16(0)
	if ap, err := netip.ParseAddrPort(f.what); err == nil {
		addr, port = ap.Addr().String(), ap.Port()
	}
	if !slices.Contains(s.ClusterIPs, addr) && !slices.Contains(s.ExternalIPs, addr) && !slices.Contains(s.Ingress, addr) {
		return false
	}
	return port == 0 || slices.ContainsFunc(s.Ports, func(p api.Port) bool { return p.Port == port })
}

// usable counts the endpoints that somebody may be sent to.
func usable(s *api.Service) int {
	n := 0
	for _, e := range s.Endpoints {
		if e.InCluster || e.InLocal || s.Headless && e.Ready {
			n++
		}
	}
	return n
}

func printServices(env *environment, list *api.ServiceList, detail bool) error {
	if env.output == "name" {
		for _, s := range list.Items {
			fmt.Fprintf(env.out, "service/%s/%s\n", s.Namespace, s.Name)
		}
		return nil
	}
	header := []string{"NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "ENDPOINTS", "AGE", "SELECTOR"}
	if env.output == "wide" {
		header = append(header, "ADDRESSES")
	}
	var rows [][]string
	for i := range list.Items {
		rows = append(rows, row(&list.Items[i], env.output == "wide"))
	}
	if err := env.table(header, rows); err != nil || !detail {
		return err
	}
	for i := range list.Items {
		if err := printEndpoints(env, &list.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

func row(s *api.Service, wide bool) []string {
	clusterIP, external := orNone(s.ClusterIPs), orNone(slices.Concat(s.ExternalIPs, s.Ingress, s.ProxyIngress))
	switch {
	case s.Headless:
		clusterIP = "None"
	case s.Type == service.ExternalName.String():
		external = s.ExternalName
	}
	r := []string{s.Namespace, s.Name, s.Type, clusterIP, external, ports(s), endpoints(s), age(s.Created), orNone(splitSelector(s.Selector))}
	if wide {
		var addrs []string
		for _, e := range s.Endpoints {
			addrs = append(addrs, e.Address)
		}
		r = append(r, orNone(addrs))
	}
	return r
}

func splitSelector(selector string) []string {
	if selector == "" {
		return nil
	}
	return []string{selector}
}

func endpoints(s *api.Service) string {
	if s.ServedBy != "" {
		return "served by " + s.ServedBy
	}
	if s.Type == service.ExternalName.String() {
		return "<none>"
	}
	return fmt.Sprintf("%d/%d", usable(s), len(s.Endpoints))
}

// ports are written as kubectl writes them: 80:30080/TCP.
func ports(s *api.Service) string {
	var out []string
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			out = append(out, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
		} else {
			out = append(out, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
	}
	return orNone(out)
}

func printEndpoints(env *environment, s *api.Service) error {
	if len(s.Endpoints) == 0 {
		return nil
	}
	fmt.Fprintln(env.out)
	var rows [][]string
	for _, e := range s.Endpoints {
		rows = append(rows, []string{e.Address, e.PortName + "/" + e.Protocol, orDash(e.Target), orDash(e.Node), orDash(e.Zone), yes(e.InCluster), yes(e.InLocal), e.Reason})
	}
	return env.table([]string{"ENDPOINT", "PORT", "TARGET", "NODE", "ZONE", "CLUSTER", "LOCAL", "WHY"}, rows)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// servicesFromTables puts together what the pinned tables know of Services.
func servicesFromTables(env *environment) (api.ServiceList, error) {
	list := api.ServiceList{Meta: api.Meta{APIVersion: api.Version, Kind: "ServiceList"}, Items: []api.Service{}}
	r, err := env.resolved()
	if err != nil {
		return list, err
	}
	env.note("agent: not running; reading pinned tables (they know no headless or ExternalName Services, selectors or ages)")
	byName := map[string]*api.Service{}
	var names []string
	for i := range r.Frontends {
		f := &r.Frontends[i]
		name := f.Name.Namespace + "/" + f.Name.Name
		s := byName[name]
		if s == nil {
			s = &api.Service{Namespace: f.Name.Namespace, Name: f.Name.Name, Type: service.ClusterIP.String(), Ports: []api.Port{}, Endpoints: []api.Endpoint{}}
			byName[name] = s
			names = append(names, name)
		}
		addFrontend(s, f, r.Owners)
	}
	slices.Sort(names)
	for _, name := range names {
		list.Items = append(list.Items, *byName[name])
	}
	return list, nil
}

func addFrontend(s *api.Service, f *maps.Frontend, owners map[netip.Addr]uint32) {
	addr, port := f.Addr.Addr(), api.Port{Name: f.Name.Port, Port: f.Addr.Port(), Protocol: protocolName(f.Protocol)}
	switch {
	case addr.IsUnspecified():
		s.Type = service.NodePort.String()
		port.NodePort, port.Port = port.Port, 0
	case owners[addr] == maps.AddressOurs:
		s.ClusterIPs = addOnce(s.ClusterIPs, addr.String())
	default:
		s.ExternalIPs = addOnce(s.ExternalIPs, addr.String())
	}
	if at := slices.IndexFunc(s.Ports, func(p api.Port) bool { return p.Name == port.Name && p.Protocol == port.Protocol }); at >= 0 {
		s.Ports[at].Port = max(s.Ports[at].Port, port.Port)
		s.Ports[at].NodePort = max(s.Ports[at].NodePort, port.NodePort)
	} else {
		s.Ports = append(s.Ports, port)
	}
	for _, scope := range []*maps.Range{&f.Internal, &f.External} {
		for _, b := range scope.Backends {
			e := api.Endpoint{
				Address: b.Addr.String(), PortName: f.Name.Port, Protocol: port.Protocol, Serving: true,
				Ready: b.Flags&maps.BackendStateMask == maps.BackendActive, Terminating: b.Flags&maps.BackendStateMask == maps.BackendDraining,
				InCluster: b.Flags&maps.BackendInCluster != 0, InLocal: b.Flags&maps.BackendInLocal != 0,
				Reason: "in: " + backendState(b.Flags),
			}
			if !slices.Contains(s.Endpoints, e) {
				s.Endpoints = append(s.Endpoints, e)
			}
		}
	}
}

func addOnce(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
