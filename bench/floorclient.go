package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// floorSendBuffer is how many bytes a stream's sender may be ahead of the writer.
const floorSendBuffer = 256 << 10

// floorClient multiplexes calls over one connection. A caller that finds no writer active becomes
// the writer, and writes everything queued, including other callers' frames, until the queue is
// empty. One goroutine reads and wakes the waiting callers.
type floorClient struct {
	nc   net.Conn
	run  sync.WaitGroup
	pool bufferPool
	// idleConns are clients without calls.
	idleConns []client

	mu      sync.Mutex // guards all below
	room    sync.Cond  // signals that out was drained, or that the connection failed
	out     outBuffer
	spare   outBuffer
	writing bool
	// calls is the number of callers that wait for a response, or are about to.
	calls int
	err   error
	slots []*floorSlot
}

// floorSlot is the state of one caller; its index is the id of the caller's frames.
type floorSlot struct {
	id    uint32
	ready chan struct{}
	reply []byte
	// each, if set, is called for each response instead of signalling ready.
	each func()
}

func dialFloor(ctx context.Context, network, address string) (client, error) {
	return newFloorClient(ctx, network, address, floorPlain)
}

func dialFloorOwned(ctx context.Context, network, address string) (client, error) {
	return newFloorClient(ctx, network, address, floorOwned)
}

func newFloorClient(ctx context.Context, network, address string, how floorKind) (client, error) {
	nc, err := dialNetwork(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &floorClient{nc: nc, pool: bufferPool{owned: how == floorOwned}}
	c.room.L = &c.mu
	c.run.Go(func() { c.fail(c.read()) })
	return c, nil
}

func (c *floorClient) close() error {
	err := c.nc.Close()
	for _, more := range c.idleConns {
		err = errors.Join(err, more.close())
	}
	c.run.Wait()
	return err
}

func (c *floorClient) idle(connections int) error {
	for range connections {
		addr := c.nc.RemoteAddr()
		more, err := dialFloor(context.Background(), addr.Network(), addr.String())
		if err != nil {
			return err
		}
		c.idleConns = append(c.idleConns, more)
		if err := more.caller(nil)(); err != nil {
			return err
		}
	}
	return nil
}

// fail wakes all callers with an error.
func (c *floorClient) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for _, s := range c.slots {
		if s.ready != nil {
			close(s.ready)
		}
	}
	c.room.Broadcast()
}

func (c *floorClient) slot(s *floorSlot) *floorSlot {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.id = uint32(len(c.slots))
	c.slots = append(append([]*floorSlot(nil), c.slots...), s) // the reader may be using the old one
	return s
}

func (c *floorClient) read() error {
	r := newFrameReader(c.nc, func() error { return nil })
	var slots []*floorSlot
	for {
		id, size, err := r.next()
		if err != nil {
			return err
		}
		i := int(id &^ frameKind)
		if i >= len(slots) {
			c.mu.Lock()
			slots = c.slots
			c.mu.Unlock()
			if i >= len(slots) {
				return fmt.Errorf("%w: response for unknown slot %d", errFloor, i)
			}
		}
		s := slots[i]
		s.reply = c.pool.get(s.reply, size)
		if err := r.read(s.reply); err != nil {
			return err
		}
		if s.each != nil {
			s.each()
			continue
		}
		s.ready <- struct{}{}
	}
}

// flush writes until the queue is empty. It requires writing to be true, and sets it to false.
func (c *floorClient) flush() {
	c.mu.Lock()
	for !c.out.empty() && c.err == nil {
		c.out, c.spare = c.spare, c.out
		c.room.Broadcast()
		c.mu.Unlock()
		err := c.spare.write(c.nc)
		c.mu.Lock()
		if err != nil && c.err == nil {
			c.err = err
			_ = c.nc.Close()
		}
	}
	c.writing = false
	c.mu.Unlock()
}

func (c *floorClient) caller(payload []byte) func() error {
	s := c.slot(&floorSlot{ready: make(chan struct{}, 1)})
	return func() error {
		c.mu.Lock()
		if c.err != nil {
			defer c.mu.Unlock()
			return c.err
		}
		c.calls++
		alone := c.calls == 1
		c.out.add(s.id, payload)
		writer := !c.writing
		c.writing = true
		c.mu.Unlock()
		if writer {
			if !alone {
				// Other runnable callers probably have frames to write too: batch them.
				runtime.Gosched()
			}
			c.flush()
		}
		if _, ok := <-s.ready; !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.err
		}
		err := sameSize(payload, s.reply)
		s.reply = c.pool.put(s.reply)
		c.mu.Lock()
		c.calls--
		c.mu.Unlock()
		return err
	}
}

func (c *floorClient) start(payload []byte, outstanding int, more func() bool, done func(time.Duration)) error {
	// Responses arrive in order, so a ring of start times is sufficient.
	begun := make([]time.Time, outstanding)
	var sent, received int // guarded by mu
	s := c.slot(&floorSlot{})
	s.each = func() {
		took := time.Since(begun[received%outstanding])
		done(took)
		c.mu.Lock()
		received++
		if received == sent || sent-received < outstanding/2 {
			c.room.Broadcast()
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for more() {
		for sent-received >= outstanding && c.err == nil {
			c.room.Wait()
		}
		if c.err != nil {
			return c.err
		}
		begun[sent%outstanding] = time.Now()
		sent++
		c.append(s.id, payload)
		if sent%64 == 0 {
			c.mu.Unlock() // lets other goroutines acquire it
			c.mu.Lock()
		}
	}
	for received < sent && c.err == nil {
		c.room.Wait()
	}
	return c.err
}

// append queues a frame for a goroutine to write. The caller holds mu.
func (c *floorClient) append(id uint32, payload []byte) {
	c.out.add(id, payload)
	if !c.writing {
		c.writing = true
		c.run.Go(c.flush)
	}
}

func (c *floorClient) stream(payload []byte) (sending, error) { //nolint:unparam // other systems' streams can fail to open
	return &floorSending{c: c, slot: c.slot(&floorSlot{ready: make(chan struct{}, 1)}), payload: payload}, nil
}

type floorSending struct {
	c       *floorClient
	slot    *floorSlot
	payload []byte
}

func (s *floorSending) send() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for len(s.c.out.buf) >= floorSendBuffer && s.c.err == nil {
		s.c.room.Wait()
	}
	s.c.append(s.slot.id|frameCount, s.payload)
	return s.c.err
}

func (s *floorSending) finish() (uint64, error) {
	s.c.mu.Lock()
	s.c.append(s.slot.id|frameEnd, nil)
	s.c.mu.Unlock()
	if _, ok := <-s.slot.ready; !ok {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		return 0, s.c.err
	}
	n, _ := protowire.ConsumeVarint(s.slot.reply)
	return n, nil
}

// floorSyncClient makes one call at a time, on the caller's goroutine.
type floorSyncClient struct {
	mu  sync.Mutex // held during a call
	nc  net.Conn
	in  *frameReader
	out outBuffer
	buf []byte
}

func dialFloorSync(ctx context.Context, network, address string) (client, error) {
	return newFloorSyncClient(ctx, network, address, floorPlain)
}

func dialFloorPolling(ctx context.Context, network, address string) (client, error) {
	return newFloorSyncClient(ctx, network, address, floorPolling)
}

func newFloorSyncClient(ctx context.Context, network, address string, how floorKind) (client, error) {
	nc, err := dialNetwork(ctx, network, address)
	if err != nil {
		return nil, err
	}
	in, err := how.reading(nc)
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return &floorSyncClient{nc: nc, in: newFrameReader(in, func() error { return nil })}, nil
}

func (c *floorSyncClient) close() error { return c.nc.Close() }

func (c *floorSyncClient) caller(payload []byte) func() error {
	return func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.out.add(0, payload)
		if err := c.out.write(c.nc); err != nil {
			return err
		}
		_, size, err := c.in.next()
		if err != nil {
			return err
		}
		if cap(c.buf) < size {
			c.buf = make([]byte, size)
		}
		if err := c.in.read(c.buf[:size]); err != nil {
			return err
		}
		return sameSize(payload, c.buf[:size])
	}
}
