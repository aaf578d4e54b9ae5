package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// never is a handler that does not answer calls.
func never() handlers {
	return handlers{
		unary: func(*tunnel.Incoming) {},
		stream: func(ctx context.Context, _ *tunnel.Incoming, _ connect.ServerStream) error {
			<-ctx.Done()
			return ctx.Err()
		},
	}
}

func TestLostConnectionFailsOpenCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held *tunnel.Incoming
		h := never()
		h.unary = func(in *tunnel.Incoming) { held = in }
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, h)
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		stream := bidi(t.Context(), t, s.client)
		sent := make(chan error, 1)
		go func() { sent <- stream.Send(wrapperspb.Bytes(make([]byte, 2<<20))) }()
		synctest.Wait()
		s.link.Cut()
		err = <-done
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorIs(t, err, memnet.ErrCut)
		require.ErrorContains(t, err, "tunnel to server (far)")
		require.NotErrorIs(t, err, tunnel.ErrNotRun)
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(stream.Receive(&wrapperspb.BytesValue{})))
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(<-sent))
		<-s.client.Done()
		require.ErrorIs(t, s.client.Err(), memnet.ErrCut)
		synctest.Wait()
		require.ErrorIs(t, held.Context().Err(), context.Canceled)
		held.Reply(nil, nil) // has no effect after the end
		_, _, err = start(t.Context(), s.client, "/p/P", 1)
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorIs(t, err, tunnel.ErrNotRun)
		_, err = s.client.Stream(t.Context(), tunnel.StreamRequest{StreamType: connect.StreamTypeBidi})
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	})
}

func TestSilentPeerIsDetectedOnlyWhileCallsAreOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{Keepalive: time.Second}, tunnel.Config{Keepalive: time.Second}, echo())
		roundTrip(t, s.client, 1)
		s.link.Stall()
		<-time.After(time.Hour)
		require.NoError(t, s.client.Err(), "no call is open")
		begin := time.Now()
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		err = <-done
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorContains(t, err, "no answer for 2s")
		require.LessOrEqual(t, time.Since(begin), 3*time.Second)
	})
}

func TestSlowHandlerIsNotASilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tunnel.Config{Keepalive: time.Second}
		s := overMemory(t, cfg, cfg, handlers{unary: func(in *tunnel.Incoming) {
			time.AfterFunc(time.Hour, func() { in.Reply(nil, nil) })
		}})
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		require.NoError(t, <-done)
	})
}

func TestCloseWhilePeerShutsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s setup
		ended := make(chan error, 1)
		s = overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			// The answer and the GOAWAY go out in one write, so that the client reads the GOAWAY
			// after it has closed because of the answer.
			in.Reply(nil, nil)
			go func() { ended <- s.server.Shutdown(context.Background()) }()
			synctest.Wait()
		}})
		closed := make(chan error, 1)
		require.NoError(t, s.client.Start(t.Context(), &tunnel.Call{Done: func(*tunnel.Call) { closed <- s.client.Close() }}))
		require.NoError(t, <-closed)
		require.NoError(t, <-ended)
		<-s.client.Done()
		require.ErrorIs(t, s.client.Err(), tunnel.ErrClosed)
	})
}

func TestServerShutdownWaitsForOpenCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held *tunnel.Incoming
		h := echo()
		h.unary = func(in *tunnel.Incoming) { held = in }
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, h)
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		stream := bidi(t.Context(), t, s.client)
		require.NoError(t, stream.Send(wrapperspb.Bytes(nil)))
		synctest.Wait()
		ended := make(chan error, 1)
		go func() { ended <- s.server.Shutdown(context.Background()) }()
		synctest.Wait()
		require.Empty(t, ended)
		_, _, err = start(t.Context(), s.client, "/p/P", 1)
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorIs(t, err, tunnel.ErrNotRun)
		require.ErrorContains(t, err, "shutting down")
		held.Reply(wrapperspb.Bytes(make([]byte, 3<<20)), nil)
		require.NoError(t, stream.Receive(&wrapperspb.BytesValue{}))
		require.NoError(t, stream.CloseSend())
		require.ErrorIs(t, stream.Receive(&wrapperspb.BytesValue{}), io.EOF)
		require.NoError(t, <-done)
		require.NoError(t, <-ended)
		<-s.client.Done()
		require.ErrorIs(t, s.client.Err(), tunnel.ErrClosed)
	})
}

func TestCallsInFlightAtShutdownAreRefusedAsNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, echo())
		roundTrip(t, s.client, 1)
		s.link.Stall()
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		stream := bidi(t.Context(), t, s.client)
		require.NoError(t, stream.Send(wrapperspb.Bytes(nil)))
		ended := make(chan error, 1)
		go func() { ended <- s.server.Shutdown(context.Background()) }()
		synctest.Wait()
		s.link.Resume()
		err = <-done
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		after := stream.Receive(&wrapperspb.BytesValue{})
		require.NoError(t, <-ended)
		// They are the errors of calls that begin later: of a connection that is lost.
		for _, err := range []error{err, after} {
			require.ErrorIs(t, err, tunnel.ErrNotRun)
			require.ErrorIs(t, err, tunnel.ErrClosed)
			e, ok := errors.AsType[*connect.Error](err)
			require.True(t, ok)
			require.False(t, e.IsRemote())
		}
	})
}

func TestClientShutdownWaitsForOpenCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
			time.AfterFunc(time.Minute, func() { in.Reply(nil, nil) })
		}})
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		begin := time.Now()
		require.NoError(t, s.client.Shutdown(t.Context()))
		require.Equal(t, time.Minute, time.Since(begin))
		require.NoError(t, <-done)
		<-s.server.Done()
		require.ErrorIs(t, s.server.Err(), tunnel.ErrClosed)
	})
}

// TestPeerClosesWhilePingIsAnswered: a ping crosses the final answer, and the peer has closed the
// connection when the pong is written.
func TestPeerClosesWhilePingIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keepalive = 5 * time.Second
		s := overMemory(t, tunnel.Config{Keepalive: keepalive}, tunnel.Config{Keepalive: -1}, handlers{unary: func(in *tunnel.Incoming) {
			time.AfterFunc(2*keepalive, func() { in.Reply(nil, nil) })
		}})
		left := make(chan error, 1)
		require.NoError(t, s.client.Start(t.Context(), &tunnel.Call{Done: func(*tunnel.Call) {}}))
		go func() { left <- s.client.Shutdown(context.Background()) }()
		require.NoError(t, <-left)
		<-s.server.Done()
		require.ErrorIs(t, s.server.Err(), tunnel.ErrClosed)
	})
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, never())
		_, done, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = s.server.Shutdown(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "with 1 calls open")
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(<-done))
	})
}

func handshake(t *testing.T, hello tunnel.Hello, cfg tunnel.Config, admit func(tunnel.Hello) (tunnel.Handler, error)) (client, server error) {
	t.Helper()
	near, far := memnet.Pipe()
	ch := make(chan error, 1)
	go func() {
		_, err := tunnel.Accept(context.Background(), far, cfg, self, admit)
		ch <- err
	}()
	c, err := tunnel.Dial(t.Context(), near, hello, cfg)
	if err == nil {
		t.Cleanup(func() { require.NoError(t, c.Close()) })
	}
	return err, <-ch
}

func TestRefusedHandshakeReportsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := func(tunnel.Hello) (tunnel.Handler, error) {
			return nil, connect.NewError(connect.CodeNotFound, "no such node here")
		}
		client, server := handshake(t, tunnel.Hello{}, tunnel.Config{}, refuse)
		for _, err := range []error{client, server} {
			var failed *tunnel.HandshakeError
			require.ErrorAs(t, err, &failed)
			require.Equal(t, tunnel.ReasonRefused, failed.Reason)
			require.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
			require.ErrorIs(t, err, tunnel.ErrNotRun)
			require.ErrorContains(t, err, "no such node here")
		}
		client, server = handshake(t, tunnel.Hello{Host: "other"}, tunnel.Config{}, admit(echo()))
		for _, err := range []error{client, server} {
			var failed *tunnel.HandshakeError
			require.ErrorAs(t, err, &failed)
			require.Equal(t, tunnel.ReasonWrongHost, failed.Reason)
			require.ErrorContains(t, err, "expected host other, this is server")
		}
	})
}

func TestDialRejectsForeignPeer(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		reason tunnel.HandshakeReason
		text   string
	}{
		"a web server":      {"HTTP/1.1 400 Bad Request\r\n\r\n", tunnel.ReasonNotAPeer, `it began with "HTTP/1.1 400 Bad Request`},
		"nothing":           {"", tunnel.ReasonLost, "no answer from far within 10s"},
		"another version":   {tunnel.Preface + "\x02\x00\x00\x02\x00\x00\x00\x00\x10\x09", tunnel.ReasonVersion, "the server chose version 9"},
		"half a handshake":  {tunnel.Preface + "\x02\x00\x00\x02", tunnel.ReasonLost, "no answer"},
		"an endless answer": {tunnel.Preface + "\xff\xff\xff\x02\x00\x00\x00\x00", tunnel.ReasonNotAPeer, "the limit is 4096"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := memnet.Pipe()
				if test.answer != "" {
					_, err := far.Write([]byte(test.answer))
					require.NoError(t, err)
				}
				_, err := tunnel.Dial(t.Context(), near, tunnel.Hello{}, tunnel.Config{})
				var failed *tunnel.HandshakeError
				require.ErrorAs(t, err, &failed)
				require.Equal(t, test.reason, failed.Reason, err)
				require.ErrorContains(t, err, test.text)
				_, err = near.Read(make([]byte, 1))
				require.ErrorIs(t, err, net.ErrClosed)
			})
		})
	}
}

func TestAcceptRejectsForeignPeer(t *testing.T) {
	for name, test := range map[string]struct {
		sent   string
		reason tunnel.HandshakeReason
		text   string
	}{
		"a web client": {"GET / HTTP/1.1\r\n\r\n", tunnel.ReasonNotAPeer, `"GET / HTTP/1.1`},
		"nothing":      {"", tunnel.ReasonLost, "within 10s"},
		"old":          {tunnel.Preface + "\x04\x00\x00\x01\x00\x00\x00\x00\x08\x07\x10\x09", tunnel.ReasonVersion, "the dialler speaks 7 to 9, this side 2 to 2"},
		"no limits":    {tunnel.Preface + "\x27\x00\x00\x01\x00\x00\x00\x00\x08\x02\x10\x02\xb2\x01\x20" + strings.Repeat("n", 32), tunnel.ReasonNotAPeer, "limits too small"},
		"a call first": {tunnel.Preface + "\x00\x00\x00\x11\x00\x01\x00\x00", tunnel.ReasonNotAPeer, "a CALL frame in the handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := memnet.Pipe()
				if test.sent != "" {
					_, err := near.Write([]byte(test.sent))
					require.NoError(t, err)
				}
				_, err := tunnel.Accept(t.Context(), far, tunnel.Config{}, self, admit(echo()))
				var failed *tunnel.HandshakeError
				require.ErrorAs(t, err, &failed)
				require.Equal(t, test.reason, failed.Reason, err)
				require.ErrorContains(t, err, test.text)
			})
		})
	}
}

func TestHandshakeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := memnet.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := tunnel.Dial(ctx, near, tunnel.Hello{}, tunnel.Config{})
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
