package replay

import (
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
)

// TestSamplesHaveAllFields knows each field of each sample exactly. Where calls are encoded, ages
// are known within the time that the test takes.
func TestSamplesHaveAllFields(t *testing.T) {
	config := pointsReplay(100, Table("per", Prioritized(1), MinSize(2)))
	inOrder := func(t *testing.T, got, want time.Duration) {
		t.Helper()
		require.Equal(t, want, got)
	}
	t.Run("mapped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { checkFields(t, open(t, testNode(t, config)), inOrder) })
	})
	t.Run("remote", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { checkFields(t, open(t, &remoteReplay{node: testNode(t, config)}), inOrder) })
	})
	t.Run("encoded", func(t *testing.T) {
		begin := time.Now()
		checkFields(t, openTunnel(t, &remoteReplay{node: testNode(t, config)}), func(t *testing.T, got, want time.Duration) {
			t.Helper()
			require.Positive(t, got)
			require.InDelta(t, want, got, float64(time.Since(begin)))
		})
	})
}

// checkFields draws two batches of a table with two items: one that waits for the second item, and
// another one later.
func checkFields(t *testing.T, c *Client, age func(t *testing.T, got, want time.Duration)) {
	t.Helper()
	const beta, later = 0.5, 20 * time.Millisecond
	p, err := As(c, pointRow())
	require.NoError(t, err)
	w := itemWriter(t, p, History(3))
	s := itemSampler(t, p, "per", BatchOf(16), Weights(beta))
	items := make(map[Key]*ItemInfo)
	inserted := make(map[Key]time.Time)
	insert := func(rows []uint64, probability, weight, priority float64) {
		for _, row := range rows {
			require.NoError(t, w.Append(t.Context(), 1, points(int64(row))))
			require.Equal(t, []uint64{row}, w.Sequences())
		}
		pending, err := w.Item(t.Context(), "per", len(rows), priority)
		require.NoError(t, err)
		require.NoError(t, w.Flush(t.Context()))
		key, confirmed := pending.Get()
		require.True(t, confirmed)
		require.NotZero(t, key)
		require.Equal(t, len(rows), key.Rows())
		inserted[key] = time.Now()
		items[key] = &ItemInfo{Key: key, Sequences: rows, Probability: probability, Weight: weight, Priority: priority, TableSize: 2}
	}
	insert([]uint64{0, 1}, 0.25, 1, 1)
	pause(t, later)

	var first *SampledBatch[pointColumns]
	done := make(chan error, 1)
	go func() {
		var err error
		first, err = s.Next(t.Context())
		done <- err
	}()
	require.Eventually(t, func() bool {
		info, err := c.Inspect(t.Context())
		require.NoError(t, err)
		return len(info.GetTables()[0].GetBlocked()) == 1
	}, 20*time.Second, time.Millisecond)
	insert([]uint64{2, 3, 4}, 0.75, math.Pow(0.25/0.75, beta), 3)
	drawn := time.Now()
	require.NoError(t, <-done)
	check := func(b *SampledBatch[pointColumns], held bool) {
		checkSampled(t, b, 16)
		for i, got := range b.Info {
			want := items[got.Key]
			require.NotNil(t, want, "key %v", got.Key)
			want.Sampled++
			want.Held = held
			age(t, got.Age, drawn.Sub(inserted[got.Key]))
			require.InDelta(t, want.Probability, got.Probability, 1e-15)
			require.InDelta(t, want.Weight, got.Weight, 1e-15)
			got.Age, got.Probability, got.Weight = 0, want.Probability, want.Weight
			require.Equal(t, *want, got, "sample %d", i)
		}
	}
	check(first, true)
	pause(t, later)
	drawn = time.Now()
	second, err := s.Next(t.Context())
	require.NoError(t, err)
	check(second, false)
	require.Equal(t, uint32(32), items[first.Info[0].Key].Sampled+items[otherKey(items, first.Info[0].Key)].Sampled)
}

// otherKey returns the key of two that is not the given one.
func otherKey(items map[Key]*ItemInfo, key Key) Key {
	for other := range items {
		if other != key {
			return other
		}
	}
	return Key{}
}

// pause lets time pass.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	<-time.After(d)
}

// TestMinimumSizeIsReachedWhateverTheEpisodes writes episodes that are shorter and longer than the
// ring, with an item at each row. A sample that waits for 1,000 items gets them at the thousandth.
func TestMinimumSizeIsReachedWhateverTheEpisodes(t *testing.T) {
	const minSize = 1000
	for name, limiter := range map[string]Limiter{"minimum size": MinSize(minSize), "samples per insert": SamplesPerInsert(8, minSize, 4000)} {
		for _, capacity := range []uint64{7, 300, 5000} {
			t.Run(name, func(t *testing.T) {
				itemsBothWays(t, capacity, []*replayv1.TableConfig{Table("t", limiter)}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
					seed := rand.Uint64()
					t.Logf("seed %d, %d rows", seed, capacity)
					random := rand.New(rand.NewPCG(seed, 0))
					w, s := itemWriter(t, p, History(int(min(capacity, 50)))), itemSampler(t, p, "t", BatchOf(4), Caller("learner-0"))
					done := make(chan error, 1)
					go func() {
						_, err := s.Next(t.Context())
						done <- err
					}()
					waits := func(text string) {
						t.Helper()
						require.Eventually(t, func() bool {
							info, err := p.Client().Inspect(t.Context())
							require.NoError(t, err)
							blocked := blockedTexts(info.GetTables()[0])
							return len(blocked) == 1 && blocked[0] == "sample of learner-0 has 0 of 4 items and has waited D for "+text
						}, 20*time.Second, time.Millisecond, text)
					}
					waits("1000 more inserts")
					for inserted, left := 0, 0; inserted < minSize; inserted++ {
						if inserted == minSize-1 {
							waits("1 more insert")
						}
						if left == 0 {
							require.NoError(t, w.EndEpisode(t.Context()))
							left = 1 + random.IntN(2*int(capacity))
						}
						left--
						require.NoError(t, w.Append(t.Context(), 1, points(1)))
						_, err := w.Item(t.Context(), "t", 1+random.IntN(w.EpisodeRows()), 1)
						require.NoError(t, err)
						require.NoError(t, w.Flush(t.Context()))
					}
					select {
					case err := <-done:
						require.NoError(t, err)
					case <-time.After(20 * time.Second):
						require.Fail(t, "the sample still waits")
					}
				})
			})
		}
	}
}
