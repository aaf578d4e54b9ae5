package dqn

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

func newLearner(t *testing.T, run uint64) *Learner {
	t.Helper()
	l, err := NewLearner(Config{Hidden: []int{16, 16}}, seed.Stream(run, "learner", 0))
	require.NoError(t, err)
	return l
}

// A chain with known values: at position 0 both actions earn 1 and lead to position 1, where action
// 1 earns 2, action 0 earns nothing, and the episode ends. So the values are 1 + 0.5*2 at position
// 0, and 0 and 2 at position 1.
func TestLearnsValuesOfChain(t *testing.T) {
	t.Parallel()
	l := newLearner(t, 1)
	start, middle := pole.Observation{0}, pole.Observation{1}
	var batch Batch
	for action := range int32(pole.Actions) {
		batch.Append(Transition{Observation: start, Action: action, Return: 1, Next: middle, Discount: 0.5})
		batch.Append(Transition{Observation: middle, Action: action, Return: 2 * float32(action), Next: pole.Observation{9}})
	}
	var loss float64
	for range 3000 {
		var err error
		loss, err = l.Learn(&batch)
		require.NoError(t, err)
	}
	var pass activations
	input := appendFeatures(appendFeatures(nil, start[:]), middle[:])
	assert.InDeltaSlice(t, []float32{2, 2, 0, 2}, l.Network().forward(&pass, input), 0.05)
	assert.Less(t, loss, 0.001)
}

// Double Q-learning: the online network selects, the target network evaluates.
func TestOnlineNetworkSelectsAndTargetEvaluates(t *testing.T) {
	t.Parallel()
	l := newLearner(t, 1)
	outputs := func(n *Network, values ...float32) {
		clear(n.params)
		copy(n.layers[len(n.layers)-1].biases, values)
	}
	outputs(l.online, 1, 3) // selects action 1, which it values at 3
	outputs(l.target, 7, 5) // has its greatest value at another action
	var batch Batch
	batch.Append(Transition{Action: 0, Return: 10, Discount: 1})
	loss, err := l.Learn(&batch)
	require.NoError(t, err)
	assert.InDelta(t, (10+5-1)-0.5, loss, 1e-5)
}

func TestTargetIsMovingAverage(t *testing.T) {
	t.Parallel()
	l := newLearner(t, 1)
	before := l.target.params[0]
	var batch Batch
	batch.Append(Transition{Observation: pole.Observation{1, 1, 1, 1}, Action: 1, Return: 5})
	_, err := l.Learn(&batch)
	require.NoError(t, err)
	assert.InDelta(t, before+0.01*(l.online.params[0]-before), l.target.params[0], 1e-7)
}

func TestLearnRejectsInvalidBatches(t *testing.T) {
	t.Parallel()
	l := newLearner(t, 1)
	before := l.Network()
	whole := func() *Batch {
		var b Batch
		b.Append(Transition{})
		b.Append(Transition{Action: 1})
		return &b
	}
	for name, spoil := range map[string]func(b *Batch){
		"empty":              func(b *Batch) { b.Clear() },
		"short observations": func(b *Batch) { b.Observations = b.Observations[1:] },
		"short next":         func(b *Batch) { b.Next = b.Next[1:] },
		"long returns":       func(b *Batch) { b.Returns = append(b.Returns, 1) },
		"no discounts":       func(b *Batch) { b.Discounts = nil },
		"no such action":     func(b *Batch) { b.Actions[0] = pole.Actions },
		"negative action":    func(b *Batch) { b.Actions[0] = -1 },
	} {
		b := whole()
		spoil(b)
		_, err := l.Learn(b)
		require.ErrorIs(t, err, ErrBatch, name)
	}
	b := whole()
	b.Returns[1] = float32(math.NaN())
	_, err := l.Learn(b)
	require.ErrorIs(t, err, ErrDiverged)
	assert.Equal(t, before, l.Network(), "an invalid batch changes nothing")

	_, err = l.Learn(whole())
	require.NoError(t, err)
}

func TestLearningIsRepeatable(t *testing.T) {
	t.Parallel()
	learn := func(run uint64) *Network {
		l, rng := newLearner(t, run), seed.Stream(run, "batches", 0)
		var batch Batch
		for range 20 {
			batch.Clear()
			for range 8 {
				batch.Append(Transition{Observation: pole.Observation{rng.Float32()}, Action: rng.Int32N(2), Return: rng.Float32()})
			}
			_, err := l.Learn(&batch)
			require.NoError(t, err)
		}
		return l.Network()
	}
	first, again, other := learn(1), learn(1), learn(2)
	assert.Equal(t, first, again)
	assert.NotEqual(t, first, other)
}

func TestNetworkIsACopy(t *testing.T) {
	t.Parallel()
	l := newLearner(t, 1)
	taken := l.Network()
	before := taken.Clone()
	var batch Batch
	batch.Append(Transition{Return: 1})
	_, err := l.Learn(&batch)
	require.NoError(t, err)
	assert.Equal(t, before, taken, "learning does not change the copy")
	assert.NotEqual(t, before, l.Network())
}

func BenchmarkLearn(b *testing.B) {
	l, err := NewLearner(Config{}, seed.Stream(1, "learner", 0))
	require.NoError(b, err)
	rng := seed.Stream(1, "batches", 0)
	var batch Batch
	for range 64 {
		batch.Append(Transition{Observation: pole.Observation{rng.Float32()}, Return: rng.Float32(), Discount: 0.9})
	}
	for b.Loop() {
		if _, err := l.Learn(&batch); err != nil {
			b.Fatal(err)
		}
	}
}

// TestWeightsScaleRows shows that a row of weight 2 counts as two, and one of weight 0 not at all;
// and that errors are those before the step.
func TestWeightsScaleRows(t *testing.T) {
	t.Parallel()
	weighted, repeated := newLearner(t, 1), newLearner(t, 1)
	rows := []Transition{{Observation: pole.Observation{1}, Return: 3}, {Observation: pole.Observation{2}, Action: 1, Return: 0.5}}
	var a, b Batch
	for _, row := range []int{0, 1} {
		a.Append(rows[row])
		b.Append(rows[0])
	}
	a.Weights = []float32{2, 0}
	lossA, err := weighted.Learn(&a)
	require.NoError(t, err)
	lossB, err := repeated.Learn(&b)
	require.NoError(t, err)
	assert.InDelta(t, lossB, lossA, 1e-6)
	require.Len(t, weighted.Errors(), 2)
	assert.InDelta(t, repeated.Errors()[0], weighted.Errors()[0], 0)
	assert.Positive(t, weighted.Errors()[1], "a row without weight has its error too")
	assert.InDeltaSlice(t, repeated.Network().params, weighted.Network().params, 1e-6)

	a.Weights = []float32{1}
	_, err = weighted.Learn(&a)
	require.ErrorIs(t, err, ErrBatch)
}
