// A gRPC server that grpc-go's own xDS client governs: it serves when the management server's listener says so.
//
// -listen is the address, -version what it answers with to /peers.Echo/Call. On stdout one line of JSON for each change
// of its mode. It ends when its stdin does.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/xds"

	"meshlib.test/peers/raw"
)

type change struct {
	Mode  string `json:"mode"` // serving, not serving
	Error string `json:"error"`
}

func tell(_ net.Addr, args xds.ServingModeChangeArgs) {
	said := change{Mode: args.Mode.String()}
	if args.Err != nil {
		said.Error = args.Err.Error()
	}
	line, err := json.Marshal(said)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

func echo(version string) grpc.ServiceDesc {
	handler := func(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		body := []byte{}
		if err := decode(&body); err != nil {
			return nil, err
		}
		answer := func(ctx context.Context, _ any) (any, error) {
			headers := [][2]string{}
			found, _ := metadata.FromIncomingContext(ctx)
			for name, values := range found {
				for _, value := range values {
					headers = append(headers, [2]string{name, value})
				}
			}
			line, err := json.Marshal(map[string]any{"version": version, "headers": headers})
			return &line, err
		}
		if interceptor == nil {
			return answer(ctx, &body)
		}
		return interceptor(ctx, &body, &grpc.UnaryServerInfo{FullMethod: "/peers.Echo/Call"}, answer)
	}
	return grpc.ServiceDesc{
		ServiceName: "peers.Echo", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: handler}},
	}
}

func main() {
	address := flag.String("listen", "127.0.0.1:0", "where to serve")
	version := flag.String("version", "go", "what to answer with")
	flag.Parse()

	creds, err := xdscreds.NewServerCredentials(xdscreds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		log.Fatal(err)
	}
	server, err := xds.NewGRPCServer(grpc.Creds(creds), grpc.ForceServerCodec(raw.Codec{}), xds.ServingModeCallback(tell))
	if err != nil {
		log.Fatal(err)
	}
	service := echo(*version)
	server.RegisterService(&service, nil)
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(server.Serve(listener)) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
}
