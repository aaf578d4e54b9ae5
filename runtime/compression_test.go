package runtime

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/internal/nodeurl"
)

func compressed(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func decompressed(t *testing.T, data []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	return out
}

// TestResponsesAreCompressedWhereItSaves echoes messages for callers on this machine and on others.
func TestResponsesAreCompressedWhereItSaves(t *testing.T) {
	server := connect.NewServer()
	server.Register(connect.Method{
		Spec: connect.Spec{StreamType: connect.StreamTypeUnary, Procedure: "/t.T/Echo"},
		Handler: func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
			var m wrapperspb.BytesValue
			if err := stream.Receive(&m); err != nil {
				return err
			}
			return stream.Send(&m)
		},
	})
	h := &Host{options: Options{InheritedOptions: InheritedOptions{MaxMessage: 64 << 20}}, guard: &webGuard{}}
	s := newResponder(h, server)
	echo := func(body []byte, edit func(*http.Request)) (answer []byte, encoding string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/t.T/Echo", bytes.NewReader(body))
		r.RemoteAddr = "192.0.2.1:1"
		r.Header.Set("Content-Type", "application/proto")
		r.Header.Set("Accept-Encoding", "gzip, deflate, br")
		if edit != nil {
			edit(r)
		}
		out := httptest.NewRecorder()
		s.handler(r).ServeHTTP(out, r)
		require.Equal(t, http.StatusOK, out.Code, out.Body.String())
		return out.Body.Bytes(), out.Header().Get("Content-Encoding")
	}
	message := func(value []byte) []byte {
		// A bytes field that is longer than 127 and shorter than 2^28.
		size := len(value)
		return append([]byte{0x0a, byte(size) | 0x80, byte(size>>7) | 0x80, byte(size>>14) | 0x80, byte(size >> 21)}, value...)
	}
	text := message([]byte(strings.Repeat("all work and no play ", 10_000)))
	small := message([]byte(strings.Repeat("x", 1000)))
	noise := make([]byte, 1<<20)
	src := rand.NewChaCha8([32]byte{1})
	_, err := src.Read(noise)
	require.NoError(t, err)
	noise = message(noise)

	here := func(r *http.Request) { r.RemoteAddr = "127.0.0.1:1" }
	unix := func(r *http.Request) { r.RemoteAddr = "@" }
	same := func(r *http.Request) {
		*r = *r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 2}))
	}
	gateway := func(r *http.Request) {
		here(r)
		r.Header.Set(nodeurl.ViaHeader, "id")
	}
	none := func(r *http.Request) { r.Header.Set("Accept-Encoding", "identity") }
	sends := func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }

	for _, on := range []bool{false, true} {
		h.guard.compression.Store(on)
		for name, edit := range map[string]func(*http.Request){
			"elsewhere": nil, "loopback": here, "Unix": unix, "this machine's address": same, "by the gateway": gateway, "accepts none": none,
		} {
			answer, encoding := echo(text, edit)
			if want := on && (name == "elsewhere" || name == "by the gateway"); want {
				assert.Equal(t, "gzip", encoding, name)
				assert.Less(t, len(answer), len(text)/10, name)
				answer = decompressed(t, answer)
			} else {
				assert.Empty(t, encoding, "%s, %t", name, on)
			}
			require.True(t, len(answer) > 1000 && bytes.HasSuffix(answer, text[5:]), name)
		}
		answer, encoding := echo(compressed(t, text), sends)
		if on {
			answer = decompressed(t, answer)
		} else {
			assert.Empty(t, encoding, "a request that is compressed asks for no more than one that accepts")
		}
		assert.True(t, bytes.HasSuffix(answer, text[5:]))
		_, encoding = echo(small, nil)
		assert.Empty(t, encoding, "it fits into a packet")
	}
	answer, _ := echo(noise, nil)
	assert.Less(t, len(answer), len(noise)+len(noise)/1000, "a message that does not shrink is stored")
	assert.Greater(t, len(answer), len(noise)-len(noise)/1000)
	assert.True(t, bytes.HasSuffix(decompressed(t, answer), noise[5:]))
}
