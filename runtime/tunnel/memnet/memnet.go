// Package memnet is an in-memory network for tests. Its connections need no ports, and its links
// can be cut, delayed and stalled.
//
// Connections implement [net.Conn] including deadlines, buffer a bounded number of bytes, and block
// only in ways that testing/synctest supports. Start with [New] for a network with addresses, or
// [Pipe] for a single connection.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrCut is the error of both ends of a connection whose link was cut.
var ErrCut = errors.New("memnet: the link was cut")

// Network holds listeners by address, and the links to them.
type Network struct {
	mu        sync.Mutex // guards the fields below
	listeners map[string]*listener
	links     map[string][]*Link
	delays    map[string]time.Duration
	dials     int
}

// New returns a network without listeners.
func New() *Network {
	return &Network{
		listeners: make(map[string]*listener), links: make(map[string][]*Link), delays: make(map[string]time.Duration),
	}
}

// addr is the address of an end.
type addr string

// Network returns "mem".
func (addr) Network() string { return "mem" }

// String returns the address.
func (a addr) String() string { return string(a) }

// Listen listens on an address, which is any text. It fails if the address is in use.
func (n *Network) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: addr(address), Err: errors.New("address in use")}
	}
	l := &listener{network: n, address: address, backlog: make(chan *Conn), closed: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

// Dial connects to an address. It blocks until the connection is accepted.
func (n *Network) Dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.dials++
	name := fmt.Sprintf("dialler-%d", n.dials)
	delay := n.delays[address]
	n.mu.Unlock()
	refused := func(err error) error { return &net.OpError{Op: "dial", Net: "mem", Addr: addr(address), Err: err} }
	if l == nil {
		return nil, refused(errors.New("connection refused"))
	}
	near, far, link := pipe(name, address)
	link.Delay(delay)
	select {
	case l.backlog <- far:
	case <-l.closed:
		return nil, refused(errors.New("connection refused"))
	case <-ctx.Done():
		return nil, refused(ctx.Err())
	}
	n.mu.Lock()
	n.links[address] = append(n.links[address], link)
	n.mu.Unlock()
	return near, nil
}

// Links returns the links of all connections made to an address, oldest first, including those that
// have ended.
func (n *Network) Links(address string) []*Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*Link(nil), n.links[address]...)
}

// Delay delays everything on present and future connections to an address by d.
func (n *Network) Delay(address string, d time.Duration) {
	n.mu.Lock()
	n.delays[address] = d
	n.mu.Unlock()
	for _, link := range n.Links(address) {
		link.Delay(d)
	}
}

// Cut cuts all present connections to an address.
func (n *Network) Cut(address string) {
	for _, link := range n.Links(address) {
		link.Cut()
	}
}

// Stall holds back all data on the present connections to an address, in both directions, until
// Resume.
func (n *Network) Stall(address string) {
	for _, link := range n.Links(address) {
		link.Stall()
	}
}

// Resume ends a stall of the present connections to an address.
func (n *Network) Resume(address string) {
	for _, link := range n.Links(address) {
		link.Resume()
	}
}

type listener struct {
	network *Network
	address string
	backlog chan *Conn
	closed  chan struct{}
	once    sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.network.mu.Lock()
		delete(l.network.listeners, l.address)
		l.network.mu.Unlock()
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.address) }
