package runtime

import (
	"context"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/records"
	"github.com/raylink/raylink/runtime/tunnel"
)

// brainClient makes the runtime's own calls of Brain. They run with the contexts of users' calls,
// whose metadata is not for Brain and whose [connect.CallInfo] must not receive Brain's response.
// So every call has a CallInfo of its own.
type brainClient struct {
	client brainv1connect.BrainServiceClient
	// conn returns the connection to Brain. It is nil if Brain is in this process.
	conn func(ctx context.Context) (*tunnel.Conn, error)
}

var _ brainv1connect.BrainServiceClient = brainClient{}

func own(ctx context.Context) context.Context {
	ctx, _ = connect.NewClientContext(ctx)
	return ctx
}

// Hello implements the client.
func (b brainClient) Hello(ctx context.Context, req *brainv1.HelloRequest) (*brainv1.HelloResponse, error) {
	return b.client.Hello(own(ctx), req)
}

// Register implements the client.
func (b brainClient) Register(ctx context.Context, req *brainv1.RegisterRequest) (*brainv1.RegisterResponse, error) {
	return b.client.Register(own(ctx), req)
}

// Update implements the client.
func (b brainClient) Update(ctx context.Context, req *brainv1.UpdateRequest) (*brainv1.UpdateResponse, error) {
	return b.client.Update(own(ctx), req)
}

// Remove implements the client.
func (b brainClient) Remove(ctx context.Context, req *brainv1.RemoveRequest) (*brainv1.RemoveResponse, error) {
	return b.client.Remove(own(ctx), req)
}

// Lookup implements the client. Over a connection it has none of connect's layers, which would take
// longer than the lookup.
func (b brainClient) Lookup(ctx context.Context, req *brainv1.LookupRequest) (*brainv1.LookupResponse, error) {
	if b.conn == nil {
		return b.client.Lookup(own(ctx), req)
	}
	conn, err := b.conn(ctx)
	if err != nil {
		return nil, connecterr.From(err)
	}
	request, err := records.AppendLookupRequest(nil, req)
	if err != nil {
		return b.client.Lookup(own(ctx), req) // with the error of a message that can't be sent
	}
	res := new(brainv1.LookupResponse)
	err = conn.Invoke(ctx, brainv1connect.BrainServiceLookupProcedure, request, func(b []byte) error { return records.UnmarshalLookup(b, res) })
	if err != nil {
		return nil, err
	}
	return res, nil
}

// List implements the client.
func (b brainClient) List(ctx context.Context, req *brainv1.ListRequest) (*brainv1.ListResponse, error) {
	return b.client.List(own(ctx), req)
}

// Attach implements the client.
func (b brainClient) Attach(ctx context.Context) (brainv1connect.BrainServiceAttachClientStream, error) {
	return b.client.Attach(own(ctx))
}

// Watch implements the client.
func (b brainClient) Watch(ctx context.Context) (brainv1connect.BrainServiceWatchClientStream, error) {
	return b.client.Watch(own(ctx))
}

// ReportHost implements the client.
func (b brainClient) ReportHost(ctx context.Context, req *brainv1.ReportHostRequest) (*brainv1.ReportHostResponse, error) {
	return b.client.ReportHost(own(ctx), req)
}

// ListMachines implements the client.
func (b brainClient) ListMachines(ctx context.Context, req *brainv1.ListMachinesRequest) (*brainv1.ListMachinesResponse, error) {
	return b.client.ListMachines(own(ctx), req)
}

// WatchMachines implements the client.
func (b brainClient) WatchMachines(
	ctx context.Context, req *brainv1.WatchMachinesRequest,
) (brainv1connect.BrainServiceWatchMachinesClientStream, error) {
	return b.client.WatchMachines(own(ctx), req)
}
