package tunnel_test

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// trap is a message that calls does instead of being encoded, from the n-th access on. A message
// that is modified concurrently behaves like that.
type trap struct {
	*wrapperspb.BytesValue

	n    int
	does func()
}

// ProtoReflect implements proto.Message.
func (m *trap) ProtoReflect() protoreflect.Message {
	if m.n--; m.n <= 0 {
		m.does()
	}
	return m.BytesValue.ProtoReflect()
}

// TestUnencodableResponseFailsItsCallOnly has responses panic or end their goroutine at every step
// of encoding, with small and large messages, on the read loop and on other goroutines.
func TestUnencodableResponseFailsItsCallOnly(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	config := tunnel.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	next := make(chan func(in *tunnel.Incoming), 1)
	client, _ := overTCP(t, config, handlers{unary: func(in *tunnel.Incoming) { (<-next)(in) }})
	call := func(handler func(in *tunnel.Incoming)) error {
		next <- handler
		_, done, err := start(t.Context(), client, "/p/P", 1)
		require.NoError(t, err)
		return <-done
	}
	for name, does := range map[string]func(){"panics": func() { panic("on purpose") }, "ends": runtime.Goexit} {
		for _, size := range []int{10, 100 << 10} {
			for n := 1; n <= 6; n++ {
				log.Reset()
				err := call(func(in *tunnel.Incoming) {
					reply := func() { in.Reply(&trap{wrapperspb.Bytes(make([]byte, size)), n, does}, nil) }
					if name == "panics" && n%2 == 0 {
						reply()
					} else {
						go reply()
					}
				})
				if err == nil {
					require.Greater(t, n, 2, "the message was accessed too rarely")
					break
				}
				require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%s at %d: %v", name, n, err)
				require.ErrorContains(t, err, "a response of p/P can't be sent")
				require.Eventually(t, func() bool { return log.Contains("/p/P") }, time.Minute, time.Millisecond, "the error is not in the log")
				require.NoError(t, call(func(in *tunnel.Incoming) { in.Reply(nil, nil) }))
			}
		}
	}
}

// TestUnencodableRequestFailsItsCallOnly is the same for requests.
func TestUnencodableRequestFailsItsCallOnly(t *testing.T) {
	t.Parallel()
	client, _ := overTCP(t, tunnel.Config{}, echo())
	for _, size := range []int{10, 100 << 10} {
		for n := 1; n <= 6; n++ {
			request := func() *trap {
				return &trap{wrapperspb.Bytes(make([]byte, size)), n, func() { panic("on purpose") }}
			}
			done := make(chan error, 1)
			c := &tunnel.Call{Procedure: "/p/P", Request: request(), Done: func(c *tunnel.Call) { done <- c.Err }}
			err := client.Start(t.Context(), c)
			if err == nil {
				err = <-done
			}
			stream, serr := client.Stream(t.Context(), tunnel.StreamRequest{Procedure: "/p/P", StreamType: connect.StreamTypeBidi})
			require.NoError(t, serr)
			serr = stream.Send(request())
			require.NoError(t, stream.Close())
			spec := connect.Spec{Procedure: "/p/P"}
			res := &wrapperspb.BytesValue{}
			cerr := connect.NewClient(client.Transport("", "")).CallUnary(t.Context(), spec, request(), res)
			if n > 2 {
				break
			}
			for _, err := range []error{err, serr, cerr} {
				require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "at %d: %v", n, err)
			}
		}
	}
	_, done, err := start(t.Context(), client, "/p/P", 1)
	require.NoError(t, err)
	require.NoError(t, <-done)
}

// TestMessageThatGrowsWhileItIsSent has a response that is larger when it is encoded than when it
// was measured. No frame may be longer than its header states.
func TestMessageThatGrowsWhileItIsSent(t *testing.T) {
	t.Parallel()
	client, _ := overTCP(t, tunnel.Config{}, handlers{unary: func(in *tunnel.Incoming) {
		m := &trap{BytesValue: wrapperspb.Bytes([]byte("x")), n: 2}
		m.does = func() { m.Value = make([]byte, 20<<20) }
		in.Reply(m, nil)
	}, stream: func(context.Context, *tunnel.Incoming, connect.ServerStream) error { return nil }})
	for range 2 {
		_, done, err := start(t.Context(), client, "/p/P", 1)
		require.NoError(t, err)
		require.ErrorContains(t, <-done, "changed while it was being sent")
	}
}

// lockedBuffer is a log for concurrent writers.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// Reset removes the contents.
func (b *lockedBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

// Contains reports whether s was logged.
func (b *lockedBuffer) Contains(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Contains(b.buf.Bytes(), []byte(s))
}
