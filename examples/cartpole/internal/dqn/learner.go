package dqn

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
)

// ErrDiverged means that the learner's loss is no longer a finite number.
var ErrDiverged = errors.New("the loss is not a finite number")

// Config configures a learner. A zero field selects the default in its comment.
type Config struct {
	// Hidden are the widths of the hidden layers. Default: 64, 64.
	Hidden []int
	// Rate is Adam's learning rate. Default: 2e-3.
	Rate float64
	// Average is the weight of the newest parameters in the target network's moving average.
	// Default: 0.01.
	Average float64
	// MaxNorm is the maximum norm of a gradient. Default: 10.
	MaxNorm float64
}

func (c Config) withDefaults() Config {
	if len(c.Hidden) == 0 {
		c.Hidden = []int{64, 64}
	}
	if c.Rate == 0 {
		c.Rate = 2e-3
	}
	if c.Average == 0 {
		c.Average = 0.01
	}
	if c.MaxNorm == 0 {
		c.MaxNorm = 10
	}
	return c
}

// Learner improves a network batch by batch. It is not safe for concurrent use.
type Learner struct {
	config    Config
	online    *Network
	target    *Network
	gradient  *Network
	optimiser *adam

	// The activations of one step, reused.
	now, ahead, judged, scratch activations
	input, byOutput             []float32
	errors                      []float32
}

// NewLearner returns a learner with random initial weights.
func NewLearner(config Config, rng *rand.Rand) (*Learner, error) {
	config = config.withDefaults()
	online, err := NewNetwork(rng, slices.Concat([]int{pole.Features}, config.Hidden, []int{pole.Actions})...)
	if err != nil {
		return nil, err
	}
	return &Learner{
		config: config, online: online, target: online.Clone(), gradient: online.Clone(),
		optimiser: newAdam(config.Rate, len(online.params)),
	}, nil
}

// Network returns a copy of the current network.
func (l *Learner) Network() *Network { return l.online.Clone() }

// Errors returns how far the network's value of each row of the last batch was off before the step,
// as an absolute value. It is valid until the next step.
func (l *Learner) Errors() []float32 { return l.errors }

// Learn takes one step along the batch's gradient, and returns the mean loss before the step,
// weighted as the batch is.
func (l *Learner) Learn(batch *Batch) (float64, error) {
	if err := batch.check(); err != nil {
		return 0, err
	}
	// The online network selects the next action and the target network evaluates it, which avoids
	// the overestimation by a single network: H. van Hasselt, A. Guez and D. Silver, "Deep
	// reinforcement learning with double Q-learning" (2016).
	l.input = appendFeatures(l.input[:0], batch.Next)
	choices := l.online.forward(&l.ahead, l.input)
	values := l.target.forward(&l.judged, l.input)
	l.input = appendFeatures(l.input[:0], batch.Observations)
	now := l.online.forward(&l.now, l.input)

	l.byOutput = slices.Grow(l.byOutput[:0], len(now))[:len(now)]
	clear(l.byOutput)
	l.errors = l.errors[:0]
	loss, rows := 0.0, batch.Rows()
	for i := range rows {
		row := i * pole.Actions
		next := values[row+argmax(choices[row:row+pole.Actions])]
		taken := row + int(batch.Actions[i])
		off := now[taken] - (batch.Returns[i] + batch.Discounts[i]*next)
		l.errors = append(l.errors, float32(math.Abs(float64(off))))
		weight := float32(1)
		if len(batch.Weights) > 0 {
			weight = batch.Weights[i]
		}
		loss += float64(weight) * huber(off) / float64(rows)
		l.byOutput[taken] = weight * max(-1, min(1, off)) / float32(rows)
	}
	if math.IsNaN(loss) || math.IsInf(loss, 0) {
		return loss, ErrDiverged
	}
	l.online.backward(&l.now, &l.scratch, l.byOutput, l.gradient)
	clip(l.gradient.params, l.config.MaxNorm)
	l.optimiser.step(l.online.params, l.gradient.params)
	for i, v := range l.online.params {
		l.target.params[i] += float32(l.config.Average) * (v - l.target.params[i])
	}
	return loss, nil
}

// huber is quadratic near zero and linear beyond, which limits the influence of outliers.
func huber(off float32) float64 {
	size := math.Abs(float64(off))
	if size <= 1 {
		return size * size / 2
	}
	return size - 0.5
}
