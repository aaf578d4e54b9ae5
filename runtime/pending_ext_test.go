package runtime_test

import (
	"context"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
)

// blocking is a transport whose calls return only once they are released, whatever their contexts.
type blocking struct {
	entered, released chan struct{}
}

// NewClientStream implements connect.Transport.
func (b blocking) NewClientStream(context.Context, connect.Spec) (connect.ClientStream, error) {
	b.entered <- struct{}{}
	<-b.released
	return nil, connect.NewError(connect.CodeUnimplemented, "released")
}

// TestEndedCallsAreNotPending fills a handle's queue with calls, ends their context, and makes one
// more call.
func TestEndedCallsAreNotPending(t *testing.T) {
	t.Parallel()
	transport := blocking{make(chan struct{}, 1000), make(chan struct{})}
	probe := contractv1raylink.NewProbeTunnel(connect.NewClient(transport))
	ctx, cancel := context.WithCancel(t.Context())
	probe.AddAsync(ctx, &contractv1.AddRequest{})
	<-transport.entered
	const pending = 64 // of the schema
	for range pending {
		probe.AddAsync(ctx, &contractv1.AddRequest{})
	}
	_, err := probe.AddAsync(t.Context(), &contractv1.AddRequest{}).Get(t.Context())
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err), "%v", err)
	cancel()
	last := probe.AddAsync(t.Context(), &contractv1.AddRequest{})
	close(transport.released)
	_, err = last.Get(t.Context())
	require.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err), "%v", err)
}
