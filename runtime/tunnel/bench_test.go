package tunnel_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// BenchmarkUnary measures calls over one TCP connection within a process, with a number of
// goroutines that each have one call in flight.
func BenchmarkUnary(b *testing.B) {
	for _, size := range []int{16, 1 << 10, 64 << 10, 1 << 20} {
		for _, inflight := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("%dB/inflight=%d", size, inflight), func(b *testing.B) {
				client, _ := overTCP(b, tunnel.Config{}, echo())
				ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
				defer cancel()
				b.SetBytes(int64(size))
				b.ReportAllocs()
				concurrently(b, inflight, func(next func() bool) {
					done := make(chan struct{}, 1)
					req := wrapperspb.Bytes(make([]byte, size))
					for next() {
						call := &tunnel.Call{
							Target: "target", Caller: "caller", Procedure: "/p.P/M", Request: req, Response: &wrapperspb.BytesValue{},
							Done: func(*tunnel.Call) { done <- struct{}{} },
						}
						if err := client.Start(ctx, call); err != nil {
							b.Error(err)
							return
						}
						<-done
						if call.Err != nil {
							b.Error(call.Err)
							return
						}
					}
				})
			})
		}
	}
}

// BenchmarkAsync measures one goroutine that keeps many calls in flight.
func BenchmarkAsync(b *testing.B) {
	client, _ := overTCP(b, tunnel.Config{}, echo())
	const outstanding = 10000
	slots := make(chan struct{}, outstanding)
	req := wrapperspb.Bytes(make([]byte, 16))
	done := func(*tunnel.Call) { <-slots }
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		slots <- struct{}{}
		require.NoError(b, client.Start(context.Background(), &tunnel.Call{
			Target: "target", Caller: "caller", Procedure: "/p.P/M", Request: req, Response: &wrapperspb.BytesValue{}, Done: done,
		}))
	}
	for range outstanding {
		slots <- struct{}{}
	}
}

// BenchmarkStream measures messages sent in one direction, counted at the receiver.
func BenchmarkStream(b *testing.B) {
	h := echo()
	h.stream = func(_ context.Context, _ *tunnel.Incoming, s connect.ServerStream) error {
		req := &wrapperspb.BytesValue{}
		for {
			if err := s.Receive(req); err != nil {
				return s.Send(nil)
			}
		}
	}
	client, _ := overTCP(b, tunnel.Config{}, h)
	stream, err := client.Stream(context.Background(), tunnel.StreamRequest{Procedure: "/p.P/M", StreamType: connect.StreamTypeClient})
	require.NoError(b, err)
	msg := wrapperspb.Bytes(make([]byte, 1<<10))
	b.SetBytes(1 << 10)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := stream.Send(msg); err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, stream.CloseSend())
	require.NoError(b, stream.Receive(&wrapperspb.BytesValue{}))
	b.StopTimer()
	require.NoError(b, stream.Close())
}

// BenchmarkFloor is the baseline: the same messages with a length and a number as their only
// framing, over the simplest multiplexer that batches writes.
func BenchmarkFloor(b *testing.B) {
	for _, size := range []int{16, 1 << 10, 64 << 10, 1 << 20} {
		for _, inflight := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("%dB/inflight=%d", size, inflight), func(b *testing.B) {
				near, far := sockets(b)
				server, client := newFloor(far), newFloor(near)
				server.on = func(id uint32, msg *wrapperspb.BytesValue) { server.send(id, msg) }
				waiting := make([]chan struct{}, inflight)
				client.on = func(id uint32, _ *wrapperspb.BytesValue) { waiting[id] <- struct{}{} }
				var run sync.WaitGroup
				run.Go(server.read)
				run.Go(client.read)
				var ids atomic.Uint32
				b.SetBytes(int64(size))
				b.ReportAllocs()
				concurrently(b, inflight, func(next func() bool) {
					id := ids.Add(1) - 1
					waiting[id] = make(chan struct{}, 1)
					req := wrapperspb.Bytes(make([]byte, size))
					for next() {
						client.send(id, req)
						<-waiting[id]
					}
				})
				require.NoError(b, near.Close())
				require.NoError(b, far.Close())
				run.Wait()
			})
		}
	}
}

// concurrently distributes b.N rounds over n goroutines.
func concurrently(b *testing.B, n int, run func(next func() bool)) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	before := cpu(b)
	b.ResetTimer()
	for range n {
		all.Go(func() { run(func() bool { return left.Add(-1) >= 0 }) })
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
}

// cpu returns the CPU time used by this process. On a busy machine it is a better measure than
// wall-clock time.
func cpu(b *testing.B) int64 {
	b.Helper()
	var used syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return used.Utime.Nano() + used.Stime.Nano()
}

// floor is a length-prefixed echo server and client.
type floor struct {
	nc net.Conn
	on func(uint32, *wrapperspb.BytesValue)

	mu      sync.Mutex
	buf     []byte
	spare   []byte
	writing bool
}

func newFloor(nc net.Conn) *floor { return &floor{nc: nc} }

func (f *floor) send(id uint32, msg proto.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := len(f.buf)
	f.buf = append(f.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	f.buf, _ = proto.MarshalOptions{}.MarshalAppend(f.buf, msg)
	binary.LittleEndian.PutUint32(f.buf[at:], uint32(len(f.buf)-at-8))
	binary.LittleEndian.PutUint32(f.buf[at+4:], id)
	if !f.writing {
		f.writing = true
		go f.write()
	}
}

func (f *floor) write() {
	f.mu.Lock()
	for len(f.buf) > 0 {
		out := f.buf
		f.buf = f.spare[:0]
		f.mu.Unlock()
		_, err := f.nc.Write(out)
		f.mu.Lock()
		f.spare = out
		if err != nil {
			break
		}
	}
	f.writing = false
	f.mu.Unlock()
}

func (f *floor) read() {
	buf := make([]byte, 0, 64<<10)
	at := 0
	need := func(n int) bool {
		for len(buf)-at < n {
			if at > 0 {
				buf = append(buf[:0], buf[at:]...)
				at = 0
			}
			if cap(buf) < n {
				buf = append(make([]byte, 0, n), buf...)
			}
			got, err := f.nc.Read(buf[len(buf):cap(buf)])
			if buf = buf[:len(buf)+got]; err != nil && got == 0 {
				return false
			}
		}
		return true
	}
	for need(8) {
		n := int(binary.LittleEndian.Uint32(buf[at:]))
		id := binary.LittleEndian.Uint32(buf[at+4:])
		if !need(8 + n) {
			return
		}
		msg := &wrapperspb.BytesValue{}
		if err := proto.Unmarshal(buf[at+8:at+8+n], msg); err != nil {
			panic(err)
		}
		at += 8 + n
		f.on(id, msg)
	}
}
