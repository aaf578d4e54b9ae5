package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// callDeadline is the deadline of each call, on all systems but the floors.
const callDeadline = 30 * time.Second

// system is one implementation of the calls.
type system struct {
	name string
	// serve makes this process the server. network is "tcp" or "unix".
	serve func(ctx context.Context, network string) (server, error)
	// dial makes this process the client.
	dial func(ctx context.Context, network, address string) (client, error)
	// floor marks a baseline for the comparison; peer marks a system that must not be faster than
	// it.
	floor, peer bool
}

// server is a running server.
type server interface {
	address() string
	close() error
}

// client makes calls. It implements the interfaces below for what it supports beyond unary calls.
type client interface {
	// caller returns a function that makes one call and waits for it. The function is not safe for
	// concurrent use.
	caller(payload []byte) func() error
	close() error
}

// starter is a client that can start calls without waiting for each.
type starter interface {
	// start makes calls from this goroutine, at most the given number outstanding, until more
	// returns false. It passes each call's duration to done, one call at a time.
	start(payload []byte, outstanding int, more func() bool, done func(time.Duration)) error
}

// streamer is a client that can send a stream.
type streamer interface {
	stream(payload []byte) (sending, error)
}

// sending is a stream of messages to the server.
type sending interface {
	send() error
	// finish returns how many messages the server has counted.
	finish() (uint64, error)
}

// sharer is a client whose connection can carry several calls at once.
type sharer interface {
	// shared returns this client, limited to one connection.
	shared() sharer
	caller(payload []byte) func() error
	// flood opens a stream that the server fills. The client does not read it until end is called.
	flood(size int) (end func(), err error)
}

// idler is a client that can hold many idle connections.
type idler interface {
	// idle opens more connections, and makes one call over each.
	idle(connections int) error
}

// errWrongEcho means that the response differs from the request.
var errWrongEcho = errors.New("the echo differs from the request")

// sameSize checks an echo at negligible cost: its size, first and last byte.
func sameSize(sent, got []byte) error {
	if len(sent) != len(got) || len(sent) > 0 && (sent[0] != got[0] || sent[len(sent)-1] != got[len(got)-1]) {
		return fmt.Errorf("%w: %d bytes instead of %d", errWrongEcho, len(got), len(sent))
	}
	return nil
}

// underDeadline returns a function that makes a call with its own deadline.
func underDeadline(call func(ctx context.Context) error) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
		defer cancel()
		return call(ctx)
	}
}

// systems returns all systems, in the order of the tables.
func systems() []system {
	return []system{
		{name: "raylink", serve: serveRaylink, dial: dialRaylink},
		{name: "raylink-concurrent", serve: serveRaylink, dial: dialRaylinkConcurrent},
		{name: "grpc-go", serve: serveGRPC, dial: dialGRPC, peer: true},
		{name: "connect-h1", serve: serveConnect, dial: dialConnectH1, peer: true},
		{name: "connect-h2c", serve: serveConnect, dial: dialConnectH2C, peer: true},
		{name: "drpc", serve: serveDRPC, dial: dialDRPC, peer: true},
		{name: "floor", serve: serveFloor(floorPlain), dial: dialFloor, floor: true},
		{name: "floor-sync", serve: serveFloor(floorPlain), dial: dialFloorSync, floor: true},
		{name: "floor-polling", serve: serveFloor(floorPolling), dial: dialFloorPolling},
		{name: "floor-owned", serve: serveFloor(floorOwned), dial: dialFloorOwned},
	}
}

func systemNamed(name string) (system, error) {
	for _, s := range systems() {
		if s.name == name {
			return s, nil
		}
	}
	return system{}, fmt.Errorf("unknown system %q", name)
}
