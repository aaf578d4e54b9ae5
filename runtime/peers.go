package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/tunnel"
)

// dialTimeout bounds one attempt to connect to a host.
const dialTimeout = 5 * time.Second

// peerPool is this host's connections to others, one for each host and one for each
// tagged tunnel. A connection is opened on first use, and reopened with backoff when it was lost.
type peerPool struct {
	host *Host

	mu     sync.Mutex // guards the fields below
	open   map[peerKey]*peerConn
	closed error
}

// peerKey identifies a connection: to a host, or with a tag to one of its nodes.
type peerKey struct {
	host, nid, tag string
	// address is set where the host's id is not known: for Brain.
	address string
}

// peerConn is one peer connection, with its failures.
type peerConn struct {
	pool *peerPool
	key  peerKey

	mu   sync.Mutex // guards the fields below
	conn *tunnel.Conn
	// dialing is closed when the attempt in progress has ended; nil if there is none.
	dialing chan struct{}
	// After failures, no attempt is made before the time next, and callers get err.
	failures int
	next     time.Time
	err      error
}

func newPeerPool(h *Host) *peerPool { return &peerPool{host: h, open: make(map[peerKey]*peerConn)} }

// get returns the connection to a node's host, and opens it if necessary.
func (l *peerPool) get(ctx context.Context, rec *nodev1.NodeRecord, tag string) (*tunnel.Conn, error) {
	key := peerKey{host: rec.GetHost().GetId()}
	if tag != "" {
		key.nid, key.tag = rec.GetNid(), tag
	}
	k, err := l.conn(key)
	if err != nil {
		return nil, err
	}
	return k.get(ctx, func(ctx context.Context) (*tunnel.Conn, error) { return l.dialHost(ctx, rec.GetHost(), key) })
}

func (l *peerPool) conn(key peerKey) (*peerConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed != nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "this process's runtime has ended: %v", l.closed)
	}
	k := l.open[key]
	if k == nil {
		k = &peerConn{pool: l, key: key}
		l.open[key] = k
	}
	return k, nil
}

// get returns the open connection, or opens one. Concurrent callers share one attempt.
func (k *peerConn) get(ctx context.Context, dial func(context.Context) (*tunnel.Conn, error)) (*tunnel.Conn, error) {
	for {
		k.mu.Lock()
		if k.conn != nil {
			select {
			case <-k.conn.Done():
				k.conn = nil
			default:
				conn := k.conn
				k.mu.Unlock()
				return conn, nil
			}
		}
		if k.dialing == nil {
			if k.err != nil && time.Now().Before(k.next) {
				err := k.err
				k.mu.Unlock()
				return nil, err
			}
			k.dialing = make(chan struct{})
			if !k.pool.host.goBackground(func(ctx context.Context) { k.dial(ctx, dial) }) {
				close(k.dialing)
				k.dialing = nil
				k.mu.Unlock()
				return nil, connect.NewError(connect.CodeUnavailable, "this process's runtime has ended")
			}
		}
		dialing := k.dialing
		k.mu.Unlock()
		select {
		case <-dialing:
		case <-ctx.Done():
			return nil, causeOf(ctx)
		}
		k.mu.Lock()
		err := k.err
		k.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// dial makes one attempt, on behalf of all callers that wait.
func (k *peerConn) dial(ctx context.Context, dial func(context.Context) (*tunnel.Conn, error)) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := dial(ctx)
	k.dialled(conn, err)
	if err != nil {
		return
	}
	conn.AfterEnd(func() { k.pool.forget(k, conn) })
	if k.pool.isClosed() {
		_ = conn.Close() // close did not see it
	}
}

// dialled records the result of an attempt.
func (k *peerConn) dialled(conn *tunnel.Conn, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.dialing)
	k.dialing = nil
	if err != nil {
		k.failures++
		k.err = err
		k.next = time.Now().Add(min(5*time.Millisecond<<min(k.failures, 10), 2*time.Second))
		return
	}
	k.conn, k.err, k.failures = conn, nil, 0
}

func (l *peerPool) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed != nil
}

// forget removes a peer connection that has ended, so that hosts that are gone use no memory.
func (l *peerPool) forget(k *peerConn, conn *tunnel.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == conn && k.dialing == nil && l.open[k.key] == k {
		delete(l.open, k.key)
	}
}

// dialHost opens a connection to a host: by its Unix socket if this process can open it and it is
// indeed that host's, or else by TCP.
func (l *peerPool) dialHost(ctx context.Context, info *nodev1.HostInfo, key peerKey) (*tunnel.Conn, error) {
	hello := l.hello()
	hello.Host = info.GetId()
	hello.Tag, hello.Target = key.tag, key.nid
	var d net.Dialer
	if info.GetSocket() != "" {
		if nc, err := d.DialContext(ctx, "unix", info.GetSocket()); err == nil {
			conn, err := tunnel.Dial(ctx, nc, hello, l.host.tunnelConfig())
			if err == nil {
				return conn, nil
			}
			l.host.log.Debug("the Unix socket is not the host's; going by TCP", "socket", info.GetSocket(), "error", err)
		}
	}
	return dialTCP(ctx, info.GetAddress(), hello, l.host.tunnelConfig())
}

func dialTCP(ctx context.Context, address string, hello tunnel.Hello, config tunnel.Config) (*tunnel.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "no process answers at %s: %v", address, err).WithCause(err)
	}
	conn, err := tunnel.Dial(ctx, nc, hello, config)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil && connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		// The deadline is that of the attempt: a caller whose own deadline passes gets that error
		// instead.
		return nil, connect.Errorf(connect.CodeUnavailable, "what listens at %s did not answer as a host does within %v", address, dialTimeout).WithCause(err)
	}
	return nil, fmt.Errorf("opening a tunnel to %s: %w", address, err)
}

func (l *peerPool) hello() tunnel.Hello {
	return tunnel.Hello{Client: l.host.id, Build: launch.Build()}
}

func (h *Host) tunnelConfig() tunnel.Config {
	return tunnel.Config{
		Token: h.options.Token, MaxMessageBytes: h.options.MaxMessage, Keepalive: h.options.Lease / 2,
		BusyPoll: h.options.BusyPoll, Watchdog: &h.watchdog, Logger: h.tunnelLog,
	}
}

// brain returns a transport to Brain's host that gets its connection from the pool for each call.
func (l *peerPool) brain(address string) connect.Transport {
	return transportFunc(func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
		k, err := l.conn(peerKey{address: address})
		if err != nil {
			return nil, err
		}
		conn, err := k.get(ctx, func(ctx context.Context) (*tunnel.Conn, error) {
			conn, err := dialTCP(ctx, address, l.hello(), l.host.tunnelConfig())
			if err == nil && l.host.options.Token == "" && !l.host.options.Open {
				return nil, errors.Join(errOpen(address), conn.Close())
			}
			return conn, err
		})
		if err != nil {
			return nil, err
		}
		return conn.Transport("", "").NewClientStream(ctx, spec)
	})
}

type transportFunc func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error)

// NewClientStream implements [connect.Transport].
func (f transportFunc) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	return f(ctx, spec)
}

func (l *peerPool) close(cause error) {
	l.mu.Lock()
	l.closed = cause
	open := l.open
	l.open = nil
	l.mu.Unlock()
	for _, k := range open {
		k.mu.Lock()
		if k.conn != nil {
			_ = k.conn.Close()
		}
		k.mu.Unlock()
	}
}
