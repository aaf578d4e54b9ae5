package brain_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
)

// A standalone Brain serves its registry on a listener, and a client lists the tree. With a Dir in
// the options, the registry survives a restart.
func Example() {
	ctx := context.Background()
	b, err := brain.Open(brain.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := connect.NewServer()
	b.Register(server)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	listener := httptest.NewServer(b.Gateway(mux, nil))
	defer listener.Close()
	defer b.Close() //nolint:errcheck // nothing is left to do with its error

	client := brainv1connect.NewBrainServiceClient(connect.NewClient(connecthttp.NewTransport(listener.Client(), listener.URL)))
	manager, err := client.Register(ctx, &brainv1.RegisterRequest{Type: "manager"})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = client.Register(ctx, &brainv1.RegisterRequest{Parent: manager.GetNodes()[0].GetNid(), Type: "worker", Count: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	tree, err := client.List(ctx, &brainv1.ListRequest{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, node := range tree.GetNodes() {
		fmt.Println(node.GetPath())
	}
	// Output:
	// manager-0
	// manager-0/worker-0
	// manager-0/worker-1
}
