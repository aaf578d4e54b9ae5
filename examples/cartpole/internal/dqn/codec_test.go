package dqn

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

func TestNetworkRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		widths := rapid.SliceOfN(rapid.IntRange(1, 20), 2, maxLayers+1).Draw(t, "widths")
		sent, err := NewNetwork(seed.Stream(rapid.Uint64().Draw(t, "seed"), "network", 0), widths...)
		require.NoError(t, err)
		data, err := sent.MarshalBinary()
		require.NoError(t, err)
		arrived, err := ParseNetwork(data)
		require.NoError(t, err)
		assert.Equal(t, sent, arrived)
	})
}

func TestParseNetworkRejectsInvalidBytes(t *testing.T) {
	t.Parallel()
	n, err := NewNetwork(seed.Stream(1, "network", 0), pole.Features, 3, pole.Actions)
	require.NoError(t, err)
	for name, spoil := range map[string]func(data []byte) []byte{
		"nothing":          func([]byte) []byte { return nil },
		"another magic":    func(data []byte) []byte { data[0] = 'X'; return data },
		"another version":  func(data []byte) []byte { data[4]++; return data },
		"no widths":        func(data []byte) []byte { data[6] = 0; return data },
		"many widths":      func(data []byte) []byte { data[7] = 255; return data },
		"a giant width":    func(data []byte) []byte { binary.LittleEndian.PutUint32(data[8:], math.MaxUint32); return data },
		"a width of zero":  func(data []byte) []byte { binary.LittleEndian.PutUint32(data[8:], 0); return data },
		"another width":    func(data []byte) []byte { data[8]++; return data },
		"too short":        func(data []byte) []byte { return data[:len(data)-1] },
		"too long":         func(data []byte) []byte { return append(data, 0) },
		"only a header":    func(data []byte) []byte { return data[:headSize] },
		"not a number":     func(data []byte) []byte { return putLast(data, float32(math.NaN())) },
		"an infinite one":  func(data []byte) []byte { return putLast(data, float32(math.Inf(1))) },
		"widths truncated": func(data []byte) []byte { return data[:headSize+widthSize] },
	} {
		data, err := n.MarshalBinary()
		require.NoError(t, err)
		_, err = ParseNetwork(spoil(data))
		require.ErrorIs(t, err, ErrNetwork, name)
	}
}

func putLast(data []byte, v float32) []byte {
	binary.LittleEndian.PutUint32(data[len(data)-paramSize:], math.Float32bits(v))
	return data
}

func TestPolicyOfWrongSizeIsRejected(t *testing.T) {
	t.Parallel()
	n, err := NewNetwork(seed.Stream(1, "network", 0), pole.Features, 3, pole.Actions+1)
	require.NoError(t, err)
	data, err := n.MarshalBinary()
	require.NoError(t, err)
	_, err = ParsePolicy(data)
	require.ErrorIs(t, err, ErrShape)
}

func FuzzParseNetwork(f *testing.F) {
	for _, widths := range [][]int{{1, 1}, {pole.Features, 3, pole.Actions}} {
		n, err := NewNetwork(seed.Stream(1, "network", 0), widths...)
		require.NoError(f, err)
		data, err := n.MarshalBinary()
		require.NoError(f, err)
		f.Add(data)
		f.Add(data[:len(data)-1])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := ParseNetwork(data)
		if err != nil {
			require.ErrorIs(t, err, ErrNetwork)
			return
		}
		again, err := n.MarshalBinary()
		require.NoError(t, err)
		assert.Equal(t, data, again, "parsing and serializing is lossless")
	})
}
