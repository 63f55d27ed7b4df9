// grpc-go's own xDS client: it makes the calls that it is told to.
//
// One JSON command per line comes in, one JSON answer per line goes out, as with the program of gRPC's C core.
// GRPC_XDS_BOOTSTRAP says where the management server is.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"

	"meshlib.test/peers/raw"
)

type command struct {
	Op       string      `json:"op"` // call, many, open
	Target   string      `json:"target"`
	Method   string      `json:"method"`
	Metadata [][2]string `json:"metadata"`
	TimeoutS float64     `json:"timeout_s"`
	Count    int         `json:"count"`
	Targets  []string    `json:"targets"`
}

type answer struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

type tally struct {
	Versions map[string]int `json:"versions"`
	Failures []string       `json:"failures"`
}

type program struct{ channels map[string]*grpc.ClientConn }

func (p *program) channel(target string) (*grpc.ClientConn, error) {
	if found := p.channels[target]; found != nil {
		return found, nil
	}
	// TLS where the cluster asks for it, else none.
	creds, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return nil, err
	}
	made, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err == nil {
		p.channels[target] = made
	}
	return made, err
}

func (p *program) call(want command) answer {
	channel, err := p.channel(want.Target)
	if err != nil {
		return answer{"UNKNOWN", err.Error()}
	}
	seconds := want.TimeoutS
	if seconds == 0 {
		seconds = 10
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds*float64(time.Second)))
	defer cancel()
	for _, one := range want.Metadata {
		ctx = metadata.AppendToOutgoingContext(ctx, one[0], one[1])
	}
	request, response := []byte{}, []byte{}
	if err := channel.Invoke(ctx, want.Method, &request, &response, grpc.ForceCodec(raw.Codec{})); err != nil {
		return answer{status.Code(err).String(), status.Convert(err).Message()}
	}
	return answer{"OK", string(response)}
}

func (p *program) many(want command) tally {
	found := tally{map[string]int{}, []string{}}
	for range want.Count {
		got := p.call(want)
		said := struct{ Version string }{}
		if got.Code != "OK" {
			found.Failures = append(found.Failures, got.Code+": "+got.Text)
		} else if err := json.Unmarshal([]byte(got.Text), &said); err != nil {
			found.Failures = append(found.Failures, err.Error())
		} else {
			found.Versions[said.Version]++
		}
	}
	return found
}

// open begins to connect to targets, without waiting for any.
func (p *program) open(want command) answer {
	for _, target := range want.Targets {
		channel, err := p.channel(target)
		if err != nil {
			return answer{"UNKNOWN", err.Error()}
		}
		channel.Connect()
	}
	return answer{Code: "OK"}
}

func main() {
	found := &program{map[string]*grpc.ClientConn{}}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var want command
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			log.Fatal(err)
		}
		var got any
		switch want.Op {
		case "call":
			got = found.call(want)
		case "many":
			got = found.many(want)
		case "open":
			got = found.open(want)
		default:
			log.Fatalf("no command %q", want.Op)
		}
		line, err := json.Marshal(got)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(line))
	}
}
