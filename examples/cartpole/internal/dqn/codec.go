package dqn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/raylink/raylink/services/ps/safetensors"
)

// A serialized network is safetensors content: for each layer, from 0 on, the tensors
// "layer0.weight" of shape [inputs, outputs] and "layer0.bias" of shape [outputs], both F32. So the
// parameter server can return single tensors of it, and Python can read the file of a saved one.
const (
	weightName = "layer%d.weight"
	biasName   = "layer%d.bias"
	paramType  = "F32"
	paramSize  = 4
)

// about says in each serialized network how to use it.
var about = map[string]string{ //nolint:gochecknoglobals // a table
	"input":  "observation * [1, 0.5, 5, 0.5]",
	"layers": "x @ weight + bias, and max(x, 0) between layers",
	"output": "a value for each action: push left, push right",
}

// ErrNetwork means that bytes are not a valid serialized network.
var ErrNetwork = errors.New("invalid network")

// MarshalBinary serializes the network. The error is always nil.
func (n *Network) MarshalBinary() ([]byte, error) {
	tensors := make([]safetensors.Tensor, 0, 2*len(n.layers))
	for i, l := range n.layers {
		tensors = append(tensors,
			safetensors.Tensor{Name: fmt.Sprintf(weightName, i), DType: paramType, Shape: []int{l.in, l.out}, Data: floatBytes(l.weights.Data)},
			safetensors.Tensor{Name: fmt.Sprintf(biasName, i), DType: paramType, Shape: []int{l.out}, Data: floatBytes(l.biases)},
		)
	}
	return safetensors.Marshal(tensors, about)
}

func floatBytes(values []float32) []byte {
	data := make([]byte, 0, paramSize*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return data
}

// ParseNetwork parses the result of [Network.MarshalBinary]. The input is untrusted: allocations
// are bounded by its length, and parameters that are not finite numbers are rejected. The result
// has a copy of the parameters.
func ParseNetwork(data []byte) (*Network, error) {
	file, err := safetensors.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNetwork, err)
	}
	n, err := readNetwork(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNetwork, err)
	}
	return n, nil
}

func readNetwork(file *safetensors.File) (*Network, error) {
	count := len(file.Names())
	if count == 0 || count%2 != 0 || count > 2*maxLayers {
		return nil, fmt.Errorf("it has %d tensors instead of 2 for each of 1 to %d layers", count, maxLayers)
	}
	weights, biases := make([]safetensors.Tensor, count/2), make([]safetensors.Tensor, count/2)
	var widths []int
	for i := range weights {
		var err error
		if weights[i], err = file.Tensor(fmt.Sprintf(weightName, i)); err != nil {
			return nil, err
		}
		if biases[i], err = file.Tensor(fmt.Sprintf(biasName, i)); err != nil {
			return nil, err
		}
		w, b := weights[i], biases[i]
		if w.DType != paramType || b.DType != paramType || len(w.Shape) != 2 || len(b.Shape) != 1 || w.Shape[1] != b.Shape[0] {
			return nil, fmt.Errorf("layer %d has weights %s%v and biases %s%v", i, w.DType, w.Shape, b.DType, b.Shape)
		}
		if i > 0 && w.Shape[0] != widths[i] {
			return nil, fmt.Errorf("layer %d has %d inputs, but the one before has %d outputs", i, w.Shape[0], widths[i])
		}
		if i == 0 {
			widths = append(widths, w.Shape[0])
		}
		widths = append(widths, w.Shape[1])
	}
	n, err := emptyNetwork(widths)
	if err != nil {
		return nil, err
	}
	for i, l := range n.layers {
		if err := errors.Join(readFloats(l.weights.Data, weights[i]), readFloats(l.biases, biases[i])); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// readFloats copies a tensor's elements, of which there are as many as values.
func readFloats(values []float32, t safetensors.Tensor) error {
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[paramSize*i:]))
		if v := float64(values[i]); math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("element %d of %q is not a finite number", i, t.Name)
		}
	}
	return nil
}

// ParsePolicy parses a network, and returns a policy that uses it if it has the right size for the
// task.
func ParsePolicy(data []byte) (*Policy, error) {
	network, err := ParseNetwork(data)
	if err != nil {
		return nil, err
	}
	return NewPolicy(network)
}
