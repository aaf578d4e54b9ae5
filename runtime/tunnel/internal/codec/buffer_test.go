package codec

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestBuffersHaveRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 2<<largestClass).Draw(t, "bytes")
		b := NewBuffer(n)
		require.Empty(t, b.B)
		require.GreaterOrEqual(t, cap(b.B), max(n, MinBuffer))
		b.Free()
		s := GetBytes(n)
		require.Empty(t, s)
		require.GreaterOrEqual(t, cap(s), max(n, MinBuffer))
		PutBytes(s)
	})
}

// TestExtendPreservesContent: at first little is allocated for a size that is only announced.
func TestExtendPreservesContent(t *testing.T) {
	const whole = 1 << 20
	b := NewBuffer(MinBuffer)
	var want []byte
	for i := 0; len(want) < whole; i++ {
		piece := make([]byte, min(10_000, whole-len(want)))
		markAll(piece, byte(i))
		want = append(want, piece...)
		copy(b.Extend(len(piece), whole), piece)
		require.LessOrEqual(t, cap(b.B), max(2*len(want), MinBuffer)*2)
	}
	require.Equal(t, want, b.B)
	b.Free()
}

func TestSharedBufferIsFreedByItsLastHolder(t *testing.T) {
	b := NewBuffer(MinBuffer)
	b.B = append(b.B, "content"...)
	b.Cost, b.Excess = 1, 2
	require.False(t, b.Shared())
	require.Same(t, b, b.Share())
	require.True(t, b.Shared())
	b.Free()
	require.False(t, b.Shared())
	require.Equal(t, "content", string(b.B))
	require.Equal(t, 1, b.Cost)
	b.Free()
	require.Zero(t, b.Cost+b.Excess)
	var none *Buffer
	require.False(t, none.Shared())
	none.Free()
}
