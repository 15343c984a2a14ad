// SPDX-License-Identifier: Apache-2.0

// Package api is what the agent tells: JSON objects with stable field names,
// served on a unix socket for the portolan command and for scripts.
//
// It imports the packages whose figures it shows, for their types only. Nothing
// can be changed through it.
package api

import (
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// Version is the apiVersion of every object.
const Version = "portolan.dev/v1"

// Meta says what an object is.
type Meta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// Status is the agent as an operator wants to see it.
type Status struct {
	Meta
	Version    string                  `json:"version"`
	PID        int                     `json:"pid"`
	Started    time.Time               `json:"started"`
	Node       string                  `json:"node"`
	Zone       string                  `json:"zone,omitempty"`
	Kernel     string                  `json:"kernel"`
	Missing    []string                `json:"missingFeatures,omitempty"`
	Source     string                  `json:"source"`
	Resources  []source.ResourceStatus `json:"resources"`
	Synced     bool                    `json:"synced"`
	CgroupRoot string                  `json:"cgroupRoot"`
	Hooks      []loader.Attachment     `json:"hooks"`
	// Devices are those whose traffic from the wire is translated.
	Devices []loader.DeviceStatus `json:"devices"`
	// Flows are the established ones from the wire, at the last sweep.
	Flows       uint32            `json:"flows"`
	Services    map[string]int    `json:"services"`
	Backends    Backends          `json:"backends"`
	Programming Programming       `json:"programming"`
	Tables      []reconcile.Usage `json:"tables"`
	Denied      []Denied          `json:"denied"`
	Problems    []service.Problem `json:"problems"`
	// IgnoredConfig names what of the configuration means nothing here.
	IgnoredConfig []string `json:"ignoredConfig,omitempty"`
	// Degraded says why the dataplane is not whole; empty: it is.
	Degraded []string `json:"degraded"`
}

// Backends counts backends by state.
type Backends struct {
	Active   int `json:"active"`
	Draining int `json:"draining"`
}

// Programming is how long changes take from the source to the tables.
type Programming struct {
	Changes uint64    `json:"changes"`
	P50     float64   `json:"p50Seconds"`
	P99     float64   `json:"p99Seconds"`
	Last    time.Time `json:"last"`
}

// Denied counts the socket calls that were not let through for one reason.
type Denied struct {
	Reason string `json:"reason"`
	Errno  string `json:"errno,omitempty"`
	Count  uint64 `json:"count"`
}

// ServiceList is all Services that the agent knows.
type ServiceList struct {
	Meta
	Items []Service `json:"items"`
}

// Service is one Service as kubectl would show it, with its endpoints.
type Service struct {
	Namespace    string     `json:"namespace"`
	Name         string     `json:"name"`
	Type         string     `json:"type"`
	Headless     bool       `json:"headless,omitempty"`
	ExternalName string     `json:"externalName,omitempty"`
	ServedBy     string     `json:"servedBy,omitempty"` // another proxy's name
	ClusterIPs   []string   `json:"clusterIPs,omitempty"`
	ExternalIPs  []string   `json:"externalIPs,omitempty"`
	Ingress      []string   `json:"ingress,omitempty"`
	ProxyIngress []string   `json:"proxyIngress,omitempty"` // ipMode Proxy: left alone
	Ports        []Port     `json:"ports"`
	Selector     string     `json:"selector,omitempty"`
	Created      time.Time  `json:"created"`
	Endpoints    []Endpoint `json:"endpoints"`
}

// Port is one port of a Service.
type Port struct {
	Name       string `json:"name,omitempty"`
	Port       uint16 `json:"port"`
	Protocol   string `json:"protocol"`
	NodePort   uint16 `json:"nodePort,omitempty"`
	TargetPort string `json:"targetPort,omitempty"`
}

// Endpoint is an endpoint of one port, with what became of it.
type Endpoint struct {
	Address     string `json:"address"`
	PortName    string `json:"portName,omitempty"`
	Protocol    string `json:"protocol,omitempty"`
	Target      string `json:"target,omitempty"`
	Node        string `json:"node,omitempty"`
	Zone        string `json:"zone,omitempty"`
	Ready       bool   `json:"ready"`
	Serving     bool   `json:"serving"`
	Terminating bool   `json:"terminating"`
	// InCluster and InLocal: the sets of the traffic policies contain it.
	InCluster bool   `json:"inCluster"`
	InLocal   bool   `json:"inLocal"`
	Reason    string `json:"reason"`
}

// Tables is what the compiled tables say, to be compared with the kernel's.
type Tables struct {
	Meta
	Frontends    []Frontend `json:"frontends"`
	NodeAddrs    []string   `json:"nodeAddresses"`
	ServiceCIDRs []string   `json:"serviceCIDRs"`
	// Owners say what other ports of an address are: "10.96.0.10 ours",
	// "elsewhere" (another proxy's), or "published" (a load balancer or external
	// address that no node has).
	Owners []string `json:"owners"`
}

// Frontend is one frontend and what it leads to. Backends are sorted.
type Frontend struct {
	Address  string   `json:"address"` // "10.96.0.10:80"
	Protocol string   `json:"protocol"`
	Kind     string   `json:"kind,omitempty"`
	Service  string   `json:"service"`
	PortName string   `json:"portName,omitempty"`
	Internal Scope    `json:"internal"`
	External Scope    `json:"external"`
	Affinity int      `json:"affinitySeconds,omitempty"`
	Sources  []string `json:"sourceRanges,omitempty"`
}

// Scope is what a frontend offers to one kind of client.
type Scope struct {
	Backends []string `json:"backends"`
	// Empty says what happens without backends: refuse or drop.
	Empty string `json:"empty,omitempty"`
}
