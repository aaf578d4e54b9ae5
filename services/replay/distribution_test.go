package replay

import (
	"context"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
)

// maxDeviations is how many standard deviations a test of a distribution tolerates. It fails with a
// probability of 1e-9 though nothing is wrong.
const maxDeviations = 6

// requireDistribution performs a chi-squared test of how often items were drawn.
func requireDistribution(t *testing.T, probabilities []float64, counts []int) {
	t.Helper()
	chi, degrees, draws := 0.0, -1.0, 0
	for _, n := range counts {
		draws += n
	}
	for i, p := range probabilities {
		if p == 0 {
			require.Zero(t, counts[i], "item %d can't be drawn", i)
			continue
		}
		expected := p * float64(draws)
		chi += (float64(counts[i]) - expected) * (float64(counts[i]) - expected) / expected
		degrees++
	}
	// The approximation of Wilson and Hilferty.
	z := (math.Cbrt(chi/degrees) - (1 - 2/(9*degrees))) / math.Sqrt(2/(9*degrees))
	require.Less(t, z, float64(maxDeviations), "drawn %v of %d with the probabilities %.3f", counts, draws, probabilities)
}

// everyWay runs a test with a mapped ring and through the node, with and without prefetch, and with
// one whose rows Next copies itself.
func everyWay(t *testing.T, config *replayv1.TableConfig, test func(t *testing.T, p *Typed[pointColumns], s *Sampler[pointColumns])) {
	t.Helper()
	for _, c := range []struct {
		prefetch int
		atOnce   bool
	}{{0, false}, {3, false}, {3, true}} {
		t.Run(fmt.Sprintf("prefetch=%d,at once=%t", c.prefetch, c.atOnce), func(t *testing.T) {
			itemsBothWays(t, 100, []*replayv1.TableConfig{config}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
				s := itemSampler(t, p, config.GetName(), BatchOf(drawnTogether), Prefetch(c.prefetch))
				if c.atOnce {
					calledAtOnce(s)
				}
				test(t, p, s)
			})
		})
	}
}

// calledAtOnce lets a sampler believe that its batches are always asked for at once.
func calledAtOnce(s *Sampler[pointColumns]) {
	s.hurried, s.returnedAt = impatientAfter, time.Now().Add(time.Hour)
}

const (
	drawnItems    = 20
	drawnTogether = 500
	drawnBatches  = 40
)

// writeDrawn writes items with priorities 0, 1, 2 and so on. The number of an item is that of its
// row.
func writeDrawn(t *testing.T, p *Typed[pointColumns]) []Key {
	t.Helper()
	w := itemWriter(t, p, History(1))
	keys := make([]Key, drawnItems)
	pending := make([]*PendingKey, drawnItems)
	for i := range drawnItems {
		require.NoError(t, w.Append(t.Context(), 1, points(int64(i))))
		var err error
		pending[i], err = w.Item(t.Context(), "t", 1, float64(i))
		require.NoError(t, err)
	}
	require.NoError(t, w.Flush(t.Context()))
	for i, key := range pending {
		keys[i], _ = key.Get()
	}
	return keys
}

// drawn counts how often each item is in some batches, and checks the probability that they have.
func drawn(t *testing.T, s *Sampler[pointColumns], batches int, probabilities []float64) []int {
	t.Helper()
	counts := make([]int, drawnItems)
	for range batches {
		if s.hurried >= impatientAfter {
			calledAtOnce(s)
		}
		b, err := s.Next(t.Context())
		require.NoError(t, err)
		for i, info := range b.Info {
			require.Equal(t, int64(info.Sequences[0]), b.Columns.N[i])
			counts[b.Columns.N[i]]++
			require.InDelta(t, probabilities[b.Columns.N[i]], info.Probability, 1e-9)
		}
	}
	return counts
}

// powers returns the probabilities of items with some priorities.
func powers(exponent float64, priorities ...float64) []float64 {
	sum := 0.0
	p := make([]float64, len(priorities))
	for i, priority := range priorities {
		if priority > 0 {
			p[i] = math.Pow(priority, exponent)
		}
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

func TestSamplersDrawWithTheirDistributions(t *testing.T) {
	equal, rising := make([]float64, drawnItems), make([]float64, drawnItems)
	for i := range drawnItems {
		equal[i], rising[i] = 1, float64(i)
	}
	only := func(i int) []float64 {
		p := make([]float64, drawnItems)
		p[i] = 1
		return p
	}
	for name, c := range map[string]struct {
		selector      Selector
		probabilities []float64
	}{
		"uniform":            {Uniform(), powers(1, equal...)},
		"prioritized by 0.6": {Prioritized(0.6), powers(0.6, rising...)},
		"prioritized by 2":   {Prioritized(2), powers(2, rising...)},
		"prioritized by 0":   {Prioritized(0), powers(0, rising...)},
		"FIFO":               {FIFO(), only(0)},
		"LIFO":               {LIFO(), only(drawnItems - 1)},
		"lowest":             {Lowest(), only(0)},
		"highest":            {Highest(), only(drawnItems - 1)},
	} {
		t.Run(name, func(t *testing.T) {
			everyWay(t, Table("t", c.selector), func(t *testing.T, p *Typed[pointColumns], s *Sampler[pointColumns]) {
				writeDrawn(t, p)
				counts := drawn(t, s, drawnBatches, c.probabilities)
				for i, p := range c.probabilities {
					if p == 1 {
						require.Equal(t, drawnBatches*drawnTogether, counts[i])
						return
					}
				}
				requireDistribution(t, c.probabilities, counts)
			})
		})
	}
}

// TestEpochsHaveEachItemOnce checks which item is the first of an epoch, too.
func TestEpochsHaveEachItemOnce(t *testing.T) {
	everyWay(t, Table("t", Epoch()), func(t *testing.T, p *Typed[pointColumns], s *Sampler[pointColumns]) {
		writeDrawn(t, p)
		first, probabilities := make([]int, drawnItems), make([]float64, drawnItems)
		for i := range probabilities {
			probabilities[i] = 1.0 / drawnItems
		}
		for range drawnBatches {
			b, err := s.Next(t.Context())
			require.NoError(t, err)
			for begin := 0; begin < drawnTogether; begin += drawnItems {
				epoch := make(map[int64]bool)
				for i, n := range b.Columns.N[begin : begin+drawnItems] {
					require.False(t, epoch[n])
					epoch[n] = true
					require.InDelta(t, 1/float64(drawnItems-i), b.Info[begin+i].Probability, 1e-9)
				}
				first[b.Columns.N[begin]]++
			}
		}
		requireDistribution(t, probabilities, first)
	})
}

// TestPrioritiesCountFromTheirUpdateOn compares draws before and after an update.
func TestPrioritiesCountFromTheirUpdateOn(t *testing.T) {
	everyWay(t, Table("t", Prioritized(0.6)), func(t *testing.T, p *Typed[pointColumns], s *Sampler[pointColumns]) {
		keys := writeDrawn(t, p)
		falling := make([]float64, drawnItems)
		for i := range falling {
			falling[i] = float64(drawnItems - i - 1)
		}
		stale, err := s.Update(t.Context(), keys, falling)
		require.NoError(t, err)
		require.Zero(t, stale)
		requireDistribution(t, powers(0.6, falling...), drawn(t, s, drawnBatches, powers(0.6, falling...)))
	})
}

// TestProbabilitiesAreThoseOfTheDraws updates priorities at random while items are drawn. Whatever
// the probabilities P are, each draw adds 1/P to the drawn item, and the expected sum of each item
// is the number of draws. So that tests that the draws have the probabilities that they report.
func TestProbabilitiesAreThoseOfTheDraws(t *testing.T) {
	everyWay(t, Table("t", Prioritized(0.6)), func(t *testing.T, p *Typed[pointColumns], s *Sampler[pointColumns]) {
		keys := writeDrawn(t, p)
		updater := itemSampler(t, p, "t")
		stop := make(chan struct{})
		var updates sync.WaitGroup
		updates.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				priorities := make([]float64, drawnItems-1)
				for i := range priorities {
					priorities[i] = float64((1 + i%7) * (1 + (i+round)%2))
				}
				if _, err := updater.Update(context.Background(), keys[1:], priorities); err != nil {
					t.Error(err)
					return
				}
			}
		})
		defer updates.Wait()
		defer close(stop)
		sums, squares := make([]float64, drawnItems), make([]float64, drawnItems)
		draws := 0.0
		for range drawnBatches {
			b, err := s.Next(t.Context())
			require.NoError(t, err)
			for i, info := range b.Info {
				draws++
				sums[b.Columns.N[i]] += 1 / info.Probability
				squares[b.Columns.N[i]] += 1 / (info.Probability * info.Probability)
			}
		}
		require.Zero(t, sums[0], "an item of priority 0 is never drawn")
		for i := 1; i < drawnItems; i++ {
			deviation := math.Sqrt(squares[i] - draws)
			require.InDelta(t, draws, sums[i], maxDeviations*deviation, "item %d", i)
		}
	})
}
