package main

import (
	"context"
	"encoding/json"
	"io"

	"github.com/raylink/raylink"
	counterv1 "github.com/raylink/raylink/examples/counter/gen/counter/v1"
	"github.com/raylink/raylink/examples/counter/gen/counter/v1/counterv1raylink"
)

// endpoint is the address of the counter, for programs in other languages:
// `http://<gateway or host>/<path or nid>/counter.v1.Counter/Add`.
type endpoint struct {
	// Gateway is Brain's address, which reaches every node.
	Gateway string `json:"gateway"`
	// Host is the address of the node's own process.
	Host string `json:"host"`
	Path string `json:"path"`
	NID  string `json:"nid"`
	// TokenFile is the file of the token, which a request sends as `Authorization: Bearer TOKEN`.
	// It is empty if RAYLINK_TOKEN set the token.
	TokenFile string `json:"token_file,omitempty"`
}

// serve keeps a counter running, and prints its address as one line of JSON.
func serve(ctx context.Context, rt *raylink.Runtime, out io.Writer) error {
	counter, err := counterv1raylink.CreateCounter(ctx, rt, &counterv1.CounterConfig{Min: -1000, Max: 1000})
	if err != nil {
		return err
	}
	ref := counter.Ref()
	err = json.NewEncoder(out).Encode(endpoint{
		Gateway: rt.Address(), Host: ref.NodeRef().GetHost().GetAddress(),
		Path: ref.Path(), NID: ref.NID(), TokenFile: rt.TokenFile(),
	})
	if err != nil {
		return err
	}
	// On SIGINT and SIGTERM the runtime closes itself and ends the process.
	select {}
}
