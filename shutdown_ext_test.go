package raylink_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// TestShutdownIsBoundedByItsContext shuts a runtime down while a call runs that does not end, with
// a drain of an hour, and checks what other goroutines observe.
func TestShutdownIsBoundedByItsContext(t *testing.T) {
	t.Parallel()
	opts := append(contract.Types(), raylink.WithData(t.TempDir()), raylink.WithDrain(time.Hour))
	rt, err := raylink.Start(patient(t), opts...)
	require.NoError(t, err)
	p := create(t, rt)
	p.BlockAsync(patient(t), &contractv1.BlockRequest{Name: "call"})
	require.Eventually(t, func() bool {
		log, err := p.Log(patient(t), nil)
		return err == nil && slices.Contains(log.GetBlocked(), "call")
	}, patience, time.Millisecond)
	require.NoError(t, rt.Err())
	select {
	case <-rt.Done():
		t.Fatal("Done is closed while the runtime runs")
	default:
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- rt.Shutdown(ctx) }()
	late, expired := context.WithCancel(t.Context())
	expired()
	require.Eventually(t, func() bool {
		_, err := p.Log(patient(t), nil)
		return err != nil
	}, patience, time.Millisecond, "the node is not being stopped")
	require.ErrorIs(t, rt.Shutdown(late), context.Canceled, "a further Shutdown waits beyond its context")
	select {
	case err := <-first:
		t.Fatalf("Shutdown returned %v while a call runs and its context has not ended", err)
	default:
	}
	cancel()
	select {
	case <-rt.Done():
	case <-time.After(patience):
		t.Fatal("the runtime does not end")
	}
	err = <-first
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, p.Ref().Path()+" is still stopping")
	assert.Equal(t, err, rt.Close(), "a further Close returns the first one's error")
	require.ErrorIs(t, rt.Err(), runtime.ErrClosed)
}

// unchecked joins a system as joined does, but does not check the error of Close.
func unchecked(t *testing.T, rt *raylink.Runtime, opts ...join.Option) *join.Runtime {
	t.Helper()
	opts = append(append(contract.Types(), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir())), opts...)
	host, err := join.Start(t.Context(), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = host.Close() })
	return host
}

// TestSlowReaderDoesNotDelayShutdown ends a host, a gateway, and a host behind a gateway, while
// they write large responses that their callers do not read. Shutdown has no bound but the drain.
func TestSlowReaderDoesNotDelayShutdown(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	drain := raylink.WithDrain(time.Second)
	quiet := raylink.WithLogger(slog.New(slog.DiscardHandler))
	for name, systemOf := range map[string]func(t *testing.T) (address, node string, end func(context.Context) error){
		"a host": func(t *testing.T) (string, string, func(context.Context) error) {
			t.Helper()
			rt := system(t)
			host := unchecked(t, rt, drain, quiet)
			return host.Address(), create(t, host).Ref().Path(), host.Shutdown
		},
		"Brain's own host": func(t *testing.T) (string, string, func(context.Context) error) {
			t.Helper()
			rt, err := raylink.Start(patient(t), append(contract.Types(), raylink.WithData(t.TempDir()), drain, quiet)...)
			require.NoError(t, err)
			return rt.Address(), create(t, rt).Ref().Path(), rt.Shutdown
		},
		"a gateway": func(t *testing.T) (string, string, func(context.Context) error) {
			t.Helper()
			rt, err := raylink.Start(patient(t), append(contract.Types(), raylink.WithData(t.TempDir()), drain, quiet)...)
			require.NoError(t, err)
			host := unchecked(t, rt, drain, quiet)
			return rt.Address(), create(t, host).Ref().Path(), rt.Shutdown
		},
		"a host behind a gateway": func(t *testing.T) (string, string, func(context.Context) error) {
			t.Helper()
			rt := system(t, drain, quiet)
			host := unchecked(t, rt, drain, quiet)
			return rt.Address(), create(t, host).Ref().Path(), host.Shutdown
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, node, end := systemOf(t)
			for call, request := range map[string]func() (method, kind string, body []byte){
				"unary": func() (string, string, []byte) {
					head := binary.AppendUvarint([]byte{0x0a}, size)
					return "Echo", "application/proto", append(head, make([]byte, size)...)
				},
				"stream": func() (string, string, []byte) {
					message := []byte(`{"to":100000,"payload":65536}`)
					head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
					return "Count", "application/connect+json", append(head, message...)
				},
			} {
				for _, two := range []bool{false, true} {
					protocols := new(http.Protocols)
					protocols.SetHTTP1(!two)
					protocols.SetUnencryptedHTTP2(two)
					transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
						nc, err := new(net.Dialer).DialContext(ctx, network, address)
						if tcp, ok := nc.(*net.TCPConn); ok {
							err = tcp.SetReadBuffer(16 << 10) // otherwise the kernel buffers most of it
						}
						return nc, err
					}}
					defer transport.CloseIdleConnections()
					method, kind, body := request()
					req, err := http.NewRequestWithContext(patient(t), http.MethodPost, "http://"+address+"/"+node+"/contract.v1.Probe/"+method, bytes.NewReader(body))
					require.NoError(t, err, call)
					req.Header.Set("Content-Type", kind)
					res, err := transport.RoundTrip(req)
					require.NoError(t, err, call)
					defer res.Body.Close() //nolint:errcheck // it was not read to its end
					_, err = io.ReadFull(res.Body, make([]byte, 1000))
					require.NoError(t, err, call)
				}
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = end(context.Background()) // a stream that was cut off returns an error
			}()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Error("Shutdown waited for a reader that does not read")
			}
		})
	}
}
