package dqn

import (
	"errors"
	"fmt"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
)

// ErrBatch means that a batch is empty or inconsistent.
var ErrBatch = errors.New("invalid batch")

// Batch is a number of transitions, stored by column like in a replay.
type Batch struct {
	// Observations and Next have [pole.Features] numbers per row, the other columns one.
	Observations []float32
	Actions      []int32
	Returns      []float32
	Next         []float32
	Discounts    []float32
	// Weights are those of the rows in the loss. Without any, each row has the weight 1.
	Weights []float32
}

// Rows returns the number of transitions.
func (b *Batch) Rows() int { return len(b.Actions) }

// Append adds a transition as the last row of a batch without weights.
func (b *Batch) Append(t Transition) {
	b.Observations = append(b.Observations, t.Observation[:]...)
	b.Actions = append(b.Actions, t.Action)
	b.Returns = append(b.Returns, t.Return)
	b.Next = append(b.Next, t.Next[:]...)
	b.Discounts = append(b.Discounts, t.Discount)
}

// Clear removes all rows, and keeps the memory for reuse.
func (b *Batch) Clear() {
	b.Observations, b.Actions, b.Returns = b.Observations[:0], b.Actions[:0], b.Returns[:0]
	b.Next, b.Discounts, b.Weights = b.Next[:0], b.Discounts[:0], b.Weights[:0]
}

func (b *Batch) check() error {
	rows := b.Rows()
	if rows == 0 {
		return fmt.Errorf("%w: no rows", ErrBatch)
	}
	if len(b.Returns) != rows || len(b.Discounts) != rows ||
		len(b.Observations) != rows*pole.Features || len(b.Next) != rows*pole.Features {
		return fmt.Errorf("%w: %d actions, %d returns, %d discounts, %d and %d numbers of observations",
			ErrBatch, rows, len(b.Returns), len(b.Discounts), len(b.Observations), len(b.Next))
	}
	if n := len(b.Weights); n != 0 && n != rows {
		return fmt.Errorf("%w: %d actions and %d weights", ErrBatch, rows, n)
	}
	for i, action := range b.Actions {
		if action < 0 || action >= pole.Actions {
			return fmt.Errorf("%w: row %d has action %d", ErrBatch, i, action)
		}
	}
	return nil
}
