package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/raylink/raylink"
	bulkv1 "github.com/raylink/raylink/bench/gen/bulk/v1"
	"github.com/raylink/raylink/bench/gen/bulk/v1/bulkv1raylink"
	"github.com/raylink/raylink/runtime"
)

// partBytes is the size of a message of the tunnels that rows of the replay are compared with.
const partBytes = 64 << 10

// Append writes a stream into the memory, again and again.
func (b *bulkNode) Append(_ context.Context, stream bulkv1raylink.BulkAppendServerStream) (*bulkv1.AppendResponse, error) {
	res, at := new(bulkv1.AppendResponse), 0
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return res, nil
		}
		if err != nil {
			return nil, err
		}
		part := req.GetPart()
		res.Bytes += uint64(len(part))
		for len(part) > 0 {
			n := copy(b.memory[at:], part)
			part, at = part[n:], (at+n)%len(b.memory)
		}
	}
}

// Read sends the memory, again and again.
func (b *bulkNode) Read(_ context.Context, req *bulkv1.ReadRequest, stream bulkv1raylink.BulkReadServerStream) error {
	size := int(req.GetPartBytes())
	if size < 1 || size > len(b.memory) {
		return fmt.Errorf("parts of %d bytes do not fit a memory of %d", size, len(b.memory))
	}
	res := new(bulkv1.ReadResponse)
	for at := 0; ; at += size {
		if at+size > len(b.memory) {
			at = 0
		}
		res.Part = b.memory[at : at+size]
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

// tunnelServer hosts a node with a peer's file, and hides its Unix socket.
type tunnelServer struct {
	rt     *raylink.Runtime
	bulk   *bulkv1raylink.Bulk
	memory fileMemory
}

func serveTunnel(ctx context.Context, path string) (*tunnelServer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s := &tunnelServer{memory: fileMemory{path: path}}
	memory, err := s.memory.of(int(info.Size()))
	if err != nil {
		return nil, err
	}
	s.rt, err = raylink.Init(ctx, bulkv1raylink.BulkType(func(context.Context, *runtime.Node) (bulkv1raylink.BulkNode, error) {
		return &bulkNode{memory: memory}, nil
	}))
	if err != nil {
		return nil, errors.Join(err, s.memory.close())
	}
	if s.bulk, err = bulkv1raylink.CreateBulk(ctx, s.rt, runtime.ParentProcess()); err != nil {
		return nil, errors.Join(err, s.close())
	}
	host := s.bulk.Ref().Record().GetHost().GetDirectory()
	if err := os.Rename(host, host+elsewhere); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *tunnelServer) address() string { return s.bulk.Ref().Path() }
func (s *tunnelServer) close() error    { return errors.Join(s.rt.Close(), s.memory.close()) }

// tunnelRows sends and receives rows by a stream, which begins with the first operation and ends
// with flush.
type tunnelRows struct {
	rt   *raylink.Runtime
	bulk *bulkv1raylink.Bulk
	size int

	appending bulkv1raylink.BulkAppendClientStream
	req       bulkv1.AppendRequest
	// buffered is how many bytes the next message has so far, and sent those of all messages.
	buffered int
	sent     uint64

	reading bulkv1raylink.BulkReadClientStream
	cancel  context.CancelFunc
	// unread is how many bytes were received, but not yet returned.
	unread int
}

func openTunnelRows(ctx context.Context, size int, path string) (rowStore, error) {
	rt, err := raylink.Init(ctx)
	if err != nil {
		return nil, err
	}
	bulk, err := bulkv1raylink.FindBulk(ctx, rt, runtime.Path(path))
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	return &tunnelRows{rt: rt, bulk: bulk, size: size, req: bulkv1.AppendRequest{Part: make([]byte, partBytes)}}, nil
}

func (t *tunnelRows) capacity() int { return 0 }

// write counts rows, and sends a message when there are enough for one.
func (t *tunnelRows) write(ctx context.Context, n int, _ []byte) error {
	if t.appending == nil {
		stream, err := t.bulk.Append(ctx)
		if err != nil {
			return err
		}
		t.appending, t.sent = stream, 0
	}
	for t.buffered += n * t.size; t.buffered >= partBytes; t.buffered -= partBytes {
		if err := t.appending.Send(&t.req); err != nil {
			return err
		}
		t.sent += partBytes
	}
	return nil
}

// sample receives as many bytes as the rows have.
func (t *tunnelRows) sample(ctx context.Context, n int) error {
	if t.reading == nil {
		ctx, cancel := context.WithCancel(ctx)
		stream, err := t.bulk.Read(ctx, &bulkv1.ReadRequest{PartBytes: partBytes})
		if err != nil {
			cancel()
			return err
		}
		t.reading, t.cancel = stream, cancel
	}
	for ; t.unread < n*t.size; t.unread += partBytes {
		res, err := t.reading.Receive()
		if err != nil {
			return err
		}
		if len(res.GetPart()) != partBytes {
			return fmt.Errorf("a message has %d bytes instead of %d", len(res.GetPart()), partBytes)
		}
	}
	t.unread -= n * t.size
	return nil
}

// flush ends the streams, and checks that everything has arrived.
func (t *tunnelRows) flush(context.Context) error {
	if t.reading != nil {
		t.cancel()
		t.reading, t.unread = nil, 0
	}
	if t.appending == nil {
		return nil
	}
	res, err := t.appending.CloseAndReceive()
	t.appending = nil
	if err == nil && res.GetBytes() != t.sent {
		err = fmt.Errorf("%d of %d bytes have arrived", res.GetBytes(), t.sent)
	}
	return err
}

func (t *tunnelRows) borrow(context.Context, int, func([]byte)) error {
	return errors.New("a tunnel has no rows to borrow")
}
func (t *tunnelRows) hold(context.Context, int) error { return errors.New("a tunnel has no areas") }
func (t *tunnelRows) close() error                    { return t.rt.Close() }
