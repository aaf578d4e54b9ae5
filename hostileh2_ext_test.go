package raylink_test

import (
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Types and flags of HTTP/2's frames.
const (
	h2Data         = 0x0
	h2Headers      = 0x1
	h2Priority     = 0x2
	h2ResetStream  = 0x3
	h2Settings     = 0x4
	h2Ping         = 0x6
	h2WindowUpdate = 0x8
	h2Continuation = 0x9
	h2EndStream    = 0x1
	h2EndHeaders   = 0x4
)

// h2Frame is a frame of HTTP/2.
func h2Frame(kind, flags byte, stream uint32, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return append(binary.BigEndian.AppendUint32(append(b, flags), stream), payload...)
}

// h2Fields encodes header fields without the dynamic table and Huffman coding.
func h2Fields(pairs ...string) (b []byte) {
	text := func(s string) {
		if len(s) < 0x7f {
			b = append(b, byte(len(s)))
		} else {
			b = binary.AppendUvarint(append(b, 0x7f), uint64(len(s)-0x7f))
		}
		b = append(b, s...)
	}
	for i := 0; i < len(pairs); i += 2 {
		b = append(b, 0)
		text(pairs[i])
		text(pairs[i+1])
	}
	return b
}

// h2Each makes frames for n streams.
func h2Each(n int, of func(stream uint32) []byte) (b []byte) {
	for i := range n {
		b = append(b, of(uint32(2*i+1))...)
	}
	return b
}

// h2Attacks are abuses of HTTP/2, by admitted and unadmitted peers, that read and that don't.
func h2Attacks() (all []attack) {
	const most = 24 * mib
	for _, admitted := range []bool{false, true} {
		for _, reads := range []bool{false, true} {
			if !admitted && !reads {
				continue // little is sent to it
			}
			for name, frames := range map[string]func(headers func(stream uint32, flags byte) []byte) []byte{
				"SETTINGS":      func(func(uint32, byte) []byte) []byte { return h2Frame(h2Settings, 0, 0) },
				"PING":          func(func(uint32, byte) []byte) []byte { return h2Frame(h2Ping, 0, 0, make([]byte, 8)...) },
				"PRIORITY":      func(func(uint32, byte) []byte) []byte { return h2Frame(h2Priority, 0, 3, 0, 0, 0, 0, 1) },
				"WINDOW_UPDATE": func(func(uint32, byte) []byte) []byte { return h2Frame(h2WindowUpdate, 0, 0, 0, 0, 0, 1) },
				"CONTINUATION": func(headers func(uint32, byte) []byte) []byte {
					field := h2Fields("x-"+strings.Repeat("n", 100), strings.Repeat("v", 8<<10))
					more := h2Frame(h2Continuation, 0, 1, field...)
					return append(headers(1, 0), []byte(strings.Repeat(string(more), 1000))...)
				},
				"empty CONTINUATION": func(headers func(uint32, byte) []byte) []byte {
					return append(headers(1, 0), []byte(strings.Repeat(string(h2Frame(h2Continuation, 0, 1)), 100_000))...)
				},
				"empty DATA": func(headers func(uint32, byte) []byte) []byte {
					return append(headers(1, h2EndHeaders), []byte(strings.Repeat(string(h2Frame(h2Data, 0, 1)), 100_000))...)
				},
				"rapid reset": func(headers func(uint32, byte) []byte) []byte {
					return h2Each(20_000, func(stream uint32) []byte {
						return append(headers(stream, h2EndHeaders), h2Frame(h2ResetStream, 0, stream, 0, 0, 0, 8)...)
					})
				},
				"streams that stay open": func(headers func(uint32, byte) []byte) []byte {
					return h2Each(20_000, func(stream uint32) []byte { return headers(stream, h2EndHeaders) })
				},
			} {
				title := "HTTP/2 flood of " + name
				if admitted {
					title += ", admitted"
				}
				if reads {
					title += ", read"
				}
				all = append(all, attack{name: title, most: most, do: func(t *testing.T, v *victim) func() {
					t.Helper()
					headers := func(stream uint32, flags byte) []byte {
						fields := []string{
							":method", "POST", ":scheme", "http", ":authority", "127.0.0.1", ":path", "/" + v.node + "/contract.v1.Probe/Echo",
							"content-type", "application/proto",
						}
						if admitted {
							fields = append(fields, "authorization", "Bearer "+hostileToken)
						}
						return h2Frame(h2Headers, flags, stream, h2Fields(fields...)...)
					}
					var conns connections
					nc := conns.dial(t, v)
					if reads {
						go func() { _, _ = io.Copy(io.Discard, nc) }()
					}
					_, err := io.WriteString(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+string(h2Frame(h2Settings, 0, 0)))
					require.NoError(t, err)
					if admitted { // by a call that is served
						push(nc, h2Each(1, func(uint32) []byte { return headers(1, h2EndHeaders|h2EndStream) }), 1)
					}
					piece := frames(func(stream uint32, flags byte) []byte {
						if admitted {
							stream += 2
						}
						return headers(stream, flags)
					})
					if admitted { // the frames after HEADERS are moved to the same stream
						piece = h2Shift(piece)
					}
					for len(piece) < 16<<10 {
						piece = append(piece, piece...)
					}
					push(nc, piece, 3*mib)
					return conns.close
				}})
			}
		}
	}
	return all
}

// h2Shift moves frames other than HEADERS to the stream of the HEADERS.
func h2Shift(frames []byte) []byte {
	for at := 0; at < len(frames); {
		length := int(frames[at])<<16 | int(frames[at+1])<<8 | int(frames[at+2])
		if kind, stream := frames[at+3], binary.BigEndian.Uint32(frames[at+5:]); stream != 0 && kind != h2Headers && kind != h2Priority {
			binary.BigEndian.PutUint32(frames[at+5:], stream+2)
		}
		at += 9 + length
	}
	return frames
}
