// SPDX-License-Identifier: Apache-2.0

// Package kube reads Services from a Kubernetes API server: Services,
// EndpointSlices, this Node and ServiceCIDRs, by list and watch.
//
// It is the only user of client-go, and takes of it the REST client and the
// reflector alone: each object is turned into the model as it arrives and
// dropped, so that nothing of it is held twice. The invariant it guards:
// deletions are believed only from a watch or from a complete list.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// Config says which API server, and which node this is.
type Config struct {
	// Kubeconfig is a file; empty means the pod's service account.
	Kubeconfig string
	NodeName   string
	ProxyName  string
	// ExternalIPs are those that may be served; nil: all.
	ExternalIPs []netip.Prefix
	Logger      *slog.Logger
	// Requests is optional.
	Requests Requests
	// APIServers are the endpoints by which API servers were reached last; they
	// are tried when the configured address does not answer.
	APIServers []netip.AddrPort
}

// Source follows an API server.
type Source struct {
	cfg     Config
	rest    *rest.Config
	http    *http.Client
	scheme  *runtime.Scheme
	convert source.Converter

	mu       sync.Mutex
	unlisted map[string]bool // resources not listed yet
	cidrs    map[string][]netip.Prefix
	nodeless bool // the API server has no Node of this name
}

// maxBackoff keeps an API server that was away from being missed for long.
const maxBackoff = 2 * time.Second

// New reads the configuration of the API server; it does not talk to it.
func New(cfg Config) (*Source, error) {
	var restConfig *rest.Config
	var err error
	if cfg.Kubeconfig != "" {
		restConfig, err = clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig %s: %w", cfg.Kubeconfig, err)
		}
	} else if restConfig, err = rest.InClusterConfig(); err != nil {
		return nil, fmt.Errorf("neither --kubeconfig nor --manifests is given, and this is no pod with a service account: %w", err)
	}
	restConfig.QPS = -1 // lists and watches only: nothing to throttle
	restConfig.UserAgent = "portolan-agent"
	restConfig.ContentType = runtime.ContentTypeProtobuf
	restConfig.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	s := &Source{
		cfg: cfg, rest: restConfig, scheme: runtime.NewScheme(),
		convert: source.Converter{ProxyName: cfg.ProxyName, ExternalIPs: cfg.ExternalIPs}, cidrs: map[string][]netip.Prefix{},
	}
	if err := addTypes(s.scheme); err != nil {
		return nil, fmt.Errorf("prepare to read API objects: %w", err)
	}
	observe(cfg.Requests)
	restConfig.Dial = newDialer(restConfig.Host, cfg.APIServers, cfg.Kubeconfig == "").Dial
	if s.http, err = rest.HTTPClientFor(restConfig); err != nil {
		return nil, fmt.Errorf("prepare to talk to the API server: %w", err)
	}
	return s, nil
}

// addTypes registers what is read, and no more of the API than that.
func addTypes(scheme *runtime.Scheme) error {
	for gv, types := range map[schema.GroupVersion][]runtime.Object{
		corev1.SchemeGroupVersion:       {&corev1.Service{}, &corev1.ServiceList{}, &corev1.Node{}, &corev1.NodeList{}},
		discoveryv1.SchemeGroupVersion:  {&discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{}},
		eventsv1.SchemeGroupVersion:     {&eventsv1.Event{}},
		networkingv1.SchemeGroupVersion: {&networkingv1.ServiceCIDR{}, &networkingv1.ServiceCIDRList{}},
	} {
		scheme.AddKnownTypes(gv, types...)
		metav1.AddToGroupVersion(scheme, gv)
	}
	return nil
}

// resource is one kind of object that is followed.
type resource struct {
	name    string
	version schema.GroupVersion
	example runtime.Object
	fields  fields.Selector
	store   *store
}

// Run follows all resources until ctx ends.
func (s *Source) Run(ctx context.Context, q *source.Queue) error {
	resources := s.resources(q)
	s.unlisted = map[string]bool{}
	for i := range resources {
		s.unlisted[resources[i].name] = true
	}
	var running sync.WaitGroup
	for i := range resources {
		r := &resources[i]
		client, err := s.client(r.version)
		if err != nil {
			return fmt.Errorf("prepare to read %s: %w", r.name, err)
		}
		running.Go(func() { s.follow(ctx, q, client, r) })
	}
	running.Wait()
	return nil
}

func (s *Source) client(gv schema.GroupVersion) (*rest.RESTClient, error) {
	c := rest.CopyConfig(s.rest)
	c.GroupVersion = &gv
	c.APIPath = "/apis"
	if gv.Group == "" {
		c.APIPath = "/api"
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(s.scheme).WithoutConversion()
	return rest.RESTClientForConfigAndClient(c, s.http)
}

// follow keeps a reflector running.
func (s *Source) follow(ctx context.Context, q *source.Queue, client *rest.RESTClient, r *resource) {
	link := &link{q: q, log: s.cfg.Logger, resource: r.name}
	r.store.listed = func(objects int) {
		link.up(objects)
		s.counted(q, r.name, objects)
		s.seen(q, r.name)
	}
	r.store.event = func(objects int) {
		link.up(objects)
		s.counted(q, r.name, objects)
	}
	reflector := cache.NewReflectorWithOptions(listWatch(client, r, link), r.example, r.store, cache.ReflectorOptions{
		Name:    r.name,
		Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Cap: maxBackoff, Factor: 2, Jitter: 0.2, Steps: 8},
	})
	s.run(ctx, q, reflector, r)
}

// listWatch asks the API server. The reflector keeps to itself that it is
// refused and tries again, so it is noted here whether the server is there.
func listWatch(client *rest.RESTClient, r *resource, link *link) *cache.ListWatch {
	request := func(o *metav1.ListOptions) *rest.Request {
		o.FieldSelector = r.fields.String()
		return client.Get().Resource(r.name).VersionedParams(o, metav1.ParameterCodec)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := request(&o).Do(ctx).Get()
			link.note(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			w, err := request(&o).Watch(ctx)
			link.note(ctx, err)
			return w, err
		},
	}
}

// run lists and watches again and again. A resource that the API server does
// not have (ServiceCIDRs before 1.33) counts as seen.
func (s *Source) run(ctx context.Context, q *source.Queue, reflector *cache.Reflector, r *resource) {
	delay := 50 * time.Millisecond
	for ctx.Err() == nil {
		err := reflector.ListAndWatchWithContext(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			delay = 50 * time.Millisecond
		case apierrors.IsNotFound(err) && r.name == "servicecidrs":
			s.seen(q, r.name)
			delay = time.Minute
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		default:
			delay = min(2*delay, maxBackoff)
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// seen notes that a resource has been listed once.
func (s *Source) seen(q *source.Queue, name string) {
	s.mu.Lock()
	waited := s.unlisted[name]
	delete(s.unlisted, name)
	done := waited && len(s.unlisted) == 0
	s.mu.Unlock()
	if done {
		q.SetSynced()
	}
}

// counted names this node's Node while there is none.
func (s *Source) counted(q *source.Queue, resource string, objects int) {
	if resource != "nodes" {
		return
	}
	s.mu.Lock()
	was := s.nodeless
	s.nodeless = objects == 0
	now := s.nodeless
	s.mu.Unlock()
	if was == now {
		return
	}
	var problems []service.Problem
	if now {
		problems = []service.Problem{{Object: "Node " + s.cfg.NodeName, Reason: service.ReasonNoNode,
			Message: "the API server has no such Node: every endpoint counts as another node's, and with policy Local nothing is served; name this node's by --node-name"}}
	}
	q.SetProblems("this node", problems)
}

func (s *Source) resources(q *source.Queue) []resource {
	named := func(obj metav1.Object) service.Name {
		return service.Name{Namespace: obj.GetNamespace(), Name: obj.GetName()}
	}
	services := newStore("Service", q, func(obj any, gone bool) []service.Problem {
		svc := obj.(*corev1.Service)
		if gone {
			q.SetService(named(svc), nil)
			return nil
		}
		v, problems := s.convert.Service(svc)
		q.SetService(v.Name, v)
		return problems
	})
	slices := newStore("EndpointSlice", q, func(obj any, gone bool) []service.Problem {
		sl := obj.(*discoveryv1.EndpointSlice)
		if gone {
			q.SetSlice(named(sl), nil)
			return nil
		}
		v, problems := s.convert.EndpointSlice(sl)
		q.SetSlice(named(sl), v)
		return problems
	})
	nodes := newStore("Node", q, func(obj any, gone bool) []service.Problem {
		if gone {
			return nil // the last known state stands
		}
		v, problems := s.convert.Node(obj.(*corev1.Node))
		q.SetNode(v)
		return problems
	})
	cidrs := newStore("ServiceCIDR", q, func(obj any, gone bool) []service.Problem {
		return s.cidr(q, obj.(*networkingv1.ServiceCIDR), gone)
	})
	everything := fields.Everything()
	return []resource{
		{"services", corev1.SchemeGroupVersion, &corev1.Service{}, everything, services},
		{"endpointslices", discoveryv1.SchemeGroupVersion, &discoveryv1.EndpointSlice{}, everything, slices},
		{"nodes", corev1.SchemeGroupVersion, &corev1.Node{}, fields.OneTermEqualSelector("metadata.name", s.cfg.NodeName), nodes},
		{"servicecidrs", networkingv1.SchemeGroupVersion, &networkingv1.ServiceCIDR{}, everything, cidrs},
	}
}

func (s *Source) cidr(q *source.Queue, obj *networkingv1.ServiceCIDR, gone bool) []service.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.cidrs, obj.Name)
	var problems []service.Problem
	if !gone {
		s.cidrs[obj.Name], problems = s.convert.ServiceCIDR(obj)
	}
	var all []netip.Prefix
	for _, list := range s.cidrs {
		all = append(all, list...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	q.SetCIDRs(slices.Compact(all))
	return problems
}

// link tells people, once each, that the API server went away and came back.
type link struct {
	q        *source.Queue
	log      *slog.Logger
	resource string
	mu       sync.Mutex
	isDown   bool
	objects  int
}

func (l *link) up(objects int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isDown {
		l.log.Info("API server is back", "resource", l.resource)
	}
	l.isDown, l.objects = false, objects
	now := time.Now()
	l.q.SetStatus(source.ResourceStatus{Resource: l.resource, Connected: true, Since: now, LastEvent: now, Objects: objects})
}

// note takes an answer of the API server for what it says of the connection. A
// refusal (a resource it does not have, a version that expired) is an answer.
func (l *link) note(ctx context.Context, err error) {
	var refusal apierrors.APIStatus
	switch {
	case ctx.Err() != nil:
	case err == nil:
		l.mu.Lock()
		objects, wasDown := l.objects, l.isDown
		l.mu.Unlock()
		if wasDown {
			l.up(objects)
		}
	case errors.As(err, &refusal) && (apierrors.IsNotFound(err) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)):
	default:
		l.down(err)
	}
}

func (l *link) down(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.isDown {
		l.log.Warn("API server does not answer; tables stay as they are and traffic goes on", "resource", l.resource, "error", err)
	}
	l.isDown = true
	l.q.SetStatus(source.ResourceStatus{Resource: l.resource, Since: time.Now(), Error: err.Error(), Objects: l.objects})
}

// LogTo has client-go, which logs on its own account, write its errors to a
// logger, and nothing else. It is for the whole process: to be called once,
// before New.
func LogTo(logger *slog.Logger) { klog.SetSlogLogger(slog.New(quiet{logger.Handler()})) }

// quiet lets through only what client-go calls an error.
type quiet struct{ slog.Handler }

func (h quiet) Enabled(_ context.Context, level slog.Level) bool { return level > slog.LevelError }
