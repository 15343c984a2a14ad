// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	tables "portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/service"
)

// filter is which Services are shown, and in which order.
type filter struct {
	namespace   string
	kind        string
	noEndpoints bool
	sortBy      string
	what        string // NS/NAME, NAME beside a namespace, VIP or VIP:PORT
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
  portolan services prod/cart              # or: -n prod cart
  portolan services 10.96.0.10:80
  portolan services -o jsonpath='{.items[*].name}'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if all {
				f.namespace = ""
			}
			if len(args) == 1 {
				f.what = args[0]
			}
			if err := f.validate(); err != nil {
				return err
			}
			return listServices(env, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.namespace, "namespace", "n", "", "only this `NAMESPACE`")
	flags.BoolVarP(&all, "all-namespaces", "A", false, "all namespaces (the default without -n)")
	flags.StringVar(&f.kind, "type", "", "only this `TYPE`: ClusterIP, NodePort, LoadBalancer, ExternalName")
	flags.BoolVar(&f.noEndpoints, "no-endpoints", false, "only Services with a port that has no usable endpoint")
	flags.StringVar(&f.sortBy, "sort-by", "name", "name or backends")
	return cmd
}

func (f *filter) validate() error {
	if f.sortBy != "name" && f.sortBy != "backends" {
		return fmt.Errorf("--sort-by %s: use name or backends", f.sortBy)
	}
	kinds := []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}
	if f.kind != "" && !slices.ContainsFunc(kinds, func(k string) bool { return strings.EqualFold(k, f.kind) }) {
		return fmt.Errorf("--type %s: use %s", f.kind, strings.Join(kinds, ", "))
	}
	return nil
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
		slices.SortStableFunc(list.Items, func(a, b api.Service) int { return cmp.Compare(usable(&b), usable(&a)) })
	}
	var names []string
	for _, s := range list.Items {
		names = append(names, "service/"+s.Namespace+"/"+s.Name)
	}
	done, err := env.machine(list, names)
	if err == nil && !done {
		err = printServices(env, &list, f)
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
	if f.noEndpoints && !lacksEndpoints(s) {
		return false
	}
	return f.what == "" || f.names(s)
}

// names tells whether the argument means this Service.
func (f *filter) names(s *api.Service) bool {
	if f.what == s.Namespace+"/"+s.Name || f.namespace != "" && f.what == s.Name {
		return true
	}
	addr, port := f.what, uint16(0)
	if ap, err := netip.ParseAddrPort(f.what); err == nil {
		addr, port = ap.Addr().String(), ap.Port()
	} else if a, err := netip.ParseAddr(f.what); err == nil {
		addr = a.String()
	}
	if !slices.Contains(slices.Concat(s.ClusterIPs, s.ExternalIPs, s.Ingress, s.ProxyIngress), addr) {
		return false
	}
	return port == 0 || slices.ContainsFunc(s.Ports, func(p api.Port) bool { return p.Port == port })
}

// used tells whether somebody may be sent to the endpoint.
func used(s *api.Service, e *api.Endpoint) bool {
	return e.InCluster || e.InLocal || s.Headless && e.Ready
}

// counted counts endpoints and those of them that are used. What serves
// several ports, or has an address of each family, is one endpoint.
func counted(s *api.Service) (usable, all int) {
	known := map[string]bool{}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		name := e.Target
		if name == "" {
			name = e.Address // of a headless Service it may have no port
			if addr, err := netip.ParseAddrPort(e.Address); err == nil {
				name = addr.Addr().String()
			}
		}
		known[name] = known[name] || used(s, e)
	}
	for _, in := range known {
		if in {
			usable++
		}
	}
	return usable, len(known)
}

func usable(s *api.Service) int {
	n, _ := counted(s)
	return n
}

// lacksEndpoints tells whether a port of the Service leads nowhere.
func lacksEndpoints(s *api.Service) bool {
	if s.Type == service.ExternalName.String() || s.ServedBy != "" {
		return false
	}
	for _, p := range s.Ports {
		serves := func(e api.Endpoint) bool {
			return used(s, &e) && e.PortName == p.Name && e.Protocol == p.Protocol
		}
		if !slices.ContainsFunc(s.Endpoints, serves) {
			return true
		}
	}
	return len(s.Ports) == 0 && usable(s) == 0
}

func printServices(env *environment, list *api.ServiceList, f *filter) error {
	header := []string{"NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "ENDPOINTS", "AGE", "SELECTOR"}
	if env.output == "wide" {
		header = append(header, "ADDRESSES")
	}
	var rows [][]string
	for i := range list.Items {
		rows = append(rows, row(env, &list.Items[i]))
	}
	if f.namespace != "" {
		header = header[1:]
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	if len(rows) == 0 {
		if f.what == "" {
			env.note("no Services found")
		}
		return nil
	}
	if err := env.table(header, rows, -1); err != nil || f.what == "" {
		return err
	}
	for i := range list.Items {
		if err := printEndpoints(env, &list.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

func row(env *environment, s *api.Service) []string {
	clusterIP, external := orNone(s.ClusterIPs), slices.Concat(s.ExternalIPs, s.Ingress, s.ProxyIngress)
	switch {
	case s.Headless:
		clusterIP = "None"
	case s.Type == service.ExternalName.String():
		external = []string{s.ExternalName}
	case s.Type == service.LoadBalancer.String() && len(external) == 0:
		external = []string{"<pending>"}
	}
	selector := s.Selector
	if selector == "" {
		selector = orNone(nil)
	}
	r := []string{s.Namespace, s.Name, s.Type, clusterIP, orNone(external), ports(s), endpoints(s), env.age(s.Created), selector}
	if env.output == "wide" {
		var addrs []string
		for _, e := range s.Endpoints {
			addrs = append(addrs, e.Address)
		}
		r = append(r, orNone(addrs))
	}
	return r
}

func endpoints(s *api.Service) string {
	if s.ServedBy != "" {
		return "served by " + s.ServedBy
	}
	if s.Type == service.ExternalName.String() {
		return orNone(nil)
	}
	usable, all := counted(s)
	return fmt.Sprintf("%d/%d", usable, all)
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
		rows = append(rows, []string{e.Address, portLabel(e.PortName, e.Protocol), orDash(e.Target), orDash(e.Node), orDash(e.Zone), yes(e.InCluster), yes(e.InLocal), e.Reason})
	}
	return env.table([]string{"ENDPOINT", "PORT", "TARGET", "NODE", "ZONE", "CLUSTER", "LOCAL", "WHY"}, rows, -1)
}

func portLabel(name, protocol string) string {
	if name == "" {
		return orDash(protocol)
	}
	return name + "/" + protocol
}

// servicesFromTables puts together what the pinned tables know of Services.
func servicesFromTables(env *environment) (api.ServiceList, error) {
	list := api.ServiceList{Meta: api.Meta{APIVersion: api.Version, Kind: "ServiceList"}, Items: []api.Service{}}
	r, err := env.resolved()
	if err != nil {
		return list, err
	}
	env.note("agent: not running; reading pinned tables (they know no headless or ExternalName Services, no selectors, ages or endpoints that are out)")
	g := gathering{services: map[string]*api.Service{}, seen: map[member]bool{}}
	for i := range r.Frontends {
		g.add(&r.Frontends[i], r.Owners)
	}
	for _, name := range slices.Sorted(maps.Keys(g.services)) {
		list.Items = append(list.Items, *g.services[name])
	}
	return list, nil
}

// gathering puts Services together from their frontends.
type gathering struct {
	services map[string]*api.Service
	seen     map[member]bool
}

// member is an endpoint of a Service.
type member struct {
	service  *api.Service
	endpoint api.Endpoint
}

func (g *gathering) service(n tables.ServiceName) *api.Service {
	s := g.services[serviceOf(n)]
	if s == nil {
		s = &api.Service{Namespace: n.Namespace, Name: n.Name, Type: service.Type(n.Type).String(), Ports: []api.Port{}, Endpoints: []api.Endpoint{}}
		g.services[serviceOf(n)] = s
	}
	return s
}

func (g *gathering) add(f *tables.Frontend, owners map[netip.Addr]uint32) {
	s := g.service(f.Name)
	addr, port := f.Addr.Addr(), api.Port{Name: f.Name.Port, Port: f.Addr.Port(), Protocol: protocolName(f.Protocol)}
	switch {
	case addr.IsUnspecified():
		port.NodePort, port.Port = port.Port, 0
	case owners[addr] == tables.AddressOurs:
		s.ClusterIPs = addOnce(s.ClusterIPs, addr.String())
	case f.Name.Type == uint8(service.LoadBalancer):
		s.Ingress = addOnce(s.Ingress, addr.String())
	default:
		s.ExternalIPs = addOnce(s.ExternalIPs, addr.String())
	}
	if at := slices.IndexFunc(s.Ports, func(p api.Port) bool { return p.Name == port.Name && p.Protocol == port.Protocol }); at >= 0 {
		s.Ports[at].Port = max(s.Ports[at].Port, port.Port)
		s.Ports[at].NodePort = max(s.Ports[at].NodePort, port.NodePort)
	} else {
		s.Ports = append(s.Ports, port)
	}
	for _, scope := range []*tables.Range{&f.Internal, &f.External} {
		for i := range scope.Backends {
			e := endpointOf(f, &scope.Backends[i])
			if !g.seen[member{s, e}] {
				g.seen[member{s, e}] = true
				s.Endpoints = append(s.Endpoints, e)
			}
		}
	}
}

func endpointOf(f *tables.Frontend, b *tables.Backend) api.Endpoint {
	state := b.Flags & tables.BackendStateMask
	return api.Endpoint{
		Address: b.Addr.String(), PortName: f.Name.Port, Protocol: protocolName(f.Protocol),
		Ready: state == tables.BackendActive, Serving: true, Terminating: state == tables.BackendDraining,
		InCluster: b.Flags&tables.BackendInCluster != 0, InLocal: b.Flags&tables.BackendInLocal != 0,
		Reason: "in: " + backendState(b.Flags),
	}
}

func addOnce(list []string, item string) []string {
	if slices.Contains(list, item) {
		return list
	}
	return append(list, item)
}
