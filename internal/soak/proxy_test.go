package soak

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// proxy forwards connections to a host. Each has a link of package memnet, which can be slowed,
// stalled and cut.
type proxy struct {
	listener net.Listener
	target   string
	run      sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool
	links  map[*memnet.Link]struct{}
}

// newProxy makes a proxy that listens, and forwards connections to target.
func newProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, target: target, links: make(map[*memnet.Link]struct{})}
	p.run.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.run.Go(func() { p.forward(client) })
	}
}

// forward serves one connection, until one end or the link is closed.
func (p *proxy) forward(client net.Conn) {
	host, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	near, far := memnet.Pipe()
	link := near.Link()
	p.mu.Lock()
	if p.closed {
		link.Cut()
	}
	p.links[link] = struct{}{}
	p.mu.Unlock()
	var pumps sync.WaitGroup
	for _, ends := range [][2]net.Conn{{client, near}, {near, client}, {far, host}, {host, far}} {
		pumps.Go(func() {
			_, _ = io.Copy(ends[1], ends[0])
			for _, c := range []net.Conn{client, near, far, host} {
				_ = c.Close() // a tunnel's connection is never half-closed
			}
		})
	}
	pumps.Wait()
	p.mu.Lock()
	delete(p.links, link)
	p.mu.Unlock()
}

// each calls a function for every link.
func (p *proxy) each(do func(*memnet.Link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for link := range p.links {
		do(link)
	}
}

// disturb slows, stalls or cuts the links. It returns a function that undoes that; nil if they were
// cut.
func (p *proxy) disturb(r *rand.Rand) (what string, undo func()) {
	whole := func(l *memnet.Link) {
		l.Resume()
		l.Rate(0)
		l.Delay(0)
	}
	what = [...]string{"slow", "slow", "trickle", "delay", "stall", "choke"}[r.IntN(6)]
	rate := 1<<20 + r.IntN(24<<20)
	delay := time.Duration(r.IntN(10)) * time.Millisecond
	bytes := r.IntN(300 << 10)
	p.each(func(l *memnet.Link) {
		switch what {
		case "slow": // up to 200 Mbit/s
			l.Rate(rate)
		case "trickle":
			l.Rate(1000)
		case "delay":
			l.Delay(delay)
		case "stall":
			l.Stall()
		case "choke": // in the middle of a frame
			l.StallRepliesAfter(bytes)
		}
	})
	return what, func() { p.each(whole) }
}

func (p *proxy) cut() { p.each((*memnet.Link).Cut) }

func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cut()
	p.run.Wait()
}
