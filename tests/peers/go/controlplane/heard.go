package main

import (
	"context"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
)

// message is one request or response of a stream; of the fields of both variants those that it has.
type message struct {
	Stream      int64    `json:"stream"`
	Kind        string   `json:"kind"` // request, response
	Type        string   `json:"type"`
	Node        string   `json:"node"`
	Version     string   `json:"version"`
	Nonce       string   `json:"nonce"`
	Names       []string `json:"names"`   // asked for, or sent
	Removed     []string `json:"removed"` // unsubscribed from, or removed
	Count       int      `json:"count"`   // resources in a response
	Error       string   `json:"error"`
	Incremental bool     `json:"incremental"`
}

// heard keeps all of it.
type heard struct {
	lock     sync.Mutex
	messages []message
}

func (h *heard) add(said message) {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.messages = append(h.messages, said)
}

func (h *heard) all() []message {
	h.lock.Lock()
	defer h.lock.Unlock()
	return append([]message{}, h.messages...)
}

func (h *heard) callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(stream int64, request *discovery.DiscoveryRequest) error {
			h.add(message{
				Stream: stream, Kind: "request", Type: request.TypeUrl, Node: request.GetNode().GetId(), Version: request.VersionInfo,
				Nonce: request.ResponseNonce, Names: request.ResourceNames, Error: request.GetErrorDetail().GetMessage(),
			})
			return nil
		},
		StreamResponseFunc: func(_ context.Context, stream int64, _ *discovery.DiscoveryRequest, response *discovery.DiscoveryResponse) {
			h.add(message{
				Stream: stream, Kind: "response", Type: response.TypeUrl, Version: response.VersionInfo, Nonce: response.Nonce,
				Count: len(response.Resources),
			})
		},
		StreamDeltaRequestFunc: func(stream int64, request *discovery.DeltaDiscoveryRequest) error {
			h.add(message{
				Stream: stream, Kind: "request", Type: request.TypeUrl, Node: request.GetNode().GetId(), Nonce: request.ResponseNonce,
				Names: request.ResourceNamesSubscribe, Removed: request.ResourceNamesUnsubscribe,
				Error: request.GetErrorDetail().GetMessage(), Incremental: true,
			})
			return nil
		},
		StreamDeltaResponseFunc: func(stream int64, _ *discovery.DeltaDiscoveryRequest, response *discovery.DeltaDiscoveryResponse) {
			names := []string{}
			for _, one := range response.Resources {
				names = append(names, one.Name)
			}
			h.add(message{
				Stream: stream, Kind: "response", Type: response.TypeUrl, Version: response.SystemVersionInfo, Nonce: response.Nonce,
				Names: names, Removed: response.RemovedResources, Count: len(response.Resources), Incremental: true,
			})
		},
	}
}
