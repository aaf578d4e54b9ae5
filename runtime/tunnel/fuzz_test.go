package tunnel_test

import (
	"bytes"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
	"github.com/raylink/raylink/runtime/tunnel/puppet"
)

// fuzzConfig has limits small enough for a fuzzer to reach.
var fuzzConfig = tunnel.Config{
	Logger: silent(), MaxMessageBytes: 256 << 10, MaxHeaderBytes: 1 << 10, Window: 128 << 10, MaxCalls: 100, MaxStreams: 3,
	Keepalive: time.Second, HandshakeTimeout: time.Second,
}

// spoken returns what one side sends in the transcripts: the handshake, and separately what follows
// it.
func spoken(f *testing.F, direction string) (opening []byte, rest [][]byte) {
	f.Helper()
	paths, err := filepath.Glob("testdata/transcripts/v2/*.txt")
	require.NoError(f, err)
	const largest = 4 << 10 // larger seeds slow down the fuzzer
	t := &testing.T{}
	for _, path := range paths {
		var all []byte
		for _, b := range parseTranscript(t, path).blocks {
			var said []byte
			for _, line := range b.lines {
				if line[:1] == direction {
					said = append(said, unpacked(t, line[2:])...)
				}
			}
			if len(b.commands) > 0 && b.commands[0] == "dial" {
				opening = said
				continue
			}
			all = append(all, said...)
			if len(said) < largest {
				rest = append(rest, said)
			}
		}
		if len(all) < largest {
			rest = append(rest, all)
		}
	}
	return opening, rest
}

// openHandshake returns what each side sends in a handshake without a token.
func openHandshake(f *testing.F) (said, answered []byte) {
	f.Helper()
	near, proxyNear := memnet.Pipe()
	proxyFar, far := memnet.Pipe()
	var passed sync.WaitGroup
	for _, way := range []struct {
		from, to *memnet.Conn
		record   *[]byte
	}{{proxyNear, proxyFar, &said}, {proxyFar, proxyNear, &answered}} {
		passed.Go(func() {
			var record bytes.Buffer
			_, _ = io.Copy(io.MultiWriter(way.to, &record), way.from)
			*way.record = record.Bytes()
			_ = way.to.Close()
		})
	}
	client, server := join(f, near, far, fuzzConfig, fuzzConfig, echo())
	require.NoError(f, client.Close())
	require.NoError(f, server.Close())
	passed.Wait()
	return said, answered
}

// FuzzAccept sends arbitrary bytes to an accepting side, before and after the handshake. It must
// not panic or hang, and must hold nothing after the end of the connection.
func FuzzAccept(f *testing.F) {
	replayed, seeds := spoken(f, ">")
	for _, seed := range seeds {
		f.Add(true, seed)
	}
	opening, _ := openHandshake(f)
	f.Add(false, opening)
	f.Add(false, replayed)
	f.Add(false, []byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, afterHandshake bool, said []byte) {
		synctest.Test(t, func(t *testing.T) {
			near, far := memnet.Pipe()
			go func() { _, _ = io.Copy(io.Discard, near) }()
			go func() {
				if afterHandshake {
					_, _ = near.Write(opening)
				}
				_, _ = near.Write(said)
				<-time.After(10 * time.Second)
				_ = near.Close()
			}()
			cfg := fuzzConfig
			if !afterHandshake {
				cfg.Token = "no input can prove that it knows this"
			}
			conn, err := tunnel.Accept(t.Context(), far, cfg, self, admit(&scripted{}))
			if err != nil {
				var failed *tunnel.HandshakeError
				require.ErrorAs(t, err, &failed)
			} else {
				require.True(t, afterHandshake, "admitted without a proof")
				<-conn.Done()
				require.Error(t, conn.Err())
			}
			<-time.After(time.Minute) // until everything has ended
		})
	})
}

// FuzzDial sends arbitrary bytes to a dialling side that has open calls. Every call must end.
func FuzzDial(f *testing.F) {
	replayed, seeds := spoken(f, "<")
	for _, seed := range seeds {
		f.Add(true, seed)
	}
	_, opening := openHandshake(f)
	f.Add(false, opening)
	f.Add(false, replayed)
	f.Fuzz(func(t *testing.T, afterHandshake bool, said []byte) {
		synctest.Test(t, func(t *testing.T) {
			near, far := memnet.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			if afterHandshake {
				_, err := far.Write(opening)
				require.NoError(t, err)
			} else {
				go func() { _, _ = far.Write(said) }()
			}
			time.AfterFunc(10*time.Second, func() { _ = far.Close() })
			cfg := fuzzConfig
			if !afterHandshake {
				cfg.Token = "no input can prove that it knows this"
			}
			conn, err := tunnel.Dial(t.Context(), near, tunnel.Hello{}, cfg)
			if err != nil {
				var failed *tunnel.HandshakeError
				require.ErrorAs(t, err, &failed)
				_ = far.Close()
				return
			}
			ends := make(chan error, 3)
			for range 2 {
				require.NoError(t, conn.Start(t.Context(), &tunnel.Call{
					Procedure: "/p/P", Response: &wrapperspb.BytesValue{}, Done: func(c *tunnel.Call) { ends <- c.Err },
				}))
			}
			stream, err := conn.Stream(t.Context(), tunnel.StreamRequest{Procedure: "/p/P", StreamType: connect.StreamTypeBidi})
			require.NoError(t, err)
			require.NoError(t, stream.Send(nil))
			go func() {
				for {
					if err := stream.Receive(&wrapperspb.BytesValue{}); err != nil {
						ends <- err
						return
					}
				}
			}()
			if afterHandshake {
				_, _ = far.Write(said)
			}
			for range 3 {
				err := <-ends // any outcome, but exactly one
				_ = err
			}
			require.NoError(t, conn.Close())
			_ = far.Close()
			<-time.After(time.Minute) // until everything has ended
		})
	})
}

// FuzzHeader parses arbitrary bytes as a header. A header that is accepted fits its limit and is
// unchanged by encoding and parsing it again.
func FuzzHeader(f *testing.F) {
	const room = 1 << 10
	f.Add(tunnel.AppendHeader(nil, nil))
	f.Add(tunnel.AppendHeader(nil, tunnel.Header{{Key: "k", Value: "v"}, {Key: "k-bin", Value: "\x00\xff"}}))
	f.Add(puppet.EmptyHeader(room))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x07, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		h, cost, err := tunnel.ParseHeader(body, room)
		if err != nil {
			require.ErrorIs(t, err, tunnel.ErrProtocol)
			return
		}
		if h == nil {
			return // empty, or larger than the limit
		}
		require.LessOrEqual(t, cost, room)
		again, _, err := tunnel.ParseHeader(tunnel.AppendHeader(nil, h), 2*room) // keys in lower case may be longer
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}

// FuzzErrorBlock parses arbitrary bytes as an error block. An error that is accepted has one of
// connect's codes and a bounded number of details, and is unchanged by encoding and parsing it
// again.
func FuzzErrorBlock(f *testing.F) {
	simple := connect.NewError(connect.CodeAborted, "why")
	f.Add(tunnel.AppendErrorBlock(nil, simple, 1<<10))
	f.Add(tunnel.AppendErrorBlock(nil, simple.WithDetail(&connect.ErrorDetail{Type: "p.M", Value: []byte{1}}), 1<<10))
	f.Add(append([]byte{2, 0}, puppet.EmptyHeader(300)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x07, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := tunnel.ParseErrorBlock(body)
		require.GreaterOrEqual(t, got.Code(), connect.CodeCanceled)
		require.LessOrEqual(t, got.Code(), connect.CodeUnauthenticated)
		require.LessOrEqual(t, len(got.Details()), 128)
		if err != nil {
			require.ErrorIs(t, err, tunnel.ErrProtocol)
			return
		}
		const limit = 1 << 10
		block := tunnel.AppendErrorBlock(nil, got, limit)
		require.LessOrEqual(t, len(block), limit)
		again, err := tunnel.ParseErrorBlock(block)
		require.NoError(t, err)
		require.Equal(t, got.Code(), again.Code())
		require.True(t, utf8.ValidString(again.Message()))
		if utf8.ValidString(got.Message()) && len(body) < limit/2 {
			require.Equal(t, got.Message(), again.Message())
			require.Len(t, again.Details(), len(got.Details()))
		}
	})
}
