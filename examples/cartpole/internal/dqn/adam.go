package dqn

import "math"

const (
	meanDecay   = 0.9
	squareDecay = 0.999
	// adamEpsilon is larger than the paper's 1e-8: gradients of temporal differences are noisy, and
	// steps along tiny ones should stay tiny.
	adamEpsilon = 1e-5
)

// adam is the optimizer of D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization"
// (2015), algorithm 1, with the paper's decay rates.
type adam struct {
	rate   float64
	steps  int
	mean   []float32
	square []float32
}

func newAdam(rate float64, size int) *adam {
	return &adam{rate: rate, mean: make([]float32, size), square: make([]float32, size)}
}

func (a *adam) step(params, gradient []float32) {
	a.steps++
	rate := float32(a.rate / (1 - math.Pow(meanDecay, float64(a.steps))))
	scale := float32(1 / (1 - math.Pow(squareDecay, float64(a.steps))))
	for i, g := range gradient {
		a.mean[i] += (1 - meanDecay) * (g - a.mean[i])
		a.square[i] += (1 - squareDecay) * (g*g - a.square[i])
		params[i] -= rate * a.mean[i] / (float32(math.Sqrt(float64(a.square[i]*scale))) + adamEpsilon)
	}
}

// clip scales a gradient down to the given norm if it is longer.
func clip(gradient []float32, longest float64) {
	sum := 0.0
	for _, g := range gradient {
		sum += float64(g) * float64(g)
	}
	if length := math.Sqrt(sum); length > longest {
		scale := float32(longest / length)
		for i := range gradient {
			gradient[i] *= scale
		}
	}
}
