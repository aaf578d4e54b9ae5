package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

func TestMain(m *testing.M) {
	if os.Getenv(withinTLS) != "" {
		var err error
		if serverTLS, clientTLS, err = testTLS(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if os.Getenv(peerMode) != "" {
		if err := runPeer(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// handlers is a [tunnel.Handler] made of two functions.
type handlers struct {
	unary  func(*tunnel.Incoming)
	stream func(context.Context, *tunnel.Incoming, connect.ServerStream) error
}

func (h handlers) ServeUnary(in *tunnel.Incoming) { h.unary(in) }

func (h handlers) ServeStream(ctx context.Context, in *tunnel.Incoming, s connect.ServerStream) error {
	return h.stream(ctx, in, s)
}

// echo answers unary calls with their request, and streams with each message that they receive.
func echo() handlers { return handlers{unary: echoUnary, stream: echoStream} }

func echoUnary(in *tunnel.Incoming) {
	req := &wrapperspb.BytesValue{}
	if err := in.Decode(req); err != nil {
		in.Reply(nil, err)
		return
	}
	in.SetHeader(in.Header())
	in.SetTrailer(in.Header())
	in.Reply(req, nil)
}

func echoStream(_ context.Context, in *tunnel.Incoming, stream connect.ServerStream) error {
	in.SetHeader(in.Header())
	for {
		req := &wrapperspb.BytesValue{}
		if err := stream.Receive(req); err != nil {
			if errors.Is(err, io.EOF) {
				in.SetTrailer(in.Header())
				return nil
			}
			return err
		}
		if err := stream.Send(req); err != nil {
			return err
		}
	}
}

// setup is the two ends of a tunnel, and the link between them if it is in memory.
type setup struct {
	client, server *tunnel.Conn
	link           *memnet.Link
}

// self is the Welcome of the tests' servers.
var self = tunnel.Welcome{Host: "server"}

func admit(h tunnel.Handler) func(tunnel.Hello) (tunnel.Handler, error) {
	return func(tunnel.Hello) (tunnel.Handler, error) { return h, nil }
}

// join performs the handshake over two ends of a connection. The caller must close both sides.
func join(t require.TestingT, near, far net.Conn, clientCfg, serverCfg tunnel.Config, h tunnel.Handler) (client, server *tunnel.Conn) {
	type accepted struct {
		conn *tunnel.Conn
		err  error
	}
	near, far = secure(near, far)
	ch := make(chan accepted, 1)
	go func() {
		conn, err := tunnel.Accept(context.Background(), far, serverCfg, self, admit(h))
		ch <- accepted{conn, err}
	}()
	client, err := tunnel.Dial(context.Background(), near, tunnel.Hello{Client: "client", Host: "server"}, clientCfg)
	require.NoError(t, err)
	a := <-ch
	require.NoError(t, a.err)
	return client, a.conn
}

// overMemory returns a tunnel over memnet.
func overMemory(t testing.TB, clientCfg, serverCfg tunnel.Config, h tunnel.Handler) setup {
	t.Helper()
	near, far := memnet.Pipe()
	client, server := join(t, near, far, clientCfg, serverCfg, h)
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	})
	return setup{client: client, server: server, link: near.Link()}
}

// overTCP returns a tunnel over a TCP connection.
func overTCP(t testing.TB, cfg tunnel.Config, h tunnel.Handler) (client, server *tunnel.Conn) {
	t.Helper()
	near, far := sockets(t)
	client, server = join(t, near, far, cfg, cfg, h)
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	})
	return client, server
}

func sockets(t testing.TB) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	type accepted struct {
		nc  net.Conn
		err error
	}
	ch := make(chan accepted, 1)
	go func() {
		nc, err := l.Accept()
		ch <- accepted{nc, err}
	}()
	near, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	a := <-ch
	require.NoError(t, a.err)
	return near, a.nc
}

// start starts an echo call with a request of size bytes, and returns a channel that receives its
// outcome.
func start(ctx context.Context, c *tunnel.Conn, procedure string, size int) (*tunnel.Call, <-chan error, error) {
	done := make(chan error, 1)
	call := &tunnel.Call{
		Target: "target", Caller: "caller", Procedure: procedure,
		Request: wrapperspb.Bytes(make([]byte, size)), Response: &wrapperspb.BytesValue{},
		Done: func(c *tunnel.Call) { done <- c.Err },
	}
	return call, done, c.Start(ctx, call)
}

func roundTrip(t testing.TB, c *tunnel.Conn, size int) {
	t.Helper()
	call, done, err := start(t.Context(), c, "/echo/Echo", size)
	require.NoError(t, err)
	require.NoError(t, <-done)
	res, ok := call.Response.(*wrapperspb.BytesValue)
	require.True(t, ok)
	require.Len(t, res.GetValue(), size)
}

// header returns a header with one field.
func header(key, value string) tunnel.Header {
	var h tunnel.Header
	h.Add(key, value)
	return h
}
