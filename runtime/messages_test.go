package runtime

import (
	"context"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// A node with copies may change its requests and keep its responses, without effect on its callers.
func TestWithCopy(t *testing.T) {
	s := newCounter("a", 1)
	s.node.copies = NodeType{}.WithCopy().copies
	state := &storagev1.IncrResponse{}
	s.take = func(_ context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		req.Key = "changed"
		state.Id++
		return state, nil
	}
	req := &storagev1.IncrRequest{Key: "mine"}
	first, err := s.incr.call(t.Context(), s.ref, req)
	require.NoError(t, err)
	second, err := s.incr.async(t.Context(), s.ref, req).Get(t.Context())
	require.NoError(t, err)
	require.Equal(t, "mine", req.GetKey())
	require.Equal(t, uint64(1), first.GetId())
	require.Equal(t, uint64(2), second.GetId())
}

// Without copies nothing is copied: both sides hold the very message.
func TestMessagesAreNotCopied(t *testing.T) {
	s := newCounter("a", 1)
	req, res := &storagev1.IncrRequest{}, &storagev1.IncrResponse{}
	s.take = func(_ context.Context, got *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		require.Same(t, req, got)
		return res, nil
	}
	got, err := s.incr.call(t.Context(), s.ref, req)
	require.NoError(t, err)
	require.Same(t, res, got)
}

// Queued calls are bounded in bytes, too.
func TestMaxPendingBytes(t *testing.T) {
	s := newCounter("a", 1)
	begun, release := make(chan struct{}, 3), make(chan struct{})
	s.does(func(context.Context) error { begun <- struct{}{}; <-release; return nil })
	large := &storagev1.IncrRequest{Key: string(make([]byte, maxPendingBytes-1<<10))}
	futures := []*Future[*storagev1.IncrResponse]{s.future(t.Context())}
	<-begun
	futures = append(futures, s.incr.async(t.Context(), s.ref, large))
	_, err := s.incr.async(t.Context(), s.ref, large).Get(t.Context())
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	require.ErrorContains(t, err, "the mailbox of a is full")
	require.ErrorContains(t, err, "would pass its bound of 67108864; the oldest is Incr")
	futures = append(futures, s.future(t.Context()))
	close(release)
	_, err = Gather(t.Context(), futures...)
	require.NoError(t, err)
}
