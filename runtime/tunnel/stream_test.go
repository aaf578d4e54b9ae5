package tunnel_test

import (
	"context"
	"errors"
	"io"
	goruntime "runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

func bidi(ctx context.Context, t *testing.T, c *tunnel.Conn) connect.ClientStream {
	t.Helper()
	stream, err := c.Stream(ctx, tunnel.StreamRequest{
		Target: "t", Caller: "c", Procedure: "/echo/Stream", StreamType: connect.StreamTypeBidi,
	})
	require.NoError(t, err)
	return stream
}

// flood sends until the stream ends, and counts the messages.
func flood(send func(any) error, size int, count *int) {
	for send(wrapperspb.Bytes(make([]byte, size))) == nil {
		*count++
	}
}

func TestBlockedHandlerDoesNotBlockOtherCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		h := echo()
		h.stream = func(_ context.Context, in *tunnel.Incoming, s connect.ServerStream) error {
			if in.Procedure == "/echo/Stream" {
				<-release
				return nil
			}
			return echoStream(t.Context(), in, s)
		}
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, h)
		var counts [3]int
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i, size := range []int{10, 10 << 10, 3 << 20} {
			stream := bidi(ctx, t, s.client)
			go flood(stream.Send, size, &counts[i])
		}
		synctest.Wait()
		require.InDelta(t, (1<<20)/45, counts[0], 1000, "a window of small messages was sent")
		require.InDelta(t, 100, counts[1], 5)
		require.Zero(t, counts[2], "a message larger than the window waits for its reader")
		for range 100 {
			roundTrip(t, s.client, 1000)
		}
		roundTrip(t, s.client, 5<<20)
		stream, err := s.client.Stream(ctx, tunnel.StreamRequest{Procedure: "/echo/Other", StreamType: connect.StreamTypeBidi})
		require.NoError(t, err)
		for range 5 {
			require.NoError(t, stream.Send(wrapperspb.Bytes(make([]byte, 3<<20))))
			require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
		}
		require.NoError(t, stream.Close())
		cancel()
		close(release)
		synctest.Wait()
		require.Zero(t, s.client.Pending())
		require.Zero(t, s.server.Pending())
	})
}

func TestBlockedCallerDoesNotBlockOtherCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var counts [2]int
		sizes := map[string]int{"small": 100, "large": 2 << 20}
		h := echo()
		h.stream = func(_ context.Context, in *tunnel.Incoming, s connect.ServerStream) error {
			if in.Target == "small" {
				flood(s.Send, sizes[in.Target], &counts[0])
			} else {
				flood(s.Send, sizes[in.Target], &counts[1])
			}
			return nil
		}
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, h)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for target := range sizes {
			stream, err := s.client.Stream(ctx, tunnel.StreamRequest{Target: target, Procedure: "/p/P", StreamType: connect.StreamTypeServer})
			require.NoError(t, err)
			require.NoError(t, stream.CloseSend())
		}
		synctest.Wait()
		require.Greater(t, counts[0], 5000)
		require.Zero(t, counts[1])
		roundTrip(t, s.client, 5<<20)
		cancel()
		synctest.Wait()
		require.Zero(t, s.client.Pending())
		require.Zero(t, s.server.Pending())
	})
}

func TestStreamsEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var there error
		h := handlers{stream: func(ctx context.Context, _ *tunnel.Incoming, s connect.ServerStream) error {
			there = s.Receive(&wrapperspb.BytesValue{})
			<-ctx.Done()
			return there
		}}
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, h)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := bidi(ctx, t, s.client).Receive(&wrapperspb.BytesValue{})
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
		synctest.Wait()
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(there))

		ctx, stop := context.WithCancel(t.Context())
		stream := bidi(ctx, t, s.client)
		require.NoError(t, stream.(interface{ SendHeaders() error }).SendHeaders())
		stop()
		err = stream.Receive(&wrapperspb.BytesValue{})
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(stream.Send(&wrapperspb.BytesValue{})))
		synctest.Wait()
		require.ErrorIs(t, there, context.Canceled)

		stream = bidi(t.Context(), t, s.client)
		go func() { _ = stream.Close() }()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(stream.Receive(&wrapperspb.BytesValue{})))
		synctest.Wait()
		require.Zero(t, s.client.Pending())
	})
}

func TestErrorEndsStreamAfterSentMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handlers{stream: func(_ context.Context, in *tunnel.Incoming, s connect.ServerStream) error {
			in.SetHeader(header("h", "1"))
			if err := s.Send(wrapperspb.Bytes([]byte("x"))); err != nil {
				return err
			}
			in.SetTrailer(header("t", "2"))
			return connect.NewError(connect.CodeAborted, "enough")
		}}
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, h)
		ctx, info := connect.NewClientContext(t.Context())
		stream, err := s.client.Transport("t", "c").NewClientStream(ctx, spec(connect.StreamTypeBidi, "Stream"))
		require.NoError(t, err)
		require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
		require.Equal(t, "1", info.ResponseHeader().Get("h"))
		err = stream.Receive(&wrapperspb.BytesValue{})
		require.Equal(t, connect.CodeAborted, connect.CodeOf(err))
		require.Equal(t, "2", info.ResponseTrailer().Get("t"))
		require.ErrorIs(t, stream.Send(&wrapperspb.BytesValue{}), io.EOF)
		require.NoError(t, stream.Close())
	})
}

func TestPanicIsAnErrorForTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quiet := tunnel.Config{Logger: silent()}
		s := overMemory(t, quiet, quiet, handlers{
			unary:  func(*tunnel.Incoming) { panic("unary") },
			stream: func(context.Context, *tunnel.Incoming, connect.ServerStream) error { panic("stream") },
		})
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		require.Equal(t, connect.CodeInternal, connect.CodeOf(<-done))
		err = bidi(t.Context(), t, s.client).Receive(&wrapperspb.BytesValue{})
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err))
		require.NoError(t, s.client.Err())
	})
}

func TestStreamOverLimitIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{MaxStreams: 2}, echo())
		streams := []connect.ClientStream{bidi(t.Context(), t, s.client), bidi(t.Context(), t, s.client)}
		for _, stream := range streams {
			require.NoError(t, stream.Send(wrapperspb.Bytes(nil)))
			require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
		}
		err := bidi(t.Context(), t, s.client).Receive(&wrapperspb.BytesValue{})
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.ErrorIs(t, err, tunnel.ErrNotRun)
		require.NoError(t, streams[0].CloseSend())
		require.ErrorIs(t, streams[0].Receive(&wrapperspb.BytesValue{}), io.EOF)
		again := bidi(t.Context(), t, s.client)
		require.NoError(t, again.Send(wrapperspb.Bytes(nil)))
		require.NoError(t, again.Receive(&wrapperspb.BytesValue{}))
		require.NoError(t, errors.Join(again.Close(), streams[1].Close()))
	})
}

// TestUnreadSmallMessagesHoldLittleMemory: messages stay in the read buffer only if they are a
// large part of it. A stream with a slow reader therefore holds about its window, whatever else is
// received on the connection.
func TestUnreadSmallMessagesHoldLittleMemory(t *testing.T) {
	hold := make(chan struct{})
	h := echo()
	h.stream = func(_ context.Context, in *tunnel.Incoming, s connect.ServerStream) error {
		if in.Procedure == "/p/Slow" {
			<-hold
		}
		for {
			if err := s.Receive(&wrapperspb.BytesValue{}); err != nil {
				return nil //nolint:nilerr // the end
			}
		}
	}
	client, _ := overTCP(t, tunnel.Config{}, h)
	open := func(procedure string) connect.ClientStream {
		s, err := client.Stream(t.Context(), tunnel.StreamRequest{Procedure: procedure, StreamType: connect.StreamTypeClient})
		require.NoError(t, err)
		return s
	}
	slow, quick := open("/p/Slow"), open("/p/Quick")
	used := func() uint64 {
		var stats goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := used()
	small, large := wrapperspb.Bytes([]byte("x")), wrapperspb.Bytes(make([]byte, 7<<10))
	for range 2000 {
		require.NoError(t, slow.Send(small))
		for range 8 {
			require.NoError(t, quick.Send(large))
		}
	}
	require.Less(t, used(), before+(16<<20), "2,000 messages of one octet")
	close(hold)
	for _, s := range []connect.ClientStream{slow, quick} {
		require.NoError(t, s.CloseSend())
		require.ErrorIs(t, s.Receive(nil), io.EOF)
	}
}

// TestWindowGrowsForFastReader, and for no other.
func TestWindowGrowsForFastReader(t *testing.T) {
	const window = 64 << 10
	// ahead returns how many messages a sender can send ahead of a reader that reads taken
	// messages, and pauses after each.
	ahead := func(t *testing.T, taken int, pause time.Duration) (sent int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			got := 0
			h := echo()
			h.stream = func(ctx context.Context, _ *tunnel.Incoming, s connect.ServerStream) error {
				for got < taken {
					if err := s.Receive(&wrapperspb.BytesValue{}); err != nil {
						return err
					}
					got++
					<-time.After(pause)
				}
				<-ctx.Done()
				return nil
			}
			s := overMemory(t, tunnel.Config{}, tunnel.Config{StreamWindow: window, Keepalive: -1}, h)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			stream, err := s.client.Stream(ctx, tunnel.StreamRequest{Procedure: "/p/P", StreamType: connect.StreamTypeClient})
			require.NoError(t, err)
			for stream.Send(wrapperspb.Bytes(make([]byte, 1<<10))) == nil {
				sent++
			}
			sent -= got
		})
		return sent
	}
	small, grown := window>>10, 8*window>>10
	require.LessOrEqual(t, ahead(t, 0, 0), small)
	require.LessOrEqual(t, ahead(t, 1000, time.Millisecond), small+1)
	require.Greater(t, ahead(t, 1000, 0), 4*small)
	require.LessOrEqual(t, ahead(t, 1000, 0), grown+1)
}

// TestManyStreamsResumeAtOnce has many streams wait for credit, with more small messages than fit
// one write when credit arrives for all.
func TestManyStreamsResumeAtOnce(t *testing.T) {
	const streams, messages, window = 1500, 70, 64 << 10
	release := make(chan struct{})
	h := echo()
	h.stream = func(_ context.Context, _ *tunnel.Incoming, s connect.ServerStream) error {
		<-release
		for {
			if err := s.Receive(&wrapperspb.BytesValue{}); err != nil {
				return nil //nolint:nilerr // the end
			}
		}
	}
	client, server := overTCP(t, tunnel.Config{StreamWindow: window, MaxStreamWindow: window}, h)
	var all sync.WaitGroup
	for range streams {
		all.Go(func() {
			s, err := client.Stream(t.Context(), tunnel.StreamRequest{Procedure: "/p/P", StreamType: connect.StreamTypeClient})
			if err != nil {
				t.Error(err)
				return
			}
			for range messages {
				if err := s.Send(wrapperspb.Bytes(make([]byte, 1000))); err != nil {
					t.Error(err)
					return
				}
			}
			if err := s.CloseSend(); err != nil {
				t.Error(err)
			}
			if err := s.Receive(nil); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool {
		return server.Pending() == streams && server.Stats().BytesReceived > streams*(window-2048)
	}, time.Minute, time.Millisecond)
	close(release)
	all.Wait()
}
