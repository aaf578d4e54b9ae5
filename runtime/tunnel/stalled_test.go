package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// noticed is the maximum time from the end of a context to the return of its call.
const noticed = 2 * time.Millisecond

// ending is a way in which a context ends, and the code of the call then.
type ending struct {
	name  string
	after func(context.Context, time.Duration) (context.Context, context.CancelFunc)
	code  connect.Code
}

func endings() []ending {
	return []ending{
		{"deadline", context.WithTimeout, connect.CodeDeadlineExceeded},
		{"cancellation", func(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(d, cancel)
			return ctx, cancel
		}, connect.CodeCanceled},
	}
}

// callWithContext makes a call that is canceled with its context, and returns its outcome.
func callWithContext(ctx context.Context, c *tunnel.Conn, procedure string, size int) error {
	call, done, err := start(ctx, c, procedure, size)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { call.Cancel(ctx.Err()) })()
	return <-done
}

// overStream sends one message on a stream and receives one. After a Send that returns io.EOF,
// Receive returns the outcome.
func overStream(ctx context.Context, c *tunnel.Conn, shape connect.StreamType, size int) error {
	stream, err := c.Stream(ctx, tunnel.StreamRequest{Procedure: "/p/P", StreamType: shape})
	if err != nil {
		return err
	}
	if err := stream.Send(wrapperspb.Bytes(make([]byte, size))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return stream.Receive(&wrapperspb.BytesValue{})
}

// TestContextEndsLargeRequestOnStalledLink: at whatever byte of its request the peer stops reading,
// a call returns when its context ends. The connection stays open and continues where it was.
func TestContextEndsLargeRequestOnStalledLink(t *testing.T) {
	const size, wait = 3 << 20, 50 * time.Millisecond
	shape := func(shape connect.StreamType) func(context.Context, *tunnel.Conn) error {
		return func(ctx context.Context, c *tunnel.Conn) error { return overStream(ctx, c, shape, size) }
	}
	for kind, call := range map[string]func(context.Context, *tunnel.Conn) error{
		"sync":           func(ctx context.Context, c *tunnel.Conn) error { return invoke(ctx, c, size) },
		"async":          func(ctx context.Context, c *tunnel.Conn) error { return callWithContext(ctx, c, "/p/P", size) },
		"connect client": shape(connect.StreamTypeUnary),
		"client stream":  shape(connect.StreamTypeClient),
		"bidi stream":    shape(connect.StreamTypeBidi),
	} {
		for _, stall := range []int{0, 3, 20, 100 << 10, 257<<10 + 100<<10} {
			for _, end := range endings() {
				t.Run(fmt.Sprintf("%s, %s, after %d bytes", kind, end.name, stall), func(t *testing.T) {
					withReadingCallers(t, func(t *testing.T, s setup, _ func() func()) {
						s.link.StallRequestsAfter(stall)
						ctx, cancel := end.after(t.Context(), wait)
						defer cancel()
						begin := time.Now()
						require.Equal(t, end.code, connect.CodeOf(call(ctx, s.client)))
						require.GreaterOrEqual(t, time.Since(begin), wait)
						require.LessOrEqual(t, time.Since(begin), wait+noticed)
						<-time.After(2 * time.Second)
						s.link.Resume()
						makeCallersRead(t, s.client)
						require.NoError(t, invoke(t.Context(), s.client, size))
						require.Zero(t, s.client.Pending())
						require.Zero(t, s.server.Pending(), "the serving side has not ended the call")
					})
				})
			}
		}
	}
}

// TestContextEndsStreamStalledInBothDirections: the caller is in the middle of sending one message
// and receiving another. Both end with the context, and so does the handler: at the deadline by
// itself, and on cancellation as soon as CANCEL can arrive.
func TestContextEndsStreamStalledInBothDirections(t *testing.T) {
	const size, wait = 3 << 20, 50 * time.Millisecond
	for _, end := range endings() {
		for _, stall := range []int{3, 20, 20 << 10} {
			t.Run(fmt.Sprintf("%s, after %d bytes", end.name, stall), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					served := make(chan error, 2)
					s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{
						unary: echoUnary,
						stream: func(_ context.Context, _ *tunnel.Incoming, stream connect.ServerStream) error {
							if err := stream.Receive(&wrapperspb.BytesValue{}); err != nil {
								return err
							}
							go func() { served <- stream.Receive(&wrapperspb.BytesValue{}) }()
							err := stream.Send(wrapperspb.Bytes(make([]byte, size)))
							served <- err
							return err
						},
					})
					ctx, cancel := end.after(t.Context(), wait)
					defer cancel()
					begin := time.Now()
					stream := bidi(ctx, t, s.client)
					s.link.StallRepliesAfter(stall)
					require.NoError(t, stream.Send(nil))
					synctest.Wait() // until the handler sends, while another message is incomplete
					s.link.StallRequestsAfter(stall)
					ends := make(chan error, 2)
					go func() { ends <- stream.Send(wrapperspb.Bytes(make([]byte, size))) }()
					go func() { ends <- stream.Receive(&wrapperspb.BytesValue{}) }()
					for range 2 {
						require.Equal(t, end.code, connect.CodeOf(<-ends))
						require.LessOrEqual(t, time.Since(begin), wait+noticed)
					}
					require.GreaterOrEqual(t, time.Since(begin), wait)
					if end.code == connect.CodeCanceled {
						synctest.Wait()
						require.Empty(t, served, "the cancellation cannot have arrived")
						s.link.ResumeRequests() // the other direction could complete the handler's Send
					}
					for range 2 {
						require.Equal(t, end.code, connect.CodeOf(<-served))
						require.LessOrEqual(t, time.Since(begin), wait+noticed)
					}
					<-time.After(2 * time.Second)
					s.link.Resume()
					roundTrip(t, s.client, size)
					synctest.Wait()
					require.Zero(t, s.client.Pending())
					require.Zero(t, s.server.Pending())
				})
			})
		}
	}
}

// TestCallsEndWhileFrameIsStalled: the frame of one call is stalled in either direction. Calls that
// were open before and calls that begin afterwards end with their contexts, on both sides, and the
// stalled call continues when the peer does.
func TestCallsEndWhileFrameIsStalled(t *testing.T) {
	const wait = 50 * time.Millisecond
	for what, stop := range map[string]func(*memnet.Link, int){
		"requests": (*memnet.Link).StallRequestsAfter,
		"replies":  (*memnet.Link).StallRepliesAfter,
		"neither": func(l *memnet.Link, n int) {
			l.StallRequestsAfter(n)
			l.StallRepliesAfter(n)
		},
	} {
		for _, stall := range []int{3, 20, 100 << 10} {
			for _, end := range endings() {
				t.Run(fmt.Sprintf("%s, %s, after %d bytes", what, end.name, stall), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var held []context.Context
						s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{
							unary: func(in *tunnel.Incoming) {
								if in.Procedure == "/echo/Echo" {
									echoUnary(in)
									return
								}
								held = append(held, in.Context())
								context.AfterFunc(in.Context(), func() { in.Reply(nil, in.Context().Err()) })
							},
							stream: func(ctx context.Context, _ *tunnel.Incoming, _ connect.ServerStream) error {
								<-ctx.Done()
								return ctx.Err()
							},
						})
						ctx, cancel := end.after(t.Context(), wait)
						defer cancel()
						begin := time.Now()
						ends := make(chan error, 8)
						others := func() {
							go func() { ends <- invoke(ctx, s.client, 16) }()
							go func() { ends <- callWithContext(ctx, s.client, "/p/P", 16) }()
							go func() { ends <- overStream(ctx, s.client, connect.StreamTypeBidi, 16) }()
							go func() { ends <- overStream(ctx, s.client, connect.StreamTypeBidi, 3<<20) }()
							synctest.Wait()
						}
						others()
						before := held
						require.Len(t, before, 2)
						stop(s.link, stall)
						_, stuck, err := start(t.Context(), s.client, "/echo/Echo", 3<<20)
						require.NoError(t, err)
						synctest.Wait()
						require.Empty(t, stuck)
						others()
						for range cap(ends) {
							require.Equal(t, end.code, connect.CodeOf(<-ends))
							require.LessOrEqual(t, time.Since(begin), wait+noticed)
						}
						require.GreaterOrEqual(t, time.Since(begin), wait)
						if end.code == connect.CodeDeadlineExceeded {
							for _, ctx := range before {
								require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
							}
						}
						<-time.After(2 * time.Second)
						s.link.Resume()
						require.NoError(t, <-stuck)
						synctest.Wait()
						for _, ctx := range held {
							require.Error(t, ctx.Err())
						}
						require.NoError(t, s.client.Err())
						require.Zero(t, s.client.Pending())
						require.Zero(t, s.server.Pending())
					})
				})
			}
		}
	}
}
