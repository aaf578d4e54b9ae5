package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// callDeadline is the deadline that each call has, on all systems but the floors.
const callDeadline = 30 * time.Second

// system is one way to make calls.
type system struct {
	name string
	// serve makes this process the server. The address is told to the client; network is "tcp" or "unix".
	serve func(ctx context.Context, network string) (server, error)
	// dial makes this process the client.
	dial func(ctx context.Context, network, address string) (client, error)
	// floor says that this is what the others are compared with; peer, that it must not be faster than that.
	floor, peer bool
}

// server is a running server.
type server interface {
	address() string
	close() error
}

// client makes calls. What it can do beyond unary calls it says by implementing the interfaces below.
type client interface {
	// caller returns a function that makes one call with such a payload and waits for it. It is used by one goroutine.
	caller(payload []byte) func() error
	close() error
}

// starter is a client that has a way of its own to start calls without waiting for each.
type starter interface {
	// start makes calls from this goroutine alone, so many outstanding at most, until more says no. Each call's duration goes to done, which is
	// called from one goroutine at a time.
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
	// shared is this client with one connection for all that it does.
	shared() sharer
	caller(payload []byte) func() error
	// flood opens a stream that the server fills, and that nobody reads until it is ended.
	flood(size int) (end func(), err error)
}

// idler is a client that can hold many connections.
type idler interface {
	// idle opens so many connections more, and makes one call over each.
	idle(connections int) error
}

// errWrongEcho says that what came back isn't what was sent.
var errWrongEcho = errors.New("the echo differs from what was sent")

// sameSize checks an echo as far as this can be done in no time.
func sameSize(sent, got []byte) error {
	if len(sent) != len(got) || len(sent) > 0 && (sent[0] != got[0] || sent[len(sent)-1] != got[len(got)-1]) {
		return fmt.Errorf("%w: %d bytes for %d", errWrongEcho, len(got), len(sent))
	}
	return nil
}

// underDeadline makes a function that gives each call its own deadline.
func underDeadline(call func(ctx context.Context) error) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
		defer cancel()
		return call(ctx)
	}
}

// systems are all that there are, in the order of the tables.
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
	return system{}, fmt.Errorf("there is no system %q", name)
}
