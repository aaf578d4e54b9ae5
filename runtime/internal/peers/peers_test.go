package peers

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

const token = "a token that both sides know"

// world is a network with hosts, and the pool of one that dials them.
type world struct {
	*memnet.Network

	t     *testing.T
	pool  *Pool
	dials atomic.Int32
	// life ends with the pool's host, which spawned counts the goroutines of.
	life    context.Context //nolint:containedctx // the life of a host
	end     context.CancelFunc
	spawned sync.WaitGroup
	ended   atomic.Bool
	// welcomed are the hellos of the admitted diallers.
	mu       sync.Mutex
	welcomed []tunnel.Hello
}

// newWorld makes a pool in the present bubble. change may be nil.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{Network: memnet.New(), t: t}
	w.life, w.end = context.WithCancel(t.Context())
	config := Config{
		Host: "dialler", Build: "build", Tunnel: tunnel.Config{Token: token, Keepalive: -1, BusyPoll: -1}, Log: slog.New(slog.DiscardHandler),
		Spawn: func(fn func(context.Context)) bool {
			if w.ended.Load() {
				return false
			}
			w.spawned.Go(func() { fn(w.life) })
			return true
		},
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			w.dials.Add(1)
			return w.Dial(ctx, address)
		},
	}
	if change != nil {
		change(&config)
	}
	w.pool = New(config)
	return w
}

// close ends the pool, its host and everything that the pool has started.
func (w *world) close() {
	w.pool.Close(errors.New("the test is over"))
	w.ended.Store(true)
	w.end()
	w.spawned.Wait()
}

// host listens as a host with an id, and returns its listener and what ends it with its
// connections.
func (w *world) host(id, address, token string) (end func()) {
	w.t.Helper()
	l, err := w.Listen(address)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	var mu sync.Mutex
	var conns []*tunnel.Conn
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				conn, err := tunnel.Accept(ctx, nc, tunnel.Config{Token: token, Keepalive: -1, BusyPoll: -1}, tunnel.Welcome{Host: id},
					func(hello tunnel.Hello) (tunnel.Handler, error) {
						if hello.Tag == "unknown" {
							return nil, connect.NewError(connect.CodeNotFound, "no such tunnel")
						}
						w.mu.Lock()
						defer w.mu.Unlock()
						w.welcomed = append(w.welcomed, hello)
						return tunnel.ServerHandler(connect.NewServer()), nil
					})
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, conn)
			})
		}
	})
	return func() {
		cancel()
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		serving.Wait()
	}
}

func nodeOn(host, address, socket string) *nodev1.NodeRecord {
	return &nodev1.NodeRecord{Nid: "nid-of-a-node", Host: &nodev1.HostInfo{Id: host, Address: address, Socket: socket}}
}

func TestCallersShareOneAttemptAndOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		defer w.host("h", "h:1", token)()
		conns := make(chan *tunnel.Conn, 20)
		for range cap(conns) {
			go func() {
				conn, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "")
				if err != nil {
					t.Error(err)
				}
				conns <- conn
			}()
		}
		first := <-conns
		for range cap(conns) - 1 {
			require.Same(t, first, <-conns)
		}
		require.EqualValues(t, 1, w.dials.Load())
		require.Equal(t, []tunnel.Hello{{Host: "h", Client: "dialler", Build: "build"}}, w.welcomed)
	})
}

func TestTaggedTunnelIsAConnectionOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		defer w.host("h", "h:1", token)()
		shared, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "")
		require.NoError(t, err)
		tagged, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "bulk")
		require.NoError(t, err)
		require.NotSame(t, shared, tagged)
		again, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "bulk")
		require.NoError(t, err)
		require.Same(t, tagged, again)
		require.Equal(t, "nid-of-a-node", w.welcomed[1].Target)
		_, err = w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "unknown")
		require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	})
}

// A connection that was lost is opened anew by the next caller, and the lost one uses no memory.
func TestLostConnectionIsForgottenAndOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		defer w.host("h", "h:1", token)()
		rec := nodeOn("h", "h:1", "")
		lost, err := w.pool.Get(t.Context(), rec, "")
		require.NoError(t, err)
		w.Cut("h:1")
		<-lost.Done()
		synctest.Wait()
		require.Empty(t, w.pool.open)
		conn, err := w.pool.Get(t.Context(), rec, "")
		require.NoError(t, err)
		require.NotSame(t, lost, conn)
		require.EqualValues(t, 2, w.dials.Load())
	})
}

// While a peer is away, callers get the last error at once, and attempts become rarer, up to one in
// two seconds. When it is back, the next attempt reaches it.
func TestAttemptsBackOffWhileAPeerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		rec := nodeOn("h", "h:1", "")
		began := time.Now()
		var attempts []time.Duration
		for time.Since(began) < time.Minute {
			before := w.dials.Load()
			_, err := w.pool.Get(t.Context(), rec, "")
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
			require.ErrorContains(t, err, "no process answers at h:1")
			if w.dials.Load() > before {
				attempts = append(attempts, time.Since(began))
			}
			<-time.After(time.Millisecond)
		}
		require.InDelta(t, 8*time.Millisecond, attempts[1]-attempts[0], float64(4*time.Millisecond))
		for i := range attempts[1:] {
			require.LessOrEqual(t, attempts[i+1]-attempts[i], 2*time.Second+time.Millisecond)
		}
		require.Less(t, len(attempts), 75)
		defer w.host("h", "h:1", token)()
		<-time.After(2 * time.Second)
		_, err := w.pool.Get(t.Context(), rec, "")
		require.NoError(t, err)
	})
}

// A peer that accepts and says nothing holds up an attempt for five seconds, and a caller for as
// long as its own context.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		l, err := w.Listen("h:1")
		require.NoError(t, err)
		defer func() { _ = l.Close() }()
		go func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				defer func() { _ = nc.Close() }()
			}
		}()
		rec := nodeOn("h", "h:1", "")
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = w.pool.Get(ctx, rec, "")
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(began))
		_, err = w.pool.Get(t.Context(), rec, "")
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "did not answer as a host does within 5s")
		require.Equal(t, 5*time.Second, time.Since(began), "it joined the first attempt")
		require.EqualValues(t, 1, w.dials.Load())
	})
}

func TestUnixSocketIsUsedOnlyIfItIsTheHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		defer w.host("other", "/run/stale.sock", token)()
		defer w.host("h", "h:1", token)()
		defer w.host("near", "/run/near.sock", token)()
		_, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", "/run/stale.sock"), "")
		require.NoError(t, err)
		require.EqualValues(t, 2, w.dials.Load(), "the socket and then TCP")
		_, err = w.pool.Get(t.Context(), nodeOn("near", "near:1", "/run/near.sock"), "")
		require.NoError(t, err, "nothing listens at its address")
		// An HTTP connection chooses in the same way; this host returns an error, as it serves no
		// HTTP.
		_, err = w.pool.DialHTTP(t.Context(), nodeOn("h", "h:1", "/run/stale.sock").GetHost())
		require.ErrorContains(t, err, tunnel.ProtocolHTTP)
	})
}

func TestPeerWithAnotherTokenIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		defer w.host("h", "h:1", "another token")()
		_, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "")
		require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
		require.True(t, IsUnproven(err))
	})
}

func TestBrainWithoutATokenNeedsPermission(t *testing.T) {
	for _, open := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Tunnel.Token, c.Open = "", open })
			defer w.close()
			defer w.host("brain", "brain:1", "")()
			stream, err := w.pool.Brain("brain:1").NewClientStream(t.Context(), connect.Spec{Procedure: "/s/M"})
			if open {
				require.NoError(t, err)
				_ = stream.Close()
				return
			}
			require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, "asks for no token")
		})
	}
}

func TestBrainsConnectionIsSharedByCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		defer w.host("brain", "brain:1", token)()
		transport := w.pool.Brain("brain:1")
		for range 3 {
			stream, err := transport.NewClientStream(t.Context(), connect.Spec{Procedure: "/s/M"})
			require.NoError(t, err)
			_ = stream.Close()
		}
		require.EqualValues(t, 1, w.dials.Load())
	})
}

func TestClosedPoolOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.host("h", "h:1", token)()
		conn, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "")
		require.NoError(t, err)
		w.close()
		<-conn.Done()
		_, err = w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "")
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorContains(t, err, "has ended: the test is over")
		require.EqualValues(t, 1, w.dials.Load())
	})
}

// A connection whose attempt was in progress when the pool closed is closed, and its caller gets an
// error.
func TestPoolClosesWhileDialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := make(chan struct{})
		var w *world
		w = newWorld(t, func(c *Config) {
			c.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
				w.dials.Add(1)
				<-dial
				return w.Dial(ctx, address)
			}
		})
		defer w.host("h", "h:1", token)()
		got := make(chan error, 1)
		var conn *tunnel.Conn
		go func() {
			var err error
			conn, err = w.pool.Get(context.Background(), nodeOn("h", "h:1", ""), "")
			got <- err
		}()
		synctest.Wait()
		require.EqualValues(t, 1, w.dials.Load())
		w.ended.Store(true)
		w.pool.Close(errors.New("the host has ended"))
		close(dial)
		if err := <-got; err == nil {
			<-conn.Done() // it was opened just before it was closed
		} else {
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
		}
		synctest.Wait()
		require.Empty(t, w.pool.open)
		w.close()
	})
}

func TestHostThatHasEndedDialsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.ended.Store(true)
		_, err := w.pool.Get(t.Context(), nodeOn("h", "h:1", ""), "")
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.Zero(t, w.dials.Load())
	})
}
