package tunnel_test

import (
	"bytes"
	"runtime/debug"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// TestReceivedMessagesOfStreamsStay keeps messages of streams, large ones and small ones, while
// others arrive: they are not decoded into memory that is used again. Whether a message will stay
// in the buffer that received it is predicted by the one before: there is none for the first of a
// stream, which therefore has a buffer of the pools.
func TestReceivedMessagesOfStreamsStay(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which empties the pools
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, echo())
		sizes := []int{100 << 10, 10, 40 << 10, 1 << 20, 9 << 10, 300 << 10, 33 << 10, 2 << 20}
		type message struct {
			received      *wrapperspb.BytesValue
			round, number int
		}
		var kept []message
		content := func(m message) []byte {
			return bytes.Repeat([]byte{byte(m.round), byte(m.number)}, sizes[m.number]/2)
		}
		for round := range 3 * len(sizes) {
			stream := bidi(t.Context(), t, s.client)
			for i := range 3 {
				m := message{&wrapperspb.BytesValue{}, round, (round + i) % len(sizes)}
				require.NoError(t, stream.Send(wrapperspb.Bytes(content(m))))
				require.NoError(t, stream.Receive(m.received))
				kept = append(kept, m)
			}
			require.NoError(t, stream.Close())
		}
		for _, m := range kept {
			require.True(t, bytes.Equal(content(m), m.received.GetValue()), "a message of %d bytes of stream %d", sizes[m.number], m.round)
		}
	})
}
