// The management server of go-control-plane, told over HTTP what to serve.
//
// Nothing of the protocol is decided here: requests are answered by the library's own caches and stream handlers. On
// stdout one line of JSON has the addresses; the program ends when its stdin does.
//
//	PUT /resources  {"version": "1", "resources": [google.protobuf.Any in JSON, ...], "ttl_s": {type URL: seconds}}: the
//	                whole of what there is
//	GET /log        what clients have said and were told, in order
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// told is the body of PUT /resources.
type told struct {
	Version   string             `json:"version"`
	Resources []json.RawMessage  `json:"resources"`
	TTLS      map[string]float64 `json:"ttl_s"`
}

func read(body io.Reader) (string, map[string][]types.ResourceWithTTL, error) {
	var want told
	if err := json.NewDecoder(body).Decode(&want); err != nil {
		return "", nil, err
	}
	byType := map[string][]types.ResourceWithTTL{}
	for _, raw := range want.Resources {
		wrapped := &anypb.Any{}
		if err := protojson.Unmarshal(raw, wrapped); err != nil {
			return "", nil, fmt.Errorf("%s: %w", raw, err)
		}
		message, err := wrapped.UnmarshalNew()
		if err != nil {
			return "", nil, err
		}
		found := types.ResourceWithTTL{Resource: message}
		if seconds, ok := want.TTLS[wrapped.TypeUrl]; ok {
			ttl := time.Duration(seconds * float64(time.Second))
			found.TTL = &ttl
		}
		byType[wrapped.TypeUrl] = append(byType[wrapped.TypeUrl], found)
	}
	return want.Version, byType, nil
}

func control(world world, heard *heard) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /resources", func(answer http.ResponseWriter, request *http.Request) {
		version, byType, err := read(request.Body)
		if err == nil {
			err = world.put(request.Context(), version, byType)
		}
		if err != nil {
			http.Error(answer, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("GET /log", func(answer http.ResponseWriter, request *http.Request) {
		if err := json.NewEncoder(answer).Encode(heard.all()); err != nil {
			log.Print(err)
		}
	})
	return mux
}

func listen(address string) net.Listener {
	found, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	return found
}

func main() {
	kind := flag.String("cache", "ads", "ads: a snapshot cache that keeps types consistent; snapshot: one that does not; linear: a cache for each type")
	address := flag.String("listen", "127.0.0.1:0", "address of xDS")
	heartbeat := flag.Duration("heartbeat", 0, "of resources with a time to live, in a snapshot cache; 0: none")
	isOrdered := flag.Bool("ordered", false, "answers of an aggregated stream in the order of types")
	flag.Parse()

	world, err := newWorld(*kind, *heartbeat)
	if err != nil {
		log.Fatal(err)
	}
	heard := &heard{}
	options := []config.XDSOption{}
	if *isOrdered {
		options = append(options, sotw.WithOrderedADS())
	}
	answers := server.NewServer(context.Background(), world.cache(), heard.callbacks(), options...)
	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, answers)
	listener.RegisterListenerDiscoveryServiceServer(grpcServer, answers)
	route.RegisterRouteDiscoveryServiceServer(grpcServer, answers)
	route.RegisterScopedRoutesDiscoveryServiceServer(grpcServer, answers)
	route.RegisterVirtualHostDiscoveryServiceServer(grpcServer, answers)
	cluster.RegisterClusterDiscoveryServiceServer(grpcServer, answers)
	endpoint.RegisterEndpointDiscoveryServiceServer(grpcServer, answers)
	secret.RegisterSecretDiscoveryServiceServer(grpcServer, answers)
	runtime.RegisterRuntimeDiscoveryServiceServer(grpcServer, answers)
	extension.RegisterExtensionConfigDiscoveryServiceServer(grpcServer, answers)

	xds, admin := listen(*address), listen("127.0.0.1:0")
	go func() { log.Fatal(grpcServer.Serve(xds)) }()
	go func() { log.Fatal(http.Serve(admin, control(world, heard))) }()
	fmt.Printf("{\"xds\": %q, \"control\": \"http://%s\"}\n", xds.Addr(), admin.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}
