package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

const token = "correct horse battery staple"

var withToken = tunnel.Config{Logger: silent(), Token: token}

// Kinds of handshake frames.
const (
	hello   = 0x01
	welcome = 0x02
	refuse  = 0x03
	proof   = 0x04
)

// peer is one end of a connection on which a test writes and reads handshake frames itself.
type peer struct {
	t    testing.TB
	nc   net.Conn
	seen bool // the preface has been read
}

// next reads the next handshake frame and returns it with its header.
func (p *peer) next() []byte {
	p.t.Helper()
	frame, err := p.read()
	require.NoError(p.t, err)
	return frame
}

func (p *peer) read() ([]byte, error) {
	if !p.seen {
		preface := make([]byte, len(tunnel.Preface))
		if _, err := io.ReadFull(p.nc, preface); err != nil {
			return nil, err
		}
		p.seen = true
	}
	head := make([]byte, tunnel.HeaderBytes)
	if _, err := io.ReadFull(p.nc, head); err != nil {
		return nil, err
	}
	body := make([]byte, tunnel.FrameBytes(head)-tunnel.HeaderBytes)
	_, err := io.ReadFull(p.nc, body)
	return slices.Concat(head, body), err
}

func (p *peer) write(parts ...[]byte) {
	p.t.Helper()
	_, err := p.nc.Write(bytes.Join(parts, nil))
	require.NoError(p.t, err)
}

func kindOf(frame []byte) int { return int(frame[3]) }

// handshakeResult is the outcome of a handshake on both sides, and the bytes that each sent.
type handshakeResult struct {
	client, server error
	admitted       bool
	sent, answered []byte
}

// tamperedHandshake runs a handshake whose frames pass through change, which returns what is
// delivered instead of a frame.
func tamperedHandshake(t *testing.T, hello tunnel.Hello, client, server tunnel.Config, change func(fromDialler bool, frame []byte) []byte) handshakeResult {
	t.Helper()
	near, proxyNear := memnet.Pipe()
	proxyFar, far := memnet.Pipe()
	var o handshakeResult
	var changing sync.Mutex // change is called from both directions
	forward := func(from, to net.Conn, fromDialler bool, record *[]byte) {
		in := &peer{t: t, nc: from}
		for first := true; ; first = false {
			frame, err := in.read()
			if err != nil {
				_ = to.Close()
				return
			}
			changing.Lock()
			out := change(fromDialler, frame)
			changing.Unlock()
			if first {
				out = append([]byte(tunnel.Preface), out...)
			}
			*record = append(*record, out...)
			if _, err := to.Write(out); err != nil {
				_ = from.Close()
				return
			}
		}
	}
	go forward(proxyNear, proxyFar, true, &o.sent)
	go forward(proxyFar, proxyNear, false, &o.answered)
	ch := make(chan error, 1)
	var conns []*tunnel.Conn
	go func() {
		c, err := tunnel.Accept(context.Background(), far, server, self, func(tunnel.Hello) (tunnel.Handler, error) {
			o.admitted = true
			return echo(), nil
		})
		if err == nil {
			conns = append(conns, c)
		}
		ch <- err
	}()
	c, err := tunnel.Dial(context.Background(), near, hello, client)
	o.client, o.server = err, <-ch
	if err == nil {
		conns = append(conns, c)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	synctest.Wait()
	return o
}

func unchanged(_ bool, frame []byte) []byte { return frame }

func requireReason(t *testing.T, err error, reason tunnel.HandshakeReason, code connect.Code, text string) {
	t.Helper()
	var failed *tunnel.HandshakeError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, reason, failed.Reason, err)
	require.Equal(t, code, connect.CodeOf(err), err)
	require.ErrorIs(t, err, tunnel.ErrNotRun)
	require.ErrorContains(t, err, text)
}

// TestTokenIsNeverSent searches everything that both sides send, in handshakes that succeed and
// that fail.
func TestTokenIsNeverSent(t *testing.T) {
	for name, server := range map[string]tunnel.Config{"same": withToken, "another": {Logger: silent(), Token: "other"}, "none": {Logger: silent()}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := tamperedHandshake(t, tunnel.Hello{}, withToken, server, unchanged)
				require.Equal(t, name == "same", o.client == nil, o.client)
				require.NotEmpty(t, o.sent)
				require.NotContains(t, string(o.sent)+string(o.answered), token)
			})
		})
	}
}

// TestDifferentTokens: the error of each side states what to do.
func TestDifferentTokens(t *testing.T) {
	open, other := tunnel.Config{Logger: silent()}, tunnel.Config{Logger: silent(), Token: "other"}
	for name, test := range map[string]struct {
		client, server tunnel.Config
		reason         tunnel.HandshakeReason
		text           string
	}{
		"another token":          {other, withToken, tunnel.ReasonUnproven, "did not prove that it knows this side's token"},
		"no token against one":   {open, withToken, tunnel.ReasonRefused, "the dialler has none: give it the system's"},
		"a token against none":   {withToken, open, tunnel.ReasonUnproven, "RAYLINK_OPEN=1"},
		"a token, begun with it": {tunnel.Config{Logger: silent(), Token: token + "r"}, withToken, tunnel.ReasonUnproven, "RAYLINK_TOKEN"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := tamperedHandshake(t, tunnel.Hello{Host: "server"}, test.client, test.server, unchanged)
				requireReason(t, o.client, test.reason, connect.CodeUnauthenticated, test.text)
				requireReason(t, o.server, test.reason, connect.CodeUnauthenticated, test.text)
				require.False(t, o.admitted)
			})
		})
	}
}

// TestNoProofWithoutTokens: neither side has a token.
func TestNoProofWithoutTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := tunnel.Config{Logger: silent()}
		o := tamperedHandshake(t, tunnel.Hello{Host: "server"}, open, open, unchanged)
		require.NoError(t, o.client)
		require.NoError(t, o.server)
	})
}

// TestTamperingIsDetected changes each byte of each handshake frame: host ids, limits, versions,
// nonces and proofs.
func TestTamperingIsDetected(t *testing.T) {
	hi := tunnel.Hello{Host: "server", Client: "client", Build: "1"}
	var frames [][]byte
	synctest.Test(t, func(t *testing.T) {
		o := tamperedHandshake(t, hi, withToken, withToken, func(_ bool, frame []byte) []byte {
			frames = append(frames, frame)
			return frame
		})
		require.NoError(t, o.client)
	})
	require.Len(t, frames, 5) // HELLO, WELCOME, two proofs, and ADMIT
	for which, original := range frames {
		for i := range original {
			synctest.Test(t, func(t *testing.T) {
				count := 0
				o := tamperedHandshake(t, hi, withToken, withToken, func(_ bool, frame []byte) []byte {
					if count++; count == which+1 {
						frame = bytes.Clone(frame)
						frame[i] ^= byte(1 << (i % 8))
					}
					return frame
				})
				require.Error(t, o.client, "frame %d with byte %d changed", which, i)
				if which < 4 { // ADMIT is the accepting side's final frame
					require.Error(t, o.server, "frame %d with byte %d changed", which, i)
					require.False(t, o.admitted)
				}
			})
		}
	}
}

// TestDowngradeIsDetected removes, in transit, the statement that a side has a token: both sides
// still require the proof.
func TestDowngradeIsDetected(t *testing.T) {
	for _, kind := range []int{hello, welcome} {
		t.Run(strconv.Itoa(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := tamperedHandshake(t, tunnel.Hello{}, withToken, withToken, func(_ bool, frame []byte) []byte {
					if kindOf(frame) == kind {
						return bytes.ReplaceAll(frame, []byte{0xb8, 0x01, 0x01}, []byte{0xb8, 0x01, 0x00})
					}
					return frame
				})
				require.Error(t, o.client)
				require.Error(t, o.server)
				require.False(t, o.admitted)
			})
		})
	}
}

// accepting runs an accepting side against a dialler that play implements.
func accepting(t *testing.T, cfg tunnel.Config, play func(p *peer)) (admitted bool, err error) {
	t.Helper()
	near, far := memnet.Pipe()
	ch := make(chan error, 1)
	go func() {
		c, err := tunnel.Accept(context.Background(), far, cfg, self, func(tunnel.Hello) (tunnel.Handler, error) {
			admitted = true
			return echo(), nil
		})
		if err == nil {
			_ = c.Close()
		}
		ch <- err
	}()
	play(&peer{t: t, nc: near})
	err = <-ch
	_ = near.Close()
	return admitted, err
}

// recorded returns what each side of a successful handshake sends.
func recorded(t *testing.T) (sent, answered []byte) {
	t.Helper()
	o := tamperedHandshake(t, tunnel.Hello{Client: "client"}, withToken, withToken, unchanged)
	require.NoError(t, o.client)
	return o.sent, o.answered
}

func TestReflectedProofIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent, _ := recorded(t)
		admitted, err := accepting(t, withToken, func(p *peer) {
			p.write(sent[:len(tunnel.Preface)+tunnel.FrameBytes(sent[len(tunnel.Preface):])])
			require.Equal(t, welcome, kindOf(p.next()))
			theirs := p.next()
			require.Equal(t, proof, kindOf(theirs))
			p.write(theirs)
			require.Equal(t, refuse, kindOf(p.next()))
		})
		requireReason(t, err, tunnel.ReasonRefused, connect.CodeUnauthenticated, "RAYLINK_TOKEN")
		require.False(t, admitted)
	})
}

func TestReplayedHandshakeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent, answered := recorded(t)
		admitted, err := accepting(t, withToken, func(p *peer) { p.write(sent) })
		requireReason(t, err, tunnel.ReasonRefused, connect.CodeUnauthenticated, "the dialler's token is not this side's")
		require.False(t, admitted)

		near, far := memnet.Pipe()
		_, err = far.Write(answered)
		require.NoError(t, err)
		_, err = tunnel.Dial(t.Context(), near, tunnel.Hello{Client: "client"}, withToken)
		requireReason(t, err, tunnel.ReasonUnproven, connect.CodeUnauthenticated, "did not prove")
	})
}

// TestImpostorLearnsNothing has a process without the token take over a host's address: it receives
// a nonce and ids, and no proof.
func TestImpostorLearnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, answered := recorded(t)
		near, far := memnet.Pipe()
		failed := make(chan error, 1)
		go func() {
			_, err := tunnel.Dial(context.Background(), near, tunnel.Hello{Client: "client"}, withToken)
			failed <- err
		}()
		p := &peer{t: t, nc: far}
		require.Equal(t, hello, kindOf(p.next()))
		p.write(answered)
		require.Equal(t, refuse, kindOf(p.next()))
		_, err := p.read()
		require.ErrorIs(t, err, io.EOF)
		requireReason(t, <-failed, tunnel.ReasonUnproven, connect.CodeUnauthenticated, "another process has taken the address")
	})
}

// TestProofForAnotherHostIsRefused relays a dialler that expects one host to another host of the
// same system.
func TestProofForAnotherHostIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// HELLO is modified in transit so that the other host accepts it.
		o := tamperedHandshake(t, tunnel.Hello{Host: "sErver"}, withToken, withToken, func(fromDialler bool, frame []byte) []byte {
			if fromDialler {
				return bytes.ReplaceAll(frame, []byte("sErver"), []byte("server"))
			}
			return frame
		})
		requireReason(t, o.client, tunnel.ReasonWrongHost, connect.CodeFailedPrecondition, "expected host sErver, this is server")
		require.False(t, o.admitted)
		// The answer is modified back.
		o = tamperedHandshake(t, tunnel.Hello{Host: "sErver"}, withToken, withToken, func(fromDialler bool, frame []byte) []byte {
			if fromDialler {
				return bytes.ReplaceAll(frame, []byte("sErver"), []byte("server"))
			}
			return bytes.ReplaceAll(frame, []byte("server"), []byte("sErver"))
		})
		requireReason(t, o.client, tunnel.ReasonUnproven, connect.CodeUnauthenticated, "did not prove")
		require.False(t, o.admitted)
	})
}

// TestDialledOwnHostIsRefused: a dialler that looks for Brain reaches its own host, whose address
// another process had taken from Brain.
func TestDialledOwnHostIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := tamperedHandshake(t, tunnel.Hello{Client: "server"}, withToken, withToken, unchanged)
		requireReason(t, o.client, tunnel.ReasonWrongHost, connect.CodeFailedPrecondition, "leads to this host itself")
	})
}

// handshakeFrameOf encodes a handshake frame from pairs of a field and a number or text.
func handshakeFrameOf(kind byte, fields ...any) []byte {
	var body []byte
	for i := 0; i < len(fields); i += 2 {
		field, _ := fields[i].(int)
		switch v := fields[i+1].(type) {
		case int:
			body = binary.AppendUvarint(binary.AppendUvarint(body, uint64(field)<<3), uint64(v))
		case string:
			body = append(binary.AppendUvarint(binary.AppendUvarint(body, uint64(field)<<3|2), uint64(len(v))), v...)
		}
	}
	head := []byte{byte(len(body)), byte(len(body) >> 8), 0, kind, 0, 0, 0, 0}
	return append(head, body...)
}

// TestPeersOfVersion1AreRefused, in both directions, with the reason.
func TestPeersOfVersion1AreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := accepting(t, withToken, func(p *peer) {
			p.write([]byte(tunnel.Preface), handshakeFrameOf(hello, 1, 1, 2, 1, 3, token, 9, 1<<20, 10, 1<<16))
			answer := p.next()
			assert.Equal(t, refuse, kindOf(answer))
			assert.Contains(t, string(answer), "no common version: the dialler speaks 1 to 1, this side 2 to 2")
		})
		requireReason(t, err, tunnel.ReasonVersion, connect.CodeFailedPrecondition, "no common version")

		near, far := memnet.Pipe()
		_, err = far.Write(append([]byte(tunnel.Preface), handshakeFrameOf(welcome, 2, 1, 4, "server")...))
		require.NoError(t, err)
		_, err = tunnel.Dial(t.Context(), near, tunnel.Hello{}, withToken)
		requireReason(t, err, tunnel.ReasonVersion, connect.CodeFailedPrecondition, "the server chose version 1, this side speaks 2 to 2")
	})
}

// TestRefusalByUnprovenPeerIsMarked, since any process could have written its text.
func TestRefusalByUnprovenPeerIsMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := memnet.Pipe()
		_, err := far.Write(append([]byte(tunnel.Preface), handshakeFrameOf(refuse, 17, 16, 18, "send your token to me", 19, 5)...))
		require.NoError(t, err)
		_, err = tunnel.Dial(t.Context(), near, tunnel.Hello{}, withToken)
		requireReason(t, err, tunnel.ReasonRefused, connect.CodeUnauthenticated,
			"the peer, which has not proven that it knows the token, refuses: send your token to me")
	})
}

// TestNonceOfWrongLengthIsRefused, since a short one could be guessed.
func TestNonceOfWrongLengthIsRefused(t *testing.T) {
	for _, n := range []int{0, 1, tunnel.NonceBytes - 1, tunnel.NonceBytes + 1} {
		synctest.Test(t, func(t *testing.T) {
			_, err := accepting(t, withToken, func(p *peer) {
				p.write([]byte(tunnel.Preface), handshakeFrameOf(hello, 1, 2, 2, 2, 23, 1, 22, strings.Repeat("n", n)))
				assert.Equal(t, refuse, kindOf(p.next()))
			})
			requireReason(t, err, tunnel.ReasonNotAPeer, connect.CodeFailedPrecondition, "a nonce of")
		})
	}
}

// TestOtherProtocolAfterHandshake passes on the connection, with all bytes that were read, once
// both sides have proven themselves.
func TestOtherProtocolAfterHandshake(t *testing.T) {
	near, far := sockets(t)
	served := make(chan error, 1)
	go func() {
		conn, raw, err := tunnel.AcceptAny(context.Background(), far, withToken, self, func(h tunnel.Hello) (tunnel.Handler, error) {
			if h.Protocol != tunnel.ProtocolHTTP || h.Client != "client" {
				return nil, errors.New("unexpected Hello")
			}
			return nil, nil //nolint:nilnil // HTTP needs no handler of the tunnel
		})
		if err == nil && conn != nil {
			err = errors.New("got a tunnel instead of another protocol")
		}
		if err == nil {
			_, err = io.Copy(raw, raw)
			err = errors.Join(err, raw.Close())
		}
		served <- err
	}()
	raw, found, err := tunnel.DialRaw(t.Context(), near, tunnel.Hello{Client: "client", Protocol: tunnel.ProtocolHTTP}, withToken)
	require.NoError(t, err)
	require.Equal(t, self, found)
	sent := bytes.Repeat([]byte("GET / "), 10_000)
	go func() { _, _ = raw.Write(sent) }()
	received := make([]byte, len(sent))
	_, err = io.ReadFull(raw, received)
	require.NoError(t, err)
	require.Equal(t, sent, received)
	require.NoError(t, raw.Close())
	require.NoError(t, <-served)
}

func TestUnknownProtocolIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := memnet.Pipe()
		ch := make(chan error, 1)
		go func() {
			_, err := tunnel.Accept(context.Background(), far, withToken, self, admit(echo()))
			ch <- err
		}()
		_, _, err := tunnel.DialRaw(t.Context(), near, tunnel.Hello{Protocol: "smtp"}, withToken)
		requireReason(t, err, tunnel.ReasonRefused, connect.CodeUnimplemented, `this side does not serve the protocol "smtp"`)
		requireReason(t, <-ch, tunnel.ReasonRefused, connect.CodeUnimplemented, `"smtp"`)
	})
}

// FuzzHandshakeMessage parses arbitrary bytes as the body of a handshake frame.
func FuzzHandshakeMessage(f *testing.F) {
	for _, seed := range [][]byte{handshakeFrameOf(hello, 1, 2, 2, 2, 22, "n"), handshakeFrameOf(refuse, 17, 5, 18, "no", 1<<20, "?")} {
		f.Add(seed[tunnel.HeaderBytes:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if err := tunnel.ParseHandshakeMessage(body); err != nil {
			require.ErrorIs(t, err, tunnel.ErrProtocol)
		}
	})
}
