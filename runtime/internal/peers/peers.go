// Package peers holds a host's connections to other hosts: one for each host, and one for each
// tagged tunnel.
//
// What a [Pool] promises:
//
//   - A connection is opened on first use, shared by all callers, and opened again on the next use
//     after it was lost. One attempt is in progress per peer at a time, however many callers wait.
//   - An attempt takes at most 5 seconds. After a failed one, callers get its error at once until
//     the backoff has passed, which grows from 10 ms to 2 s, with jitter.
//   - A caller waits no longer than its own context. The attempt continues for the others.
//   - A peer whose connection has ended uses no memory.
//   - After [Pool.Close] no connection is open and none is opened.
package peers

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel"
)

// The first pause after a failed attempt, and the longest, see [backoff.Backoff].
const (
	firstPause = 10 * time.Millisecond
	maxPause   = 2 * time.Second
)

// dialTimeout bounds one attempt to connect to a host.
const dialTimeout = 5 * time.Second

// Config is what a [Pool] needs of its host.
type Config struct {
	// Host is the id of this host, and Build that of its executable: peers learn both.
	Host, Build string
	// Machine is the id of this host's machine: Unix sockets of hosts on others are not tried.
	Machine string
	// Tunnel configures the connections. Its Token is the one that both sides of each must prove.
	Tunnel tunnel.Config
	// TLS is for connections by TCP; nil for a system without.
	TLS *TLS
	// Open permits a Brain that asks for no token, if Tunnel has none.
	Open bool
	// Log receives what no caller is notified of.
	Log *slog.Logger
	// Spawn runs fn on a goroutine of the host, with a context that ends with the host. It returns
	// false, without running fn, once the host has ended.
	Spawn func(fn func(context.Context)) bool
	// Opened is called with each connection that was opened, and must not block; nil for none.
	Opened func(*tunnel.Conn)
	// Dial opens a network connection, as [net.Dialer.DialContext] does, which is the default.
	Dial DialFunc
}

// DialFunc opens a network connection.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Pool holds the connections of one host to its peers. Its methods are safe for concurrent use.
type Pool struct {
	config Config

	mu     sync.Mutex // guards the fields below
	open   map[key]*peer
	tokens map[*tunnel.Conn]string // see remember
	closed error
}

// key identifies a connection: to a host, or with a tag to one of its nodes.
type key struct {
	host, nid, tag string
	// address is set where the host's id is not known: for Brain.
	address string
}

// peer is the connection of one key, with the failures to open it.
type peer struct {
	pool *Pool
	key  key

	mu   sync.Mutex // guards the fields below
	conn *tunnel.Conn
	// dialing is closed when the attempt in progress has ended; nil if there is none.
	dialing chan struct{}
	// After failures, no attempt is made before the time next, and callers get err.
	failures backoff.Backoff
	next     time.Time
	err      error
}

// New returns a pool without connections. The caller must Close it.
func New(config Config) *Pool {
	if config.Dial == nil {
		config.Dial = new(net.Dialer).DialContext
	}
	return &Pool{config: config, open: make(map[key]*peer), tokens: make(map[*tunnel.Conn]string)}
}

// Get returns the connection to a node's host, and opens it if necessary. With a tag it is that of
// the node's tagged tunnel, which carries calls to this node only. The pool owns the connection.
//
// The error is Unavailable if the host is not reached, or that with which the host refused the
// connection. If ctx ended first, it is Canceled or DeadlineExceeded.
func (p *Pool) Get(ctx context.Context, rec *nodev1.NodeRecord, tag string) (*tunnel.Conn, error) {
	k := key{host: rec.GetHost().GetId()}
	if tag != "" {
		k.nid, k.tag = rec.GetNid(), tag
	}
	of, err := p.peer(k)
	if err != nil {
		return nil, err
	}
	return of.get(ctx, func(ctx context.Context) (*tunnel.Conn, error) { return p.dialHost(ctx, rec.GetHost(), k) })
}

// peer returns the entry of a key, and makes it on first use.
func (p *Pool) peer(k key) (*peer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed != nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "this process's runtime has ended: %v", p.closed)
	}
	of := p.open[k]
	if of == nil {
		of = &peer{pool: p, key: k, failures: backoff.Backoff{First: firstPause, Max: maxPause}}
		p.open[k] = of
	}
	return of, nil
}

// get returns the open connection, or opens one. Concurrent callers share one attempt.
func (p *peer) get(ctx context.Context, dial func(context.Context) (*tunnel.Conn, error)) (*tunnel.Conn, error) {
	for {
		p.mu.Lock()
		if p.conn != nil {
			select {
			case <-p.conn.Done():
				p.conn = nil
			default:
				conn := p.conn
				p.mu.Unlock()
				return conn, nil
			}
		}
		if p.dialing == nil {
			if p.err != nil && time.Now().Before(p.next) {
				err := p.err
				p.mu.Unlock()
				return nil, err
			}
			p.dialing = make(chan struct{})
			if !p.pool.config.Spawn(func(ctx context.Context) { p.dial(ctx, dial) }) {
				close(p.dialing)
				p.dialing = nil
				p.mu.Unlock()
				return nil, connect.NewError(connect.CodeUnavailable, "this process's runtime has ended")
			}
		}
		dialing := p.dialing
		p.mu.Unlock()
		select {
		case <-dialing:
		case <-ctx.Done():
			return nil, connecterr.OfContext(ctx)
		}
		p.mu.Lock()
		err := p.err
		p.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// dial makes one attempt, on behalf of all callers that wait.
func (p *peer) dial(ctx context.Context, dial func(context.Context) (*tunnel.Conn, error)) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := dial(ctx)
	p.dialled(conn, err)
	if err != nil {
		return
	}
	conn.AfterEnd(func() { p.pool.forget(p, conn) })
	if p.pool.config.Opened != nil {
		p.pool.config.Opened(conn)
	}
	if p.pool.isClosed() {
		_ = conn.Close() // Close did not see it
	}
}

// dialled records the result of an attempt.
func (p *peer) dialled(conn *tunnel.Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.dialing)
	p.dialing = nil
	if err != nil {
		p.err = err
		p.next = time.Now().Add(p.failures.Next())
		return
	}
	p.conn, p.err = conn, nil
	p.failures.Reset()
}

func (p *Pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed != nil
}

// forget removes a peer whose connection has ended, so that hosts that are gone use no memory.
func (p *Pool) forget(of *peer, conn *tunnel.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of.mu.Lock()
	defer of.mu.Unlock()
	if of.conn == conn && of.dialing == nil && p.open[of.key] == of {
		delete(p.open, of.key)
	}
}

// Brain returns a transport to Brain's host that gets its connection from the pool for each call.
// A Brain without a token is refused unless that is permitted: any process could have taken its
// address.
func (p *Pool) Brain(address string) connect.Transport {
	return transportFunc(func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
		conn, err := p.BrainConn(ctx, address)
		if err != nil {
			return nil, err
		}
		return conn.Transport("", "").NewClientStream(ctx, spec)
	})
}

// BrainConn returns the connection to Brain.
func (p *Pool) BrainConn(ctx context.Context, address string) (*tunnel.Conn, error) {
	of, err := p.peer(key{address: address})
	if err != nil {
		return nil, err
	}
	return of.get(ctx, func(ctx context.Context) (*tunnel.Conn, error) {
		by, err := p.byTCP("", address)
		if err != nil {
			return nil, err
		}
		conn, err := dialTCP(ctx, p.config.Dial, address, p.hello(), &by)
		if err == nil && by.config == nil && by.tunnel.Token == "" && !p.config.Open {
			return nil, errors.Join(ErrOpen(address), conn.Close())
		}
		if err == nil {
			p.remember(conn, by)
		}
		return conn, err
	})
}

// Host returns a transport to a host itself, not to one of its nodes, that gets its connection from
// the pool for each call.
func (p *Pool) Host(info *nodev1.HostInfo) connect.Transport {
	return transportFunc(func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
		conn, err := p.Get(ctx, &nodev1.NodeRecord{Host: info}, "")
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

// remember records by which token the host at the other end of a connection has joined.
func (p *Pool) remember(conn *tunnel.Conn, by security) {
	if by.peer.TokenID == "" {
		return
	}
	p.mu.Lock()
	p.tokens[conn] = by.peer.TokenID
	p.mu.Unlock()
	conn.AfterEnd(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.tokens, conn)
	})
}

// CloseRevoked closes the connections to hosts that have joined by a token that is revoked.
func (p *Pool) CloseRevoked(revoked func(tokenID string) bool) {
	p.mu.Lock()
	var conns []*tunnel.Conn
	for conn, id := range p.tokens {
		if revoked(id) {
			conns = append(conns, conn)
		}
	}
	p.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// Close closes all connections. Later calls of Get fail with cause in their text.
func (p *Pool) Close(cause error) {
	p.mu.Lock()
	p.closed = cause
	open := p.open
	p.open = nil
	p.mu.Unlock()
	for _, of := range open {
		of.mu.Lock()
		if of.conn != nil {
			_ = of.conn.Close()
		}
		of.mu.Unlock()
	}
}
