package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// floorServer echoes payloads. One goroutine per connection reads requests, and writes the
// collected responses before it blocks in a read.
type floorServer struct {
	listener net.Listener
	at       string
	how      floorKind

	run   sync.WaitGroup
	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// serveFloor returns a function that starts a floor of the given kind.
func serveFloor(how floorKind) func(ctx context.Context, network string) (server, error) {
	return func(ctx context.Context, network string) (server, error) {
		listener, err := listen(ctx, network)
		if err != nil {
			return nil, err
		}
		address := listener.Addr().String()
		if network == tlsNetwork {
			config, der, err := selfSigned()
			if err != nil {
				return nil, errors.Join(err, listener.Close())
			}
			listener, address = tls.NewListener(listener, config), securedAddress(address, der)
		}
		s := &floorServer{listener: listener, at: address, how: how, conns: make(map[net.Conn]struct{})}
		s.run.Go(s.accept)
		return s, nil
	}
}

func (s *floorServer) address() string { return s.at }

func (s *floorServer) close() error {
	err := s.listener.Close()
	s.mu.Lock()
	for nc := range s.conns {
		err = errors.Join(err, nc.Close())
	}
	s.mu.Unlock()
	s.run.Wait()
	return err
}

func (s *floorServer) accept() {
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[nc] = struct{}{}
		s.mu.Unlock()
		s.run.Go(func() {
			_ = s.how.echoFrames(nc) // ends with the connection
			s.mu.Lock()
			delete(s.conns, nc)
			s.mu.Unlock()
			_ = nc.Close()
		})
	}
}

// echoFrames serves one connection until it closes.
func (how floorKind) echoFrames(nc net.Conn) error {
	var out outBuffer
	var counted uint64
	pool := bufferPool{owned: how == floorOwned}
	var used [][]byte // large payloads to write
	flush := func() error {
		if out.empty() {
			return nil
		}
		err := out.write(nc)
		for _, p := range used {
			pool.put(p)
		}
		clear(used)
		used = used[:0]
		return err
	}
	in, err := how.reading(nc)
	if err != nil {
		return err
	}
	r := newFrameReader(in, flush)
	for {
		id, size, err := r.next()
		if err != nil {
			return err
		}
		switch {
		case id&frameKind == frameEnd:
			out.add(id, protowire.AppendVarint(nil, counted))
			counted = 0
		case size < floorLarge:
			p, err := r.small(size)
			if err != nil {
				return err
			}
			if id&frameKind == frameCount {
				counted++
				continue
			}
			out.add(id, p)
		default:
			p := pool.get(nil, size)
			if err := r.read(p); err != nil {
				return err
			}
			used = append(used, p)
			out.add(id, p)
		}
	}
}
