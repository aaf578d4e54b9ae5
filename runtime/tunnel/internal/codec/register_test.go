package codec

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestRegisteredDecoderMayLeaveAMessageToProtobuf(t *testing.T) {
	Register((*wrapperspb.UInt32Value)(nil), func(b []byte, msg proto.Message) bool {
		if len(b) != 2 {
			return false
		}
		msg.(*wrapperspb.UInt32Value).Value = 1000 + uint32(b[1])
		return true
	})
	defer clear(decoders)
	for sent, want := range map[uint32]uint32{0: 0, 5: 1005, 300: 300} {
		b, err := proto.Marshal(wrapperspb.UInt32(sent))
		require.NoError(t, err)
		got := new(wrapperspb.UInt32Value)
		require.NoError(t, Unmarshal(b, got))
		require.Equal(t, want, got.GetValue())
		other := new(wrapperspb.UInt64Value)
		require.NoError(t, Unmarshal(b, other))
		require.EqualValues(t, sent, other.GetValue(), "of another type")
	}
	require.Error(t, Unmarshal([]byte{0xff}, new(wrapperspb.UInt32Value)))
}
