package dqn

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
	"github.com/raylink/raylink/services/ps/safetensors"
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
		"nothing":   func([]byte) []byte { return nil },
		"too short": func(data []byte) []byte { return data[:len(data)-1] },
		"too long":  func(data []byte) []byte { return append(data, 0) },
	} {
		data, err := n.MarshalBinary()
		require.NoError(t, err)
		_, err = ParseNetwork(spoil(data))
		require.ErrorIs(t, err, ErrNetwork, name)
		require.ErrorIs(t, err, safetensors.ErrFormat, name)
	}
	const w0, b0, w1, b1 = "layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"
	for name, spoil := range map[string]func(tensors map[string]safetensors.Tensor){
		"no layers":      func(tensors map[string]safetensors.Tensor) { clear(tensors) },
		"no biases":      func(tensors map[string]safetensors.Tensor) { delete(tensors, b1) },
		"no first layer": func(tensors map[string]safetensors.Tensor) { delete(tensors, w0); delete(tensors, b0) },
		"a foreign name": func(tensors map[string]safetensors.Tensor) {
			tensors["layer2.weight"] = tensors[w1]
			delete(tensors, w1)
		},
		"another type": func(tensors map[string]safetensors.Tensor) { tensors[b0] = like(tensors[b0], "I32", 3) },
		"another rank": func(tensors map[string]safetensors.Tensor) {
			tensors[w0] = like(tensors[w0], "F32", pole.Features, 3, 1)
		},
		"no rank":         func(tensors map[string]safetensors.Tensor) { tensors[b0] = like(tensors[b0], "F32", 3, 1) },
		"too many biases": func(tensors map[string]safetensors.Tensor) { tensors[b0] = like(tensors[b0], "F32", 4) },
		"other inputs":    func(tensors map[string]safetensors.Tensor) { tensors[w1] = like(tensors[w1], "F32", 4, pole.Actions) },
		"a width of zero": func(tensors map[string]safetensors.Tensor) { tensors[w0] = like(tensors[w0], "F32", 0, 3) },
		"a giant width":   func(tensors map[string]safetensors.Tensor) { tensors[w0] = like(tensors[w0], "F32", maxWidth+1, 3) },
		"many layers": func(tensors map[string]safetensors.Tensor) {
			for i := range maxLayers + 1 {
				tensors[fmt.Sprintf(weightName, i)] = like(tensors[w0], "F32", 1, 1)
				tensors[fmt.Sprintf(biasName, i)] = like(tensors[b0], "F32", 1)
			}
		},
		"not a number":    func(tensors map[string]safetensors.Tensor) { putLast(tensors[b1].Data, float32(math.NaN())) },
		"an infinite one": func(tensors map[string]safetensors.Tensor) { putLast(tensors[w0].Data, float32(math.Inf(1))) },
	} {
		tensors := make(map[string]safetensors.Tensor)
		data, err := n.MarshalBinary()
		require.NoError(t, err)
		file, err := safetensors.Parse(data)
		require.NoError(t, err)
		for _, tensor := range file.Tensors() {
			tensors[tensor.Name] = tensor
		}
		spoil(tensors)
		var spoiled []safetensors.Tensor
		for name, tensor := range tensors {
			tensor.Name = name
			spoiled = append(spoiled, tensor)
		}
		data, err = safetensors.Marshal(spoiled, nil)
		require.NoError(t, err, name)
		_, err = ParseNetwork(data)
		require.ErrorIs(t, err, ErrNetwork, name)
	}
}

// like returns a tensor with another shape.
func like(t safetensors.Tensor, dtype string, shape ...int) safetensors.Tensor {
	size := paramSize
	for _, n := range shape {
		size *= n
	}
	return safetensors.Tensor{Name: t.Name, DType: dtype, Shape: shape, Data: make([]byte, size)}
}

func putLast(data []byte, v float32) {
	binary.LittleEndian.PutUint32(data[len(data)-paramSize:], math.Float32bits(v))
}

// Others use the content by what its metadata and names say.
func TestSerializedNetworkComputesWhatItSays(t *testing.T) {
	t.Parallel()
	n, err := NewNetwork(seed.Stream(1, "network", 0), pole.Features, 5, 3, pole.Actions)
	require.NoError(t, err)
	data, err := n.MarshalBinary()
	require.NoError(t, err)
	file, err := safetensors.Parse(data)
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"}, file.Names())
	assert.Equal(t, about, file.Metadata())
	assert.Equal(t, "observation * [1, 0.5, 5, 0.5]", about["input"])
	observation := []float32{0.1, -0.2, 0.03, 0.4}
	x := []float32{0.1, -0.1, 0.15, 0.2}
	for i := range 3 {
		weight, err := file.Tensor(fmt.Sprintf("layer%d.weight", i))
		require.NoError(t, err)
		bias, err := file.Tensor(fmt.Sprintf("layer%d.bias", i))
		require.NoError(t, err)
		out := make([]float32, weight.Shape[1])
		for j := range out {
			for k := range x {
				out[j] += x[k] * math.Float32frombits(binary.LittleEndian.Uint32(weight.Data[4*(k*len(out)+j):]))
			}
			out[j] += math.Float32frombits(binary.LittleEndian.Uint32(bias.Data[4*j:]))
			if i < 2 {
				out[j] = max(out[j], 0)
			}
		}
		x = out
	}
	assert.InDeltaSlice(t, n.forward(new(activations), appendFeatures(nil, observation)), x, 1e-5)
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
		second, err := ParseNetwork(again)
		require.NoError(t, err)
		assert.Equal(t, n, second, "parsing and serializing is lossless")
	})
}
