package main

import (
	"context"
	"fmt"
	"log"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	logging "github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// world is what there is to serve, in one of the library's caches.
type world interface {
	cache() cache.Cache
	put(ctx context.Context, version string, byType map[string][]types.ResourceWithTTL) error
}

func newWorld(kind string, heartbeat time.Duration) (world, error) {
	switch kind {
	case "ads", "snapshot":
		if heartbeat > 0 {
			beating := cache.NewSnapshotCacheWithHeartbeating(context.Background(), kind == "ads", everybody{}, logger(), heartbeat)
			return &snapshots{beating}, nil
		}
		return &snapshots{cache.NewSnapshotCache(kind == "ads", everybody{}, logger())}, nil
	case "linear":
		return newLinear(), nil
	}
	return nil, fmt.Errorf("no cache %q", kind)
}

// everybody gives all nodes the same snapshot.
type everybody struct{}

const group = "everybody"

func (everybody) ID(*core.Node) string { return group }

type snapshots struct{ found cache.SnapshotCache }

func (s *snapshots) cache() cache.Cache { return s.found }

func (s *snapshots) put(ctx context.Context, version string, byType map[string][]types.ResourceWithTTL) error {
	snapshot, err := cache.NewSnapshotWithTTLs(version, byType)
	if err != nil {
		return err
	}
	// Not asked whether it is consistent: what a client makes of one that is not is among the things to see.
	return s.found.SetSnapshot(ctx, group, snapshot)
}

// linear has a cache for each type; versions are those that the library counts.
type linear struct {
	mux    *cache.MuxCache
	byType map[string]*cache.LinearCache
}

func newLinear() *linear {
	found := &linear{byType: map[string]*cache.LinearCache{}}
	caches := map[string]cache.Cache{}
	for _, kind := range []string{
		resource.ListenerType, resource.RouteType, resource.ScopedRouteType, resource.VirtualHostType, resource.ClusterType,
		resource.EndpointType, resource.SecretType, resource.RuntimeType, resource.ExtensionConfigType,
	} {
		found.byType[kind] = cache.NewLinearCache(kind, cache.WithLogger(logger()))
		caches[kind] = found.byType[kind]
	}
	found.mux = &cache.MuxCache{
		Classify:      func(request *cache.Request) string { return request.GetTypeUrl() },
		ClassifyDelta: func(request *cache.DeltaRequest) string { return request.GetTypeUrl() },
		Caches:        caches,
	}
	return found
}

func (l *linear) cache() cache.Cache { return l.mux }

func (l *linear) put(_ context.Context, _ string, byType map[string][]types.ResourceWithTTL) error {
	for kind := range byType {
		if l.byType[kind] == nil {
			return fmt.Errorf("no cache for %s", kind)
		}
	}
	for kind, found := range l.byType {
		resources := map[string]types.Resource{}
		for _, one := range byType[kind] {
			resources[cache.GetResourceName(one.Resource)] = one.Resource
		}
		found.SetResources(resources)
	}
	return nil
}

func logger() logging.Logger {
	return logging.LoggerFuncs{DebugFunc: log.Printf, InfoFunc: log.Printf, WarnFunc: log.Printf, ErrorFunc: log.Printf}
}
