package pole

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

// The file holds six episodes recorded with Gymnasium: pushed in one direction, at random, and one
// that was balanced to the end.
func TestEpisodesMatchGymnasium(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("testdata/gymnasium.txt")
	require.NoError(t, err)

	env := New(seed.Stream(1, "environment", 0))
	ends := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(file))
	for n := 1; lines.Scan(); n++ {
		line, verdict, action := lines.Text(), "", 0
		if strings.HasPrefix(line, "#") {
			continue
		}
		var want State
		if rest, isReset := strings.CutPrefix(line, "reset "); isReset {
			_, err = fmt.Sscan(rest, &want.Position, &want.Velocity, &want.Angle, &want.AngularVelocity)
			require.NoError(t, err, "line %d", n)
			env.begin(want)
			continue
		}
		_, err = fmt.Sscan(line, &action, &want.Position, &want.Velocity, &want.Angle, &want.AngularVelocity, &verdict)
		require.NoError(t, err, "line %d", n)

		out, err := env.Step(action)
		require.NoError(t, err, "line %d", n)
		assert.InDeltaSlice(t, want.slice(), env.state.slice(), 1e-12, "line %d", n)
		for i, v := range want.slice() {
			assert.InDelta(t, v, out.Observation[i], 1e-6, "line %d", n)
		}
		assert.InDelta(t, 1, out.Reward, 0, "line %d", n)
		assert.Equal(t, verdict == "terminated", out.Terminated, "line %d", n)
		assert.Equal(t, verdict == "truncated", out.Truncated, "line %d", n)
		ends[verdict]++
		// The task is chaotic: a rounding difference grows a millionfold in two hundred steps. So
		// each step is compared separately.
		env.state = want
	}
	require.NoError(t, lines.Err())
	assert.Equal(t, 5, ends["terminated"])
	assert.Equal(t, 1, ends["truncated"])
}

func (s State) slice() []float64 {
	return []float64{s.Position, s.Velocity, s.Angle, s.AngularVelocity}
}

// Computed by hand: upright and at rest, a push of 10 N accelerates the cart by 10/1.1 - 0.05
// a/1.1, where a = -(10/1.1) / (0.5 (4/3 - 0.1/1.1)).
func TestFirstPushByHand(t *testing.T) {
	t.Parallel()
	after := State{}.Step(pushForce)
	assert.Zero(t, after.Position, "Euler's method uses the previous velocity")
	assert.Zero(t, after.Angle)
	assert.InDelta(t, 0.1951219512195122, after.Velocity, 1e-12)
	assert.InDelta(t, -0.2926829268292683, after.AngularVelocity, 1e-12)
}

func TestInitialStatesCoverTheirRange(t *testing.T) {
	t.Parallel()
	env := New(seed.Stream(7, "environment", 0))
	var low, high Observation
	for range 2000 {
		seen := env.Reset()
		for i, v := range seen {
			low[i], high[i] = min(low[i], v), max(high[i], v)
		}
	}
	for i := range low {
		assert.InDelta(t, -0.05, low[i], 0.001)
		assert.InDelta(t, 0.05, high[i], 0.001)
		assert.GreaterOrEqual(t, low[i], float32(-0.05))
		assert.LessOrEqual(t, high[i], float32(0.05))
	}
}

func TestCartLeavesTrack(t *testing.T) {
	t.Parallel()
	env := New(seed.Stream(1, "environment", 0))
	env.begin(State{Position: 2.39, Velocity: 1})
	out, err := env.Step(1)
	require.NoError(t, err)
	assert.True(t, out.Terminated)
	assert.InDelta(t, 1, out.Reward, 0, "the last step is rewarded too")
}

// A fall in the last step must count as terminated, not as truncated.
func TestFallInLastStepIsNotTruncated(t *testing.T) {
	t.Parallel()
	env := New(seed.Stream(1, "environment", 0))
	env.begin(State{Angle: maxAngle, AngularVelocity: 1})
	env.steps = MaxSteps - 1
	out, err := env.Step(1)
	require.NoError(t, err)
	assert.True(t, out.Terminated)
	assert.False(t, out.Truncated)
}

func TestInvalidSteps(t *testing.T) {
	t.Parallel()
	env := New(seed.Stream(1, "environment", 0))
	_, err := env.Step(0)
	require.ErrorIs(t, err, ErrNoEpisode)

	before := env.Reset()
	_, err = env.Step(2)
	require.ErrorIs(t, err, ErrAction)
	_, err = env.Step(-1)
	require.ErrorIs(t, err, ErrAction)
	assert.Equal(t, before, env.state.observe(), "an invalid action changes nothing")

	env.begin(State{Position: 3})
	_, err = env.Step(0)
	require.NoError(t, err)
	_, err = env.Step(0)
	require.ErrorIs(t, err, ErrNoEpisode, "the episode has ended")
}

func TestSameSeedSameEpisodes(t *testing.T) {
	t.Parallel()
	play := func(run uint64) (trace []Observation) {
		env := New(seed.Stream(run, "environment", 3))
		for range 5 {
			trace = append(trace, env.Reset())
			for action := 0; ; action = 1 - action {
				out, err := env.Step(action)
				require.NoError(t, err)
				trace = append(trace, out.Observation)
				if out.Over() {
					break
				}
			}
		}
		return trace
	}
	first, again, other := play(1), play(1), play(2)
	assert.Equal(t, first, again)
	assert.NotEqual(t, first, other)
}
