package dqn

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
)

// taken is one step of a random episode.
type taken struct {
	before pole.Observation
	action int
	out    pole.Outcome
}

// The assembler's transitions must match those computed from the complete episode: one per step, in
// order.
func TestAssemblerMatchesHindsight(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ahead := rapid.IntRange(1, 6).Draw(t, "steps")
		discount := rapid.Float32Range(0.5, 1).Draw(t, "discount")
		assembler := NewAssembler(ahead, discount)
		var got, want []Transition
		for range rapid.IntRange(1, 4).Draw(t, "episodes") {
			episode := anyEpisode(t)
			for _, s := range episode {
				got = assembler.Add(got, s.before, s.action, s.out)
			}
			want = append(want, hindsight(episode, ahead, discount)...)
		}
		if !assert.Len(t, got, len(want)) {
			return
		}
		for i, w := range want {
			assert.Equal(t, w.Observation, got[i].Observation, "row %d", i)
			assert.Equal(t, w.Action, got[i].Action, "row %d", i)
			assert.Equal(t, w.Next, got[i].Next, "row %d", i)
			assert.InDelta(t, w.Return, got[i].Return, 1e-4, "row %d", i)
			assert.InDelta(t, w.Discount, got[i].Discount, 1e-5, "row %d", i)
		}
	})
}

func anyEpisode(t *rapid.T) []taken {
	episode := make([]taken, rapid.IntRange(1, 12).Draw(t, "length"))
	seen := pole.Observation{rapid.Float32Range(-1, 1).Draw(t, "first")}
	for i := range episode {
		next := pole.Observation{float32(i), rapid.Float32Range(-1, 1).Draw(t, "next")}
		episode[i] = taken{
			before: seen, action: rapid.IntRange(0, 1).Draw(t, "action"),
			out: pole.Outcome{Observation: next, Reward: rapid.Float32Range(-2, 2).Draw(t, "reward")},
		}
		seen = next
	}
	last := &episode[len(episode)-1].out
	last.Terminated = rapid.Bool().Draw(t, "terminated")
	last.Truncated = !last.Terminated
	return episode
}

func hindsight(episode []taken, ahead int, discount float32) (all []Transition) {
	for i, s := range episode {
		end := min(i+ahead, len(episode))
		row := Transition{Observation: s.before, Action: int32(s.action), Next: episode[end-1].out.Observation}
		for k, later := range episode[i:end] {
			row.Return += float32(math.Pow(float64(discount), float64(k))) * later.out.Reward
		}
		if !episode[end-1].out.Terminated {
			row.Discount = float32(math.Pow(float64(discount), float64(end-i)))
		}
		all = append(all, row)
	}
	return all
}
