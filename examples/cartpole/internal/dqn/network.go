package dqn

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// Limits of a network's size, so that untrusted input can't cause large allocations.
const (
	maxLayers = 8
	maxWidth  = 4096
)

// ErrShape means that a network's widths are invalid.
var ErrShape = errors.New("a network has 2 to 9 widths, each from 1 to 4096")

// Network is a multilayer perceptron: affine layers with rectifiers in between. All parameters are
// in one array, so that operations on all of them (Adam, averaging, serialization) are independent
// of the layers.
type Network struct {
	widths []int
	params []float32
	layers []layer
}

// layer is a view of the parameters: weights (in x out, row-major) and biases.
type layer struct {
	in, out int
	weights blas32.General
	biases  []float32
}

// NewNetwork returns a network of the given widths (inputs, hidden layers, outputs) with random
// weights.
func NewNetwork(rng *rand.Rand, widths ...int) (*Network, error) {
	n, err := emptyNetwork(widths)
	if err != nil {
		return nil, err
	}
	for _, l := range n.layers {
		// Uniform within 1/sqrt(inputs), like PyTorch's linear layers.
		bound := 1 / math.Sqrt(float64(l.in))
		for _, values := range [][]float32{l.weights.Data, l.biases} {
			for i := range values {
				values[i] = float32(bound * (2*rng.Float64() - 1))
			}
		}
	}
	return n, nil
}

// checkWidths validates the widths, and returns the number of parameters.
func checkWidths(widths []int) (params int, err error) {
	if len(widths) < 2 || len(widths) > maxLayers+1 {
		return 0, fmt.Errorf("%w: got %d of them", ErrShape, len(widths))
	}
	for i, w := range widths {
		if w < 1 || w > maxWidth {
			return 0, fmt.Errorf("%w: got %v", ErrShape, widths)
		}
		if i > 0 {
			params += (widths[i-1] + 1) * w
		}
	}
	return params, nil
}

func emptyNetwork(widths []int) (*Network, error) {
	params, err := checkWidths(widths)
	if err != nil {
		return nil, err
	}
	return bind(slices.Clone(widths), make([]float32, params)), nil
}

// bind creates the layers of a network as views of params, which must have the right length.
func bind(widths []int, params []float32) *Network {
	n := &Network{widths: widths, params: params}
	take := func(count int) []float32 {
		taken := params[:count:count]
		params = params[count:]
		return taken
	}
	for i, out := range widths[1:] {
		in := widths[i]
		weights := blas32.General{Rows: in, Cols: out, Stride: out, Data: take(in * out)}
		n.layers = append(n.layers, layer{in: in, out: out, weights: weights, biases: take(out)})
	}
	return n
}

// Clone returns a deep copy.
func (n *Network) Clone() *Network { return bind(slices.Clone(n.widths), slices.Clone(n.params)) }

// Inputs returns the number of inputs.
func (n *Network) Inputs() int { return n.widths[0] }

// Outputs returns the number of outputs.
func (n *Network) Outputs() int { return n.widths[len(n.widths)-1] }

// activations are the intermediate results of a forward pass: the input, and each layer's output
// after its rectifier. They are reused between passes, and owned by the caller of the pass.
type activations struct {
	rows   int
	values []blas32.General
}

// fit resizes the activations for a number of rows.
func (a *activations) fit(widths []int, rows int) {
	a.rows = rows
	a.values = slices.Grow(a.values[:0], len(widths))[:len(widths)]
	for i, w := range widths {
		data := slices.Grow(a.values[i].Data[:0], rows*w)[:rows*w]
		a.values[i] = blas32.General{Rows: rows, Cols: w, Stride: w, Data: data}
	}
}

// output returns the output of the last pass, row by row. It is valid until the next one.
func (a *activations) output() []float32 { return a.values[len(a.values)-1].Data }

// forward runs rows of input through the network.
func (n *Network) forward(a *activations, input []float32) []float32 {
	a.fit(n.widths, len(input)/n.Inputs())
	copy(a.values[0].Data, input)
	for i, l := range n.layers {
		out := a.values[i+1]
		for row := range a.rows {
			copy(out.Data[row*l.out:], l.biases)
		}
		blas32.Gemm(blas.NoTrans, blas.NoTrans, 1, a.values[i], l.weights, 1, out)
		if i < len(n.layers)-1 {
			for j, v := range out.Data {
				out.Data[j] = max(v, 0)
			}
		}
	}
	return a.output()
}

// backward computes the gradient of the loss with respect to the parameters from that with respect
// to the outputs of the forward pass a. It leaves the gradients with respect to each layer's output
// in scratch.
func (n *Network) backward(a, scratch *activations, byOutput []float32, gradient *Network) {
	scratch.fit(n.widths, a.rows)
	copy(scratch.output(), byOutput)
	for i, l := range slices.Backward(n.layers) {
		into, delta := gradient.layers[i], scratch.values[i+1]
		blas32.Gemm(blas.Trans, blas.NoTrans, 1, a.values[i], delta, 0, into.weights)
		clear(into.biases)
		for row := range a.rows {
			for j, v := range delta.Data[row*l.out : (row+1)*l.out] {
				into.biases[j] += v
			}
		}
		if i == 0 {
			return
		}
		before := scratch.values[i]
		blas32.Gemm(blas.NoTrans, blas.Trans, 1, delta, l.weights, 0, before)
		for j, v := range a.values[i].Data {
			if v <= 0 {
				before.Data[j] = 0
			}
		}
	}
}
