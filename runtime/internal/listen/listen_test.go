package listen

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

const (
	address = "host:1"
	token   = "a token that both sides know"
)

// world is a network with one listener.
type world struct {
	*memnet.Network
	*Listener

	t       *testing.T
	spawned sync.WaitGroup
	end     context.CancelFunc
	client  *http.Client
	// opened receives the tunnels that are open.
	opened chan *tunnel.Conn
}

// newWorld starts a listener in the present bubble. change may be nil.
func newWorld(t *testing.T, handler http.Handler, change func(*Config)) *world {
	t.Helper()
	w := &world{Network: memnet.New(), t: t, opened: make(chan *tunnel.Conn, 10)}
	ctx, cancel := context.WithCancel(context.Background())
	w.end = cancel
	socket := filepath.Join(t.TempDir(), "socket")
	require.NoError(t, os.WriteFile(socket, nil, 0o600)) // its mode is set
	config := Config{
		Address: address, Socket: socket, Tunnel: tunnel.Config{Token: token, Keepalive: -1, BusyPoll: -1},
		Self: tunnel.Welcome{Host: "h"}, Log: slog.New(slog.DiscardHandler),
		Admit: func(hello tunnel.Hello, _ pki.Peer) (tunnel.Handler, func(*tunnel.Conn), error) {
			if hello.Tag != "" {
				return nil, nil, connect.NewError(connect.CodeNotFound, "no such tunnel")
			}
			return tunnel.ServerHandler(connect.NewServer()), func(c *tunnel.Conn) { w.opened <- c }, nil
		},
		Spawn: func(fn func(context.Context)) bool {
			w.spawned.Go(func() { fn(ctx) })
			return true
		},
		Listen: func(_ context.Context, _, address string) (net.Listener, error) { return w.Listen(address) },
	}
	if change != nil {
		change(&config)
	}
	var err error
	w.Listener, err = New(ctx, config)
	require.NoError(t, err)
	w.Serve(handler)
	w.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.Dial(ctx, address) },
	}}
	return w
}

func (w *world) close() {
	w.client.CloseIdleConnections()
	w.Close()
	w.end()
	w.spawned.Wait()
}

// get makes an HTTP request, and returns the body of its response.
func (w *world) get() (string, error) {
	res, err := w.client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// tunnelTo opens a tunnel to the listener at an address.
func (w *world) tunnelTo(address string, hello tunnel.Hello) (*tunnel.Conn, error) {
	w.t.Helper()
	nc, err := w.Dial(w.t.Context(), address)
	require.NoError(w.t, err)
	return tunnel.Dial(w.t.Context(), nc, hello, tunnel.Config{Token: token, Keepalive: -1, BusyPoll: -1})
}

// said responds with what the handler knows of a connection.
var said = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
	c := ConnOf(r.Context())
	text := r.Proto
	if c.IsProven() {
		text += " proven"
	}
	if c.IsAdmitted() {
		text += " admitted"
	}
	_, _ = io.WriteString(rw, text)
})

// One address serves tunnels and HTTP/1.1 and HTTP/2, and so does the Unix socket.
func TestProtocolsAreDistinguished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, said, nil)
		defer w.close()
		for _, at := range []string{address, w.Socket()} {
			conn, err := w.tunnelTo(at, tunnel.Hello{})
			require.NoError(t, err)
			defer conn.Close() //nolint:errcheck // as below
			require.NotNil(t, <-w.opened)
		}
		text, err := w.get()
		require.NoError(t, err)
		require.Equal(t, "HTTP/1.1", text)
		h2 := new(http.Protocols)
		h2.SetUnencryptedHTTP2(true)
		w.client.CloseIdleConnections()
		w.client.Transport = &http.Transport{Protocols: h2, DialContext: w.client.Transport.(*http.Transport).DialContext}
		text, err = w.get()
		require.NoError(t, err)
		require.Equal(t, "HTTP/2.0", text)
	})
}

// A connection that both sides have proven themselves on carries HTTP without a token.
func TestProvenHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, said, nil)
		defer w.close()
		w.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			nc, err := w.Dial(ctx, address)
			if err != nil {
				return nil, err
			}
			raw, _, err := tunnel.DialRaw(ctx, nc, tunnel.Hello{Protocol: tunnel.ProtocolHTTP}, tunnel.Config{Token: token})
			return raw, err
		}
		text, err := w.get()
		require.NoError(t, err)
		require.Equal(t, "HTTP/1.1 proven admitted", text)
	})
}

func TestDialersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, said, nil)
		defer w.close()
		_, err := w.tunnelTo(address, tunnel.Hello{Tag: "unknown"})
		require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
		_, err = w.tunnelTo(address, tunnel.Hello{Host: "another"})
		require.Error(t, err)
		nc, err := w.Dial(t.Context(), address)
		require.NoError(t, err)
		_, err = tunnel.Dial(t.Context(), nc, tunnel.Hello{}, tunnel.Config{Token: "another"})
		require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
		require.Empty(t, w.opened)
		synctest.Wait()
		require.Zero(t, w.admission.pending.Len(), "they are closed")
	})
}

// A connection that does not say in time what it is, is closed; others are served meanwhile.
func TestSilentConnectionIsClosed(t *testing.T) {
	for _, begun := range []string{"", "G", tunnel.Preface[:3]} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, said, nil)
			defer w.close()
			nc, err := w.Dial(t.Context(), address)
			require.NoError(t, err)
			defer nc.Close() //nolint:errcheck // the other side has closed it
			_, err = io.WriteString(nc, begun)
			require.NoError(t, err)
			_, err = w.get()
			require.NoError(t, err)
			began := time.Now()
			_, err = io.Copy(io.Discard, nc)
			require.NoError(t, err)
			require.InDelta(t, PendingTime, time.Since(began), float64(time.Second))
		})
	}
}

// Running requests end; new connections are not accepted, and open tunnels end.
func TestShutdownWaitsForRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, finish := make(chan struct{}), make(chan struct{})
		w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			ConnOf(r.Context()).Admit()
			close(running)
			<-finish
			_, _ = io.WriteString(rw, "finished")
		}), nil)
		defer w.close()
		conn, err := w.tunnelTo(address, tunnel.Hello{})
		require.NoError(t, err)
		got := make(chan string, 1)
		go func() {
			text, err := w.get()
			if err != nil {
				text = err.Error()
			}
			got <- text
		}()
		<-running
		require.NoError(t, w.Closing().Err())
		down := make(chan error, 1)
		go func() { down <- w.Shutdown(t.Context()) }()
		synctest.Wait()
		require.Error(t, w.Closing().Err())
		<-conn.Done()
		_, err = w.Dial(t.Context(), address)
		require.Error(t, err)
		select {
		case err := <-down:
			require.FailNow(t, "it did not wait", "%v", err)
		default:
		}
		close(finish)
		require.Equal(t, "finished", <-got)
		require.NoError(t, <-down)
	})
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := make(chan struct{})
		w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			ConnOf(r.Context()).Admit()
			close(running)
			<-r.Context().Done()
		}), nil)
		got := make(chan error, 1)
		go func() {
			_, err := w.get()
			got <- err
		}()
		<-running
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		require.NoError(t, w.Shutdown(ctx))
		require.Equal(t, time.Second, time.Since(began))
		w.close()
		require.Error(t, <-got)
	})
}

// halfCloser is a connection that can be closed in one direction.
type halfCloser struct {
	net.Conn

	half, whole bool
}

func (c *halfCloser) CloseWrite() error {
	c.half = true
	return nil
}

func (c *halfCloser) Close() error {
	c.whole = true
	return c.Conn.Close()
}

// A connection with a response that its other side may not have read yet stays open for a second,
// and discards what arrives. Any other is closed at once.
func TestLingeringConnection(t *testing.T) {
	for _, lingers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, said, nil)
			defer w.close()
			near, far := memnet.Pipe()
			defer near.Close() //nolint:errcheck // the other side may have closed it
			under := &halfCloser{Conn: far}
			c := &Conn{Conn: under, in: far, listener: w.Listener, pending: w.admission.enter(t.Context(), under, nil)}
			if lingers {
				c.Linger()
			}
			require.Equal(t, lingers, c.Lingers())
			began := time.Now()
			require.NoError(t, c.Close())
			require.Equal(t, lingers, under.half)
			require.Equal(t, !lingers, under.whole)
			if lingers {
				_, err := near.Write(make([]byte, 100<<10))
				require.NoError(t, err)
			}
			_, err := io.Copy(io.Discard, near)
			require.NoError(t, err)
			synctest.Wait()
			require.True(t, under.whole)
			require.Zero(t, w.admission.pending.Len())
			if lingers {
				require.Equal(t, LingerTime, time.Since(began))
			}
		})
	}
}

// scarce is a listener whose first calls of Accept fail, as for lack of file descriptors.
type scarce struct {
	net.Listener

	failures int
}

func (s *scarce) Accept() (net.Conn, error) {
	if s.failures > 0 {
		s.failures--
		return nil, errors.New("too many open files")
	}
	return s.Listener.Accept()
}

func TestAcceptIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, said, func(c *Config) {
			bind := c.Listen
			c.Listen = func(ctx context.Context, network, address string) (net.Listener, error) {
				l, err := bind(ctx, network, address)
				return &scarce{Listener: l, failures: 5}, err
			}
		})
		defer w.close()
		_, err := w.get()
		require.NoError(t, err)
	})
}

func TestListenerWithoutASocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, said, func(c *Config) {
			bind := c.Listen
			c.Listen = func(ctx context.Context, network, address string) (net.Listener, error) {
				if network == "unix" {
					return nil, errors.New("the path is too long")
				}
				return bind(ctx, network, address)
			}
		})
		defer w.close()
		require.Empty(t, w.Socket())
		_, err := w.get()
		require.NoError(t, err)
	})
}

func TestAdvertisedAddress(t *testing.T) {
	for _, c := range []struct{ listen, advertise, want string }{
		{"127.0.0.1:0", "", "bound"},
		{"127.0.0.1:0", "example.com:0", "example.com:bound"},
		{"127.0.0.1:0", "example.com:80", "example.com:80"},
		{"127.0.0.1:0", "example.com", "error: is not of the form HOST:PORT"},
		{"0.0.0.0:0", "", "error: say which with --advertise"},
		{"0.0.0.0:0", "example.com:80", "example.com:80"},
		{"127.0.0.1:99999", "", "error: listening on 127.0.0.1:99999"},
	} {
		l, err := New(t.Context(), Config{
			Address: c.listen, Advertise: c.advertise, Socket: filepath.Join(t.TempDir(), "s"), Log: slog.New(slog.DiscardHandler),
		})
		if text, isError := strings.CutPrefix(c.want, "error: "); isError {
			require.ErrorContains(t, err, text, "%+v", c)
			continue
		}
		require.NoError(t, err, "%+v", c)
		_, port, err := net.SplitHostPort(l.Bound())
		require.NoError(t, err)
		want := strings.ReplaceAll(c.want, ":bound", ":"+port)
		if want == "bound" {
			want = l.Bound()
		}
		require.Equal(t, want, l.Advertised(), "%+v", c)
		l.Close()
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST": true, "127.0.0.1": true, "127.1.2.3": true, "::1": true,
		"0.0.0.0": false, "example.com": false, "": false,
	} {
		require.Equal(t, want, IsLoopback(host), host)
	}
	require.Equal(t, "::1", HostOf("[::1]:80"))
	require.Equal(t, "::1", HostOf("[::1]"))
	require.Equal(t, "example.com", HostOf("example.com"))
}
