// Package raw lets gRPC carry bytes as they are, so that no peer needs a generated service.
package raw

import (
	"fmt"

	"google.golang.org/grpc/encoding"
)

// Codec passes *[]byte through, under the name of protobuf's codec, which is what peers expect on the wire.
type Codec struct{}

var _ encoding.Codec = Codec{}

func (Codec) Name() string { return "proto" }

func (Codec) Marshal(value any) ([]byte, error) {
	found, ok := value.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("no bytes but %T", value)
	}
	return *found, nil
}

func (Codec) Unmarshal(data []byte, value any) error {
	found, ok := value.(*[]byte)
	if !ok {
		return fmt.Errorf("no bytes but %T", value)
	}
	*found = append([]byte{}, data...)
	return nil
}
