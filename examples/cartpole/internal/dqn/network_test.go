package dqn

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

// Computed by hand: two inputs, two hidden units of which a rectifier zeroes one, one output.
func TestForwardByHand(t *testing.T) {
	t.Parallel()
	n, err := emptyNetwork([]int{2, 2, 1})
	require.NoError(t, err)
	copy(n.params, []float32{
		1, -1, // weights of the first input to the hidden units
		2, 1, // weights of the second
		0.5, 0, // hidden biases
		3, 5, // output weights
		-1, // output bias
	})
	var pass activations
	// Hidden: 1*1 + 2*2 + 0.5 = 5.5, and -1*1 + 1*2 = 1; with a larger first input: 7.5, and -1,
	// which the rectifier sets to 0.
	assert.Equal(t, []float32{3*5.5 + 5*1 - 1, 3*7.5 - 1}, n.forward(&pass, []float32{1, 2, 3, 2}))
	// Fewer rows afterwards, in the same memory.
	assert.Equal(t, []float32{3*7.5 - 1}, n.forward(&pass, []float32{3, 2}))
}

// The gradient must match finite differences. The loss is a random weighting of the outputs: it is
// linear, so that only the network is nonlinear.
func TestGradientMatchesFiniteDifferences(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rng := seed.Stream(rapid.Uint64().Draw(t, "seed"), "gradient", 0)
		widths := rapid.SliceOfN(rapid.IntRange(1, 6), 2, 4).Draw(t, "widths")
		rows := rapid.IntRange(1, 5).Draw(t, "rows")
		n, err := NewNetwork(rng, widths...)
		require.NoError(t, err)
		random := func(count int) []float32 {
			values := make([]float32, count)
			for i := range values {
				values[i] = float32(rng.NormFloat64())
			}
			return values
		}
		input, weights := random(rows*n.Inputs()), random(rows*n.Outputs())

		var pass, scratch activations
		gradient := n.Clone()
		n.forward(&pass, input)
		n.backward(&pass, &scratch, weights, gradient)

		loss := func() (sum float64, signs []bool) {
			var pass activations
			for i, v := range n.forward(&pass, input) {
				sum += float64(v) * float64(weights[i])
			}
			for _, values := range pass.values[1 : len(pass.values)-1] {
				for _, v := range values.Data {
					signs = append(signs, v > 0)
				}
			}
			return sum, signs
		}
		const small = 1.0 / 128
		for i := range n.params {
			was := n.params[i]
			n.params[i] = was + small
			above, bent := loss()
			n.params[i] = was - small
			below, bent2 := loss()
			n.params[i] = was
			if !slices.Equal(bent, bent2) {
				continue // not differentiable in between
			}
			want := (above - below) / (2 * small)
			assert.InDelta(t, want, gradient.params[i], 1e-2*(1+math.Abs(want)), "parameter %d of %v", i, widths)
		}
	})
}

func TestInvalidShapes(t *testing.T) {
	t.Parallel()
	rng := seed.Stream(1, "network", 0)
	for _, widths := range [][]int{nil, {4}, {4, 0}, {4, -1, 2}, {4, maxWidth + 1}, make([]int, maxLayers+2)} {
		_, err := NewNetwork(rng, widths...)
		require.ErrorIs(t, err, ErrShape, "%v", widths)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	t.Parallel()
	n, err := NewNetwork(seed.Stream(1, "network", 0), 4, 3, 2)
	require.NoError(t, err)
	c := n.Clone()
	assert.Equal(t, n, c)
	n.layers[0].weights.Data[0]++
	n.widths[0]++
	assert.NotEqual(t, n.params, c.params)
	assert.Equal(t, 4, c.Inputs())
}

// On a quadratic bowl Adam's first step has the length of the rate in each direction, and it finds
// the minimum.
func TestAdamFindsMinimum(t *testing.T) {
	t.Parallel()
	params, gradient := []float32{3, -2}, make([]float32, 2)
	a := newAdam(0.05, 2)
	for step := range 500 {
		for i, v := range params {
			gradient[i] = 2 * v
		}
		a.step(params, gradient)
		if step == 0 {
			assert.InDeltaSlice(t, []float32{2.95, -1.95}, params, 1e-4)
		}
	}
	assert.InDeltaSlice(t, []float32{0, 0}, params, 1e-2)
}

func TestClipKeepsDirection(t *testing.T) {
	t.Parallel()
	long, short := []float32{30, -40}, []float32{3, -4}
	clip(long, 5)
	clip(short, 5)
	assert.InDeltaSlice(t, []float32{3, -4}, long, 1e-5)
	assert.Equal(t, []float32{3, -4}, short, "a short gradient is unchanged")
}
