package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/runtime/tunnel"
)

// TestWhatIsNoBrain joins, and asks by the command line, an address at which there is no process, a
// process that is not a Brain, or a Brain of another version. Each ends in one error that reports
// it.
func TestWhatIsNoBrain(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		name  string
		serve func(t *testing.T, l net.Listener)
		// joinCode and join are the code and the text of a program's error; ask is the text that
		// the command line prints.
		joinCode  connect.Code
		join, ask string
		// answer is the part of the peer's response that a program's error quotes.
		answer string
	}{
		{
			name: "no process", serve: func(t *testing.T, l net.Listener) { require.NoError(t, l.Close()) },
			joinCode: connect.CodeUnavailable, join: "no process answers at ADDRESS", ask: "no process answers at ADDRESS",
		},
		{
			name: "a peer that closes", serve: serveConns(func(nc net.Conn) { _ = nc.Close() }),
			joinCode: connect.CodeUnavailable, join: "ADDRESS", ask: "the process at ADDRESS does not answer as a Brain does",
		},
		{
			name: "a silent peer", serve: serveConns(func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) }),
			joinCode: connect.CodeUnavailable, join: "what listens at ADDRESS did not answer", ask: "the process at ADDRESS does not answer within 5s",
		},
		{
			name: "a peer of another protocol", serve: serveConns(func(nc net.Conn) {
				_, _ = nc.Write([]byte("220 mail.example ESMTP\r\n"))
				_, _ = io.Copy(io.Discard, nc)
			}),
			answer:   "220 mail.example ESMTP\r\n",
			joinCode: connect.CodeFailedPrecondition, join: "ADDRESS: tunnel handshake: failed_precondition: the other side is not a tunnel: it began with \"220 mail",
			ask: "the process at ADDRESS is not a Brain",
		},
		{
			name: "a web server", serve: serveHTTP(http.NotFoundHandler()), answer: "HTTP/1.1 400 Bad Request",
			joinCode: connect.CodeFailedPrecondition, ask: "the process at ADDRESS is not a Brain",
			join: `ADDRESS: tunnel handshake: failed_precondition: the other side is a web server, not a tunnel: it began with "HTTP/1.1 400 Bad Request"`,
		},
		{
			name: "a web server with TLS", serve: serveTLS,
			joinCode: connect.CodeUnavailable, join: "ADDRESS closed the connection", ask: "the process at ADDRESS does not answer as a Brain does",
		},
		{
			name: "a Brain of another time", serve: serveOther,
			joinCode: connect.CodeFailedPrecondition, join: "the caller speaks 1 to 1, this Brain 7 to 9", ask: "Brain at ADDRESS refuses: no version",
		},
	} {
		t.Run(at.name, func(t *testing.T) {
			t.Parallel()
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			address := l.Addr().String()
			at.serve(t, l)
			err = checkJoin(t, address, "", at.joinCode, at.join)
			if at.answer != "" {
				typed, ok := errors.AsType[*tunnel.HandshakeError](err)
				require.True(t, ok, "%v", err)
				assert.Equal(t, tunnel.ReasonNotAPeer, typed.Reason)
				assert.Equal(t, at.answer, typed.Answer)
			}
			checkAsk(t, address, "", at.ask)
		})
	}
}

// TestHostThatIsNoBrain joins a process that hosts nodes, by mistake.
func TestHostThatIsNoBrain(t *testing.T) {
	t.Parallel()
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	host := member(t, b)
	token, _, err := rundir.FindToken(b.address)
	require.NoError(t, err)
	_ = checkJoin(t, host.Address(), token, connect.CodeFailedPrecondition, "joining Brain at ADDRESS: a host of nodes answers there, and no Brain")
	checkAsk(t, host.Address(), token, "the process at ADDRESS is not a Brain")
}

// TestJoiningASilentPeerEndsWithItsContext waits no longer than the caller's context allows.
func TestJoiningASilentPeerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(patient(t))
	serveConns(func(nc net.Conn) {
		_, err := io.ReadFull(nc, make([]byte, len(tunnel.Preface)))
		cancel()
		if err == nil {
			_, _ = io.Copy(io.Discard, nc)
		}
	})(t, l)
	_, err = join.Start(ctx, runtime.WithBrain(l.Addr().String()), runtime.WithData(t.TempDir()))
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "joining Brain at "+l.Addr().String())
}

func checkJoin(t *testing.T, address, token string, code connect.Code, text string) error {
	t.Helper()
	secret := runtime.WithToken(token)
	if token == "" {
		secret = runtime.WithOpen()
	}
	rt, err := join.Start(patient(t), runtime.WithBrain(address), runtime.WithData(t.TempDir()), secret)
	if err == nil {
		require.NoError(t, rt.Close())
	}
	require.Error(t, err)
	t.Log(err)
	assert.Equal(t, code, connect.CodeOf(err), "%v", err)
	assert.Contains(t, replaceAddress(err.Error(), address), text)
	return err
}

func checkAsk(t *testing.T, address, token, text string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(program, "raylink"), "tree", "--brain", address)
	cmd.Env = environment("RAYLINK_TOKEN=" + token)
	if token == "" {
		cmd.Env = environment("RAYLINK_OPEN=1")
	}
	_, stderr, exit := finish(t, cmd)
	t.Log(stderr)
	assert.Equal(t, exitNoBrain, exit)
	assert.Contains(t, replaceAddress(stderr, address), text)
}

// serveConns calls a function with every connection until the test ends.
func serveConns(serve func(net.Conn)) func(t *testing.T, l net.Listener) {
	return func(t *testing.T, l net.Listener) {
		t.Helper()
		var all sync.WaitGroup
		var mu sync.Mutex
		var conns []net.Conn
		all.Go(func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				conns = append(conns, nc)
				mu.Unlock()
				all.Go(func() {
					serve(nc)
					_ = nc.Close()
				})
			}
		})
		t.Cleanup(func() {
			_ = l.Close()
			mu.Lock()
			for _, nc := range conns {
				_ = nc.Close()
			}
			mu.Unlock()
			all.Wait()
		})
	}
}

func serveHTTP(handler http.Handler) func(t *testing.T, l net.Listener) {
	return func(t *testing.T, l net.Listener) {
		t.Helper()
		server := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = server.Serve(l)
		}()
		t.Cleanup(func() {
			_ = server.Close()
			<-ended
		})
	}
}

func serveTLS(t *testing.T, l net.Listener) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	require.NoError(t, server.Listener.Close())
	server.Listener = l
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	t.Cleanup(server.Close)
}

// otherBrain speaks protocol versions that this program does not know.
type otherBrain struct {
	brainv1connect.UnimplementedBrainServiceHandler
}

func (otherBrain) Hello(_ context.Context, req *brainv1.HelloRequest) (*brainv1.HelloResponse, error) {
	return nil, connect.Errorf(connect.CodeFailedPrecondition, "no version of Brain's protocol in common: the caller speaks %d to %d, this Brain 7 to 9",
		req.GetMinVersion(), req.GetMaxVersion())
}

// serveOther serves it over tunnels and HTTP, distinguished by a connection's first byte.
func serveOther(t *testing.T, l net.Listener) {
	t.Helper()
	server := connect.NewServer()
	brainv1connect.RegisterBrainServiceHandler(server, otherBrain{})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	web := &handed{Listener: l, conns: make(chan net.Conn), closed: make(chan struct{})}
	serveHTTP(mux)(t, web)
	serveConns(func(nc net.Conn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(nc, first); err != nil {
			return
		}
		back := &begun{Conn: nc, first: first, ended: make(chan struct{})}
		serveWeb := func(nc net.Conn) {
			select {
			case web.conns <- nc:
				<-back.ended
			case <-web.closed:
			}
		}
		if first[0] != tunnel.Preface[0] {
			serveWeb(back)
			return
		}
		conn, raw, err := tunnel.AcceptAny(t.Context(), back, tunnel.Config{}, tunnel.Welcome{Host: uuid.NewString()}, func(tunnel.Hello) (tunnel.Handler, error) {
			return tunnel.ServerHandler(server), nil
		})
		switch {
		case err != nil:
		case raw != nil:
			serveWeb(raw)
		default:
			<-conn.Done()
		}
	})(t, l)
}

// begun is a connection whose first byte has been read.
type begun struct {
	net.Conn

	first []byte
	ended chan struct{}
	once  sync.Once
}

// Read implements net.Conn.
func (c *begun) Read(p []byte) (int, error) {
	if len(c.first) > 0 && len(p) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Close implements net.Conn.
func (c *begun) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// handed is a listener whose connections another listener accepts.
type handed struct {
	net.Listener

	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (l *handed) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *handed) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
