package runtime

import (
	"context"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/invariants"
)

func broken(t *testing.T, err error, text string) {
	t.Helper()
	require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, text)
}

func needsFingerprints(t *testing.T) {
	t.Helper()
	if !invariants.Messages {
		t.Skip("messages have no fingerprints: this needs the build tag invariants")
	}
}

// Each way to modify a message after it was passed on is detected.
func TestFingerprints(t *testing.T) {
	needsFingerprints(t)
	s := newCounter("a", 1)
	s.take = func(_ context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		req.Key = "changed"
		return &storagev1.IncrResponse{}, nil
	}
	_, err := s.incr.call(t.Context(), s.ref, &storagev1.IncrRequest{Key: "mine"})
	broken(t, err, "changed while it was served")

	s = newCounter("a", 1)
	state := &storagev1.IncrResponse{}
	s.take = func(context.Context, *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		state.Id++
		return state, nil
	}
	require.NoError(t, s.call(t.Context()))
	broken(t, s.call(t.Context()), "the response of an earlier raylink.storage.v1.Storage/Incr was changed afterwards")

	s = newCounter("a", 1)
	begun, release := make(chan struct{}, 2), make(chan struct{})
	s.does(func(context.Context) error { begun <- struct{}{}; <-release; return nil })
	running := s.future(t.Context())
	<-begun
	req := &storagev1.IncrRequest{Key: "mine"}
	waiting := s.incr.async(t.Context(), s.ref, req)
	req.Key = "yours"
	close(release)
	_, err = running.Get(t.Context())
	require.NoError(t, err)
	_, err = waiting.Get(t.Context())
	broken(t, err, "changed after it was sent")

	s = newCounter("a", 1)
	s.does(func(context.Context) error { return nil })
	req = &storagev1.IncrRequest{Key: "mine"}
	_, err = s.incr.call(t.Context(), s.ref, req)
	require.NoError(t, err)
	req.Key = "used again"
	broken(t, s.call(t.Context()), "the request of an earlier")
}

// A node that gets copies may change its requests.
func TestFingerprintsWithCopies(t *testing.T) {
	s := newCounter("a", 1)
	s.node.copies = true
	s.take = func(_ context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		req.Key = "changed"
		return &storagev1.IncrResponse{}, nil
	}
	require.NoError(t, s.call(t.Context()))
}
