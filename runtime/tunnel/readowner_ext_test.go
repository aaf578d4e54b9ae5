package tunnel_test

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// invoke makes a synchronous echo call of size bytes, whose caller may read its own answer.
func invoke(ctx context.Context, c *tunnel.Conn, size int) error {
	res := &wrapperspb.BytesValue{}
	call := &tunnel.Call{
		Procedure: "/p/P", Request: wrapperspb.Bytes(make([]byte, size)), Response: res, Synchronous: true,
	}
	if err := c.Start(ctx, call); err != nil {
		return err
	}
	c.Wait(ctx, call, context.Context.Err)
	if call.Err == nil && len(res.GetValue()) != size {
		return connect.Errorf(connect.CodeDataLoss, "echoed %d of %d bytes", len(res.GetValue()), size)
	}
	return call.Err
}

// makeCallersRead makes calls one at a time until callers read their own answers.
func makeCallersRead(t *testing.T, c *tunnel.Conn) {
	t.Helper()
	for range 20 {
		require.NoError(t, invoke(t.Context(), c, 16))
		synctest.Wait()
	}
}

// withReadingCallers runs a test on a tunnel whose callers read their own answers. hold makes the
// server withhold answers until release is called.
func withReadingCallers(t *testing.T, test func(t *testing.T, s setup, hold func() (release func()))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var held chan struct{}
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{stream: echoStream, unary: func(in *tunnel.Incoming) {
			if held == nil {
				echoUnary(in)
				return
			}
			req := &wrapperspb.BytesValue{}
			if err := in.Decode(req); err != nil {
				in.Reply(nil, err)
				return
			}
			go func() {
				<-held
				in.Reply(req, nil)
			}()
		}})
		makeCallersRead(t, s.client)
		test(t, s, func() func() {
			held = make(chan struct{})
			return func() { close(held) }
		})
	})
}

func TestReadingAlternatesBetweenCallerAndLoop(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, _ func() func()) {
		roundTrip(t, s.client, 1) // not synchronous, so its caller does not read
		makeCallersRead(t, s.client)
		stream := bidi(t.Context(), t, s.client)
		for range 3 {
			require.NoError(t, stream.Send(wrapperspb.Bytes([]byte("x"))))
			require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
			require.NoError(t, invoke(t.Context(), s.client, 16))
		}
		require.NoError(t, stream.Close())
		makeCallersRead(t, s.client)
		require.NoError(t, invoke(t.Context(), s.client, 3<<20))
		makeCallersRead(t, s.client)
	})
}

func TestCallsJoinAReadingCaller(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, hold func() func()) {
		release := hold()
		ends := make(chan error, 10)
		for range cap(ends) {
			go func() { ends <- invoke(t.Context(), s.client, 16) }()
			synctest.Wait()
		}
		release()
		for range cap(ends) {
			require.NoError(t, <-ends)
		}
	})
}

func TestReadingCallerEndsWithItsContext(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, hold func() func()) {
		defer hold()()
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, invoke(ctx, s.client, 16), context.DeadlineExceeded)
		require.Equal(t, 10*time.Millisecond, time.Since(begin))
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(invoke(ctx, s.client, 16)))
	})
}

func TestConnectionIsLostWhileCallerReads(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, hold func() func()) {
		defer hold()()
		end := make(chan error, 1)
		go func() { end <- invoke(t.Context(), s.client, 16) }()
		synctest.Wait()
		s.link.Cut()
		err := <-end
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorIs(t, err, memnet.ErrCut)
		<-s.client.Done()
	})
}

func TestIdleConnectionNoticesItsEnd(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, _ func() func()) {
		begin := time.Now()
		require.NoError(t, s.server.Close())
		<-s.client.Done()
		require.LessOrEqual(t, time.Since(begin), 3*time.Millisecond)
	})
}

// TestReadingCallerMeetsDeadlineOnSlowLink: a caller that reads its own answer returns at its
// deadline, at whatever byte the peer stops or slows down. What has arrived is not lost, and the
// connection stays open.
func TestReadingCallerMeetsDeadlineOnSlowLink(t *testing.T) {
	const (
		size     = 2 << 20
		fragment = 257 << 10
		deadline = 50 * time.Millisecond
	)
	for what, after := range map[string]int{
		"before the answer": 0, "in the first header": 3, "in the first frame": 9, "after the first frame": 13,
		"in a fragment's header": 20, "in the first fragment": 100 << 10, "in a later fragment": fragment + 100<<10, "before the end": size + 40,
	} {
		for how, slow := range map[string]func(*memnet.Link){
			"stalled": func(*memnet.Link) {},
			"slow": func(l *memnet.Link) {
				l.Rate(3) // before the rest can arrive
				l.Resume()
			},
		} {
			t.Run(what+" it "+how, func(t *testing.T) {
				withReadingCallers(t, func(t *testing.T, s setup, _ func() func()) {
					ctx, cancel := context.WithTimeout(t.Context(), deadline)
					defer cancel()
					s.link.StallRepliesAfter(after)
					ends := make(chan time.Duration, 1)
					begin := time.Now()
					go func() {
						err := invoke(ctx, s.client, size)
						if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
							t.Error(err)
						}
						ends <- time.Since(begin)
					}()
					<-time.After(time.Millisecond / 2)
					slow(s.link)
					require.LessOrEqual(t, <-ends, deadline+2*time.Millisecond)
					<-time.After(2 * time.Second)
					s.link.Rate(0)
					s.link.Resume()
					makeCallersRead(t, s.client)
					require.NoError(t, invoke(t.Context(), s.client, size))
					require.NoError(t, s.client.Err())
				})
			})
		}
	}
}

// TestCallsOfEveryShapeMeetTheirDeadlines: none of them waits for the rest of an answer.
func TestCallsOfEveryShapeMeetTheirDeadlines(t *testing.T) {
	const size, deadline = 2 << 20, 50 * time.Millisecond
	stream := func(shape connect.StreamType) func(context.Context, *tunnel.Conn) error {
		return func(ctx context.Context, c *tunnel.Conn) error {
			stream, err := c.Stream(ctx, tunnel.StreamRequest{Procedure: "/p/P", StreamType: shape})
			if err != nil {
				return err
			}
			if err := stream.Send(wrapperspb.Bytes(make([]byte, size))); err != nil {
				return err
			}
			return stream.Receive(&wrapperspb.BytesValue{})
		}
	}
	for what, call := range map[string]func(context.Context, *tunnel.Conn) error{
		"sync": func(ctx context.Context, c *tunnel.Conn) error { return invoke(ctx, c, size) },
		"async": func(ctx context.Context, c *tunnel.Conn) error {
			call, done, err := start(ctx, c, "/p/P", size)
			if err == nil {
				context.AfterFunc(ctx, func() { call.Cancel(ctx.Err()) })
				err = <-done
			}
			return err
		},
		"connect client": stream(connect.StreamTypeUnary),
		"server stream":  stream(connect.StreamTypeServer),
		"bidi stream":    stream(connect.StreamTypeBidi),
	} {
		t.Run(what, func(t *testing.T) {
			withReadingCallers(t, func(t *testing.T, s setup, _ func() func()) {
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				s.link.StallRepliesAfter(100 << 10)
				begin := time.Now()
				require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(call(ctx, s.client)))
				require.LessOrEqual(t, time.Since(begin), deadline+2*time.Millisecond)
				s.link.Resume()
				makeCallersRead(t, s.client)
				synctest.Wait()
				require.Zero(t, s.server.Pending())
			})
		})
	}
}

// TestCancelWhileReadingMessageOfStream: the caller that reads is in the middle of the message of
// another call when it is canceled.
func TestCancelWhileReadingMessageOfStream(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, hold func() func()) {
		release := hold()
		s.link.StallRepliesAfter(100 << 10)
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		go func() { end <- invoke(ctx, s.client, 16) }()
		synctest.Wait() // until it reads
		stream := bidi(t.Context(), t, s.client)
		want := pattern(1, 300<<10)
		require.NoError(t, stream.Send(wrapperspb.Bytes(want)))
		synctest.Wait()
		begin := time.Now()
		cancel()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(<-end))
		require.LessOrEqual(t, time.Since(begin), 2*time.Millisecond)
		s.link.Resume()
		got := &wrapperspb.BytesValue{}
		require.NoError(t, stream.Receive(got))
		require.Equal(t, want, got.GetValue())
		require.NoError(t, stream.Close())
		release()
	})
}

// TestInterruptionInLastFragment: another call begins while the only caller reads the end of a
// large answer. The connection stays open.
func TestInterruptionInLastFragment(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, hold func() func()) {
		const size = 250 << 10 // in one fragment
		ends := make(chan error, 2)
		s.link.StallRepliesAfter(size / 2)
		go func() { ends <- invoke(t.Context(), s.client, size) }()
		<-time.After(10 * time.Millisecond) // until it was interrupted
		release := hold()
		go func() { ends <- invoke(t.Context(), s.client, 16) }()
		synctest.Wait()
		s.link.Resume()
		require.NoError(t, <-ends)
		<-time.After(time.Second)
		require.NoError(t, s.client.Err())
		release()
		require.NoError(t, <-ends)
	})
}

// TestReadingCallersOnSlowLink makes synchronous calls with small and large answers beside another
// caller, on a link of 200 Mbit/s. With a garbage collector that runs continuously, memory that is
// reused too early would show up in the answers.
func TestReadingCallersOnSlowLink(t *testing.T) {
	for _, percent := range []int{100, 5} {
		t.Run(fmt.Sprintf("GOGC=%d", percent), func(t *testing.T) {
			defer debug.SetGCPercent(debug.SetGCPercent(percent))
			ordinaryProgramOnASlowLink(t)
		})
	}
}

func ordinaryProgramOnASlowLink(t *testing.T) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			size := &wrapperspb.Int32Value{}
			if err := in.Decode(size); err != nil {
				in.Reply(nil, err)
				return
			}
			in.Reply(wrapperspb.Bytes(pattern(1, int(size.GetValue()))), nil)
		}})
		s.link.Rate(200e6 / 8)
		s.link.Delay(100 * time.Microsecond)
		ask := func(size int) bool {
			res := &wrapperspb.BytesValue{}
			call := &tunnel.Call{Procedure: "/p/P", Request: wrapperspb.Int32(int32(size)), Response: res, Synchronous: true}
			err := s.client.Start(t.Context(), call)
			if err == nil {
				s.client.Wait(t.Context(), call, context.Context.Err)
				err = call.Err
			}
			return assert.NoError(t, err) && assert.Equal(t, pattern(1, size), res.GetValue())
		}
		var all sync.WaitGroup
		all.Go(func() {
			for i := range 200 {
				size := 16
				if i%7 == 6 {
					size = 200 << 10
				}
				if !ask(size) {
					return
				}
			}
		})
		all.Go(func() {
			for i := range 60 {
				<-time.After(time.Duration(i%9) * time.Millisecond)
				if !ask(16 + (i%3)*(100<<10)) {
					return
				}
			}
		})
		all.Wait()
		require.NoError(t, s.client.Err())
	})
}

func TestReadingCallerIsInterruptedInLargeAnswer(t *testing.T) {
	withReadingCallers(t, func(t *testing.T, s setup, _ func() func()) {
		end := make(chan error, 1)
		s.link.Delay(700 * time.Microsecond) // so that its fragments arrive at different times
		go func() { end <- invoke(t.Context(), s.client, 3<<20) }()
		<-time.After(2 * time.Millisecond)
		s.link.Stall()
		<-time.After(10 * time.Millisecond)
		s.link.Resume()
		require.NoError(t, <-end)
		s.link.Delay(0)
		makeCallersRead(t, s.client)
	})
}

// TestReadOwnerChangesConcurrently is for the race detector: the owner of reading changes again and
// again.
func TestReadOwnerChangesConcurrently(t *testing.T) {
	client, _ := overTCP(t, tunnel.Config{}, echo())
	for range 20 {
		for range 20 {
			require.NoError(t, invoke(t.Context(), client, 16))
		}
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for range 10 {
					assert.NoError(t, invoke(t.Context(), client, 16))
				}
			})
		}
		all.Wait()
	}
}
