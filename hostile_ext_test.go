package raylink_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/puppet"
)

const (
	hostileToken   = "s3cret"
	hostileMessage = 4 << 20
	// hostileBodies is the host's resulting bound on HTTP messages: twice the memory of the
	// largest.
	hostileBodies = 2 * 2 * (hostileMessage + 64<<10)
	mib           = 1 << 20
)

// victim is a system that is attacked while a neighbour calls its node.
type victim struct {
	address string
	node    string
	calls   atomic.Int64
}

// attack is what a hostile peer does.
type attack struct {
	name string
	// most is how much additional memory the host may hold during the attack.
	most int
	do   func(t *testing.T, v *victim) (end func())
}

// TestHostile attacks a host by every type of frame and every shape of HTTP, before and after
// admission. The host's memory stays bounded, its neighbour's calls continue, and nothing is left.
// RAYLINK_HOSTILE, such as 10m, repeats the attacks for that long.
func TestHostile(t *testing.T) {
	long, err := time.ParseDuration(os.Getenv("RAYLINK_HOSTILE"))
	require.True(t, err == nil || os.Getenv("RAYLINK_HOSTILE") == "", "RAYLINK_HOSTILE: %v", err)
	quiet := runtime.WithLogger(slog.New(slog.DiscardHandler))
	rt := system(t, runtime.WithToken(hostileToken), runtime.WithMaxMessage(hostileMessage), quiet)
	p := create(t, rt, runtime.ParentProcess())
	other := joined(t, rt, runtime.WithToken(hostileToken), runtime.WithMaxMessage(hostileMessage), quiet)
	far, err := contractv1raylink.FindProbe(patient(t), other, runtime.Path(p.Ref().Path()))
	require.NoError(t, err)
	v := &victim{address: rt.Address(), node: p.Ref().Path()}

	stop, stopped := make(chan struct{}), make(chan struct{})
	go v.neighbour(t, far, stop, stopped)
	defer func() {
		close(stop)
		<-stopped
	}()
	for begin := time.Now(); ; {
		for _, a := range attacks() {
			t.Run(a.name, func(t *testing.T) { v.withstand(t, a) })
		}
		if time.Since(begin) >= long || t.Failed() {
			return
		}
	}
}

// neighbour calls the node repeatedly, by tunnel and by HTTP.
func (v *victim) neighbour(t *testing.T, far *contractv1raylink.Probe, stop, stopped chan struct{}) {
	defer close(stopped)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, err := far.Echo(ctx, &contractv1.EchoRequest{Payload: make([]byte, 100)})
		if err != nil {
			t.Errorf("the neighbour's call by tunnel: %v", err)
			cancel()
			return
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url("Echo"), strings.NewReader(`{}`))
		if err == nil {
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Authorization", "Bearer "+hostileToken)
			var res *http.Response
			if res, err = client.Do(req); err == nil {
				_ = res.Body.Close()
				if res.StatusCode != http.StatusOK {
					err = errors.New(res.Status)
				}
			}
		}
		cancel()
		if err != nil {
			t.Errorf("the neighbour's call by HTTP: %v", err)
			return
		}
		v.calls.Add(1)
	}
}

func (v *victim) url(method string) string {
	return "http://" + v.address + "/" + v.node + "/contract.v1.Probe/" + method
}

// withstand runs an attack and checks its effects.
func (v *victim) withstand(t *testing.T, a attack) {
	t.Helper()
	heapHeld()
	heap, routines, files := heapHeld(), goruntime.NumGoroutine(), openFiles(t)
	calls := v.calls.Load()
	most := watchHeap()
	end := a.do(t, v)
	held := most() - heap
	t.Logf("%d KiB held", held>>10)
	assert.LessOrEqual(t, held, a.most)
	require.Eventually(t, func() bool { return v.calls.Load() > calls+2 }, patience, time.Millisecond, "the neighbour's calls do not continue")
	end()
	const spare = 12 // the neighbour's own vary
	require.Eventually(t, func() bool { return goruntime.NumGoroutine() <= routines+spare }, patience, 10*time.Millisecond, "goroutines are left")
	require.Eventually(t, func() bool { return openFiles(t) <= files+spare }, patience, 10*time.Millisecond, "files are left open")
	require.Eventually(t, func() bool { return heapHeld()-heap <= 16*mib }, patience, 10*time.Millisecond, "memory is left")
}

// heapHeld returns the live heap, as the last garbage collection found it, and the stacks. It
// counts neither later allocations nor partly free spans, whose size depends on earlier
// allocations. Pools retain objects through one collection.
func heapHeld() int {
	goruntime.GC()
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	return int(samples[0].Value.Uint64() + samples[1].Value.Uint64())
}

// watchHeap measures repeatedly. The returned function ends that and returns the most that three
// successive measurements have all exceeded: allocations during a collection count as live in it.
func watchHeap() (most func() int) {
	const row = 3
	stop, result := make(chan struct{}), make(chan int)
	go func() {
		var last []int
		held, more := 0, row // measurements after stop
		for more > 0 {
			select {
			case <-stop:
				more--
			case <-time.After(10 * time.Millisecond):
			}
			if last = append(last, heapHeld()); len(last) >= row {
				held = max(held, slices.Min(last[len(last)-row:]))
			}
		}
		result <- held
	}()
	return func() int {
		close(stop)
		return <-result
	}
}

// openFiles returns the number of open files, or 0 where the system does not report it.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	require.NoError(t, err)
	return len(list)
}

// connections are those that an attack has opened.
type connections []net.Conn

func (c *connections) dial(t *testing.T, v *victim) net.Conn {
	t.Helper()
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", v.address)
	require.NoError(t, err)
	*c = append(*c, nc)
	return nc
}

func (c *connections) close() {
	for _, nc := range *c {
		_ = nc.Close()
	}
}

// push writes b repeatedly until n bytes are sent, or the peer accepts no more.
func push(nc net.Conn, b []byte, n int) {
	for sent := 0; sent < n; {
		_ = nc.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		k, err := nc.Write(b)
		if sent += k; err != nil {
			return
		}
	}
}

// tunnel opens an admitted tunnel for raw frames.
func (v *victim) tunnel(t *testing.T, reads bool) (nc net.Conn, end func()) {
	t.Helper()
	raw, err := new(net.Dialer).DialContext(t.Context(), "tcp", v.address)
	require.NoError(t, err)
	strings := puppet.New(raw)
	conn, err := tunnel.Dial(t.Context(), strings, tunnel.Hello{Client: "puppet"}, tunnel.Config{Token: hostileToken, Keepalive: -1})
	require.NoError(t, err)
	require.NoError(t, strings.Seize())
	if reads {
		go func() { _, _ = io.Copy(io.Discard, raw) }()
	}
	return raw, func() { _ = conn.Close() }
}

func attacks() []attack {
	all := []attack{
		{name: "before admission", most: 48 * mib, do: unadmitted},
		{name: "garbage in a tunnel", most: 16 * mib, do: garbage},
		{name: "uploads that do not end", most: hostileBodies + 16*mib, do: uploads("Content-Length: %d\r\n", "")},
		{name: "uploads in chunks that do not end", most: hostileBodies + 16*mib, do: uploads("Transfer-Encoding: chunked\r\n", "%x\r\n")},
		{name: "gzip bombs", most: hostileBodies + 16*mib, do: bombs},
		{name: "gRPC that does not end", most: hostileBodies + 32*mib, do: grpcUploads},
		{name: "slow drip", most: 16 * mib, do: drip},
		// Requests, responses, and responses that wait, each with the message that it encodes; then
		// what is between these: a few requests in the mailbox, and responses being encoded.
		{name: "responses that nothing reads", most: 3*hostileBodies + 8*hostileMessage + 16*mib, do: unread},
	}
	return append(append(all, floods()...), h2Attacks()...)
}

// unadmitted opens connections that begin in many ways and then stall.
func unadmitted(t *testing.T, v *victim) func() {
	t.Helper()
	preface := []byte(tunnel.Preface)
	hello := func(length uint64, body int) string {
		return string(append(binary.LittleEndian.AppendUint64(preface, length|0x01<<24), make([]byte, body)...))
	}
	h2 := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	var all connections
	for _, says := range []string{
		"", "\x8d", string(preface), string(preface[:5]), hello(16<<10, 8<<10), hello(0xffffff, 100), hello(0, 0), hello(3, 3),
		"GET / HTTP/1.1\r\nHost: x\r\nX: ", "GET /" + strings.Repeat("x", 8<<10), "POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
		h2, h2 + "\xff\xff\xff\x04\x00\x00\x00\x00\x00", h2 + "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x16\x03\x01\x02\x00\x01", "\x00\x00\x00",
	} {
		for range 15 {
			_, _ = io.WriteString(all.dial(t, v), says) // it may have been refused already
		}
	}
	return all.close
}

// garbage sends invalid frames after admission.
func garbage(t *testing.T, v *victim) func() {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		nc, end := v.tunnel(t, random.IntN(2) == 0)
		b := make([]byte, random.IntN(300))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		kinds := []byte{0, puppet.Name, puppet.Call, puppet.Data, puppet.CloseSend, puppet.Cancel, puppet.Head, puppet.Reply, puppet.Credit, puppet.Ping, puppet.GoAway}
		for range 5 {
			f := puppet.Frame(kinds[random.IntN(len(kinds))], byte(random.Uint32())&0x3f, random.Uint32N(4), b[:random.IntN(len(b)+1)]...)
			push(nc, f[:len(f)-random.IntN(2)], 1)
		}
		end()
	}
	return func() {}
}

// floods are floods of each type of frame, by peers that read and by peers that don't.
func floods() (all []attack) {
	name := puppet.Names("x", "/p.P/M")
	ids := func(n uint32, of func(id uint32) []byte) (b []byte) {
		for id := range n {
			b = append(b, of(id+1)...)
		}
		return b
	}
	for kind, frames := range map[string][]byte{
		"NAME":       ids(1<<14, func(id uint32) []byte { return puppet.Frame(puppet.Name, 0, id, 'n') }),
		"CALL":       puppet.Frame(puppet.Call, 0, 1, name...),
		"CALL, long": puppet.Frame(puppet.Call, 0, 1, puppet.Names("x", "/"+strings.Repeat("n", 60<<10))...),
		"CALL, of host": ids(500, func(id uint32) []byte {
			return puppet.Frame(puppet.Call, puppet.Bidi, id, puppet.Names("", "/x.Y/Z")...)
		}),
		"CALL, header": puppet.Frame(puppet.Call, puppet.WithHeader, 1, append(bytes.Clone(name), puppet.EmptyHeader(30_000)...)...),
		"CALL, sized": ids(1000, func(id uint32) []byte {
			return puppet.Frame(puppet.Call, puppet.Sized, id, append(bytes.Clone(name), 1)...)
		}),
		"CALL, large id": puppet.Frame(puppet.Call, 0, 1<<24-1, name...),
		"DATA":           puppet.Frame(puppet.Data, 0, 1, make([]byte, 60<<10)...),
		"CLOSE_SEND":     puppet.Frame(puppet.CloseSend, 0, 1),
		"CANCEL":         puppet.Frame(puppet.Cancel, 0, 1),
		"HEAD":           puppet.Frame(puppet.Head, 0, 1, 0),
		"REPLY":          puppet.Frame(puppet.Reply, 0x08, 1),
		"CREDIT":         puppet.Frame(puppet.Credit, 0, 1, 1),
		"PING":           puppet.Frame(puppet.Ping, 0, 0, make([]byte, 8)...),
		"PONG":           puppet.Frame(puppet.Pong, 0, 0, make([]byte, 8)...),
		"GOAWAY":         puppet.Frame(puppet.GoAway, 0, 0, 14, 0, 0),
	} {
		for _, reads := range []bool{true, false} {
			all = append(all, attack{name: fmt.Sprintf("flood of %s, reads=%t", kind, reads), most: 24 * mib, do: func(t *testing.T, v *victim) func() {
				t.Helper()
				nc, end := v.tunnel(t, reads)
				piece := frames
				if len(piece) < 16<<10 {
					piece = puppet.Repeated(frames, 32<<10)
				}
				push(nc, piece, 3*mib)
				return end
			}})
		}
	}
	return all
}

// uploads sends requests without their last byte.
func uploads(length, chunk string) func(*testing.T, *victim) func() {
	return func(t *testing.T, v *victim) func() {
		t.Helper()
		var all connections
		const size = hostileMessage - 1024
		if strings.Contains(length, "%d") {
			length = fmt.Sprintf(length, size+1)
		}
		for range 16 {
			nc := all.dial(t, v)
			_, err := fmt.Fprintf(nc, "POST /%s/contract.v1.Probe/Echo HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Type: application/proto\r\n%s\r\n",
				v.node, hostileToken, length)
			require.NoError(t, err)
			if chunk != "" {
				_, err = fmt.Fprintf(nc, chunk, size+1)
				require.NoError(t, err)
			}
			push(nc, make([]byte, 64<<10), size-64<<10)
		}
		return all.close
	}
}

// bombs sends small requests that decompress to large messages.
func bombs(t *testing.T, v *victim) func() {
	t.Helper()
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	_, err := w.Write(make([]byte, 20*mib))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	for range 3 {
		req, err := http.NewRequestWithContext(patient(t), http.MethodPost, v.url("Echo"), bytes.NewReader(bomb.Bytes()))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/proto")
		req.Header.Set("Content-Encoding", "gzip")
		req.Header.Set("Authorization", "Bearer "+hostileToken)
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Contains(t, string(body), "resource_exhausted")
	}
	return func() {}
}

// grpcUploads sends gRPC requests over HTTP/2 whose messages are never complete.
func grpcUploads(t *testing.T, v *victim) func() {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	ctx, cancel := context.WithCancel(t.Context())
	ended, piece := make(chan struct{}), make([]byte, 64<<10)
	var sent atomic.Int64
	const calls = 16
	for range calls {
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url("Echo"), r)
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("TE", "trailers")
		req.Header.Set("Authorization", "Bearer "+hostileToken)
		go func() {
			if res, err := transport.RoundTrip(req); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			_ = r.Close()
			ended <- struct{}{}
		}()
		go func() {
			head := binary.BigEndian.AppendUint32([]byte{0}, hostileMessage-1024)
			_, _ = w.Write(head)
			for range hostileMessage/len(piece) - 1 {
				n, err := w.Write(piece)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
	}
	last, since := int64(0), time.Now()
	require.Eventually(t, func() bool { // until no more is accepted
		if now := sent.Load(); now != last {
			last, since = now, time.Now()
		}
		return last > 0 && time.Since(since) > 200*time.Millisecond
	}, patience, time.Millisecond)
	return func() {
		cancel()
		for range calls {
			<-ended
		}
		transport.CloseIdleConnections()
	}
}

// drip sends requests byte by byte.
func drip(t *testing.T, v *victim) func() {
	t.Helper()
	var all connections
	for range 200 {
		nc := all.dial(t, v)
		_, err := fmt.Fprintf(nc, "POST /%s/contract.v1.Probe/Echo HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Type: application/proto\r\nContent-Length: 1000\r\n\r\n",
			v.node, hostileToken)
		require.NoError(t, err)
		_, err = nc.Write([]byte{0})
		require.NoError(t, err)
	}
	return all.close
}

// unread requests large responses and reads none.
func unread(t *testing.T, v *victim) func() {
	t.Helper()
	var all connections
	const size = hostileMessage - 64<<10
	body := append([]byte{0x0a}, binary.AppendUvarint(nil, size)...)
	body = append(body, make([]byte, size)...)
	for range 160 {
		nc := all.dial(t, v)
		if tcp, ok := nc.(*net.TCPConn); ok {
			require.NoError(t, tcp.SetReadBuffer(4<<10)) // otherwise the kernel buffers most of it
		}
		_, err := fmt.Fprintf(nc, "POST /%s/contract.v1.Probe/Echo HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Type: application/proto\r\nContent-Length: %d\r\n\r\n",
			v.node, hostileToken, len(body))
		require.NoError(t, err)
		push(nc, body, len(body))
	}
	return all.close
}
