package runtime

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
)

// stuckStream is a transport's stream whose Send blocks until it is interrupted.
type stuckStream struct {
	connect.ServerStream

	interrupted chan struct{}
}

func (s *stuckStream) Send(any) error {
	<-s.interrupted
	return errors.New("the deadline has passed")
}

// TestBlockedSendIsInterrupted has a method return while another goroutine sends to a caller that
// does not read.
func TestBlockedSendIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("counter", 1)
		stuck, call := &stuckStream{interrupted: make(chan struct{})}, &countedCall{}
		call.response = heldBody{of: newBodies("responses", 1<<20), ctx: t.Context(), interrupt: func() { close(stuck.interrupted) }}
		reply := &replyStream{
			ServerStream: &countedStream{stuck, call}, node: s.node, isShared: true,
			call: newCall(t.Context(), &s.incr.m, byTunnel), setHeader: func(Metadata) {},
		}
		failed := make(chan error, 1)
		go func() { failed <- reply.Send(nil) }()
		synctest.Wait()
		begun := time.Now()
		reply.finish(t.Context())
		require.Equal(t, grace, time.Since(begun))
		require.Error(t, <-failed)
		require.ErrorContains(t, reply.Send(nil), errStreamEnded.Error())
		require.ErrorContains(t, reply.SendHeaders(), errStreamEnded.Error())
	})
}
