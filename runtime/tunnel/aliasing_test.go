package tunnel_test

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// TestReceivedMessagesOfStreamsStay keeps messages of a stream, large ones and small ones, while
// others arrive: they are not decoded into memory that is used again.
func TestReceivedMessagesOfStreamsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, echo())
		stream := bidi(t.Context(), t, s.client)
		sizes := []int{100 << 10, 10, 40 << 10, 3 << 20, 9 << 10, 300 << 10, 33 << 10, 5 << 20}
		kept := make([]*wrapperspb.BytesValue, 0, 3*len(sizes))
		for range 3 {
			for i, size := range sizes {
				content := bytes.Repeat([]byte{byte(len(kept)), byte(i)}, size/2)
				require.NoError(t, stream.Send(wrapperspb.Bytes(content)))
				message := &wrapperspb.BytesValue{}
				require.NoError(t, stream.Receive(message))
				kept = append(kept, message)
			}
		}
		for i, message := range kept {
			size := sizes[i%len(sizes)]
			require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(i), byte(i % len(sizes))}, size/2), message.GetValue()), "message %d", i)
		}
		require.NoError(t, stream.Close())
	})
}
