package nettest

import (
	"io"
	"math"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestShaperIsALinkWithAQueue checks a shaper's decisions against what a link can do: frames arrive
// in order, each takes its time on the link and the delay after it, and only what exceeds the queue
// or is drawn is lost.
func TestShaperIsALinkWithAQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := Quality{
			Rate:  rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(1000, 1e10)).Draw(t, "rate"),
			Delay: time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "delay")),
			Loss:  rapid.Float64Range(0, 1).Draw(t, "loss"),
		}
		var s shaper
		var last time.Time
		var idle time.Time // when the link has sent all frames so far
		now := time.Unix(0, 0)
		for range rapid.IntRange(1, 100).Draw(t, "frames") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(50*time.Millisecond)).Draw(t, "pause")))
			size := rapid.IntRange(14, 1514).Draw(t, "size")
			chance := rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(t, "chance")
			var onLink time.Duration
			if q.Rate > 0 {
				onLink = time.Duration(float64(size) * 8 / float64(q.Rate) * 1e9)
			}
			begin := now
			if idle.After(begin) {
				begin = idle
			}
			queued := begin.Sub(now)
			arrival, ok := s.admit(q, now, size, chance)
			switch {
			case chance < q.Loss:
				require.False(t, ok, "the frame is lost by chance")
				continue
			case !ok:
				require.Greater(t, queued, maxQueue, "a frame was dropped though the queue had room")
				require.Greater(t, queued.Seconds()*float64(q.Rate)/8, float64(minQueue-1), "a frame was dropped though the queue had room")
				continue
			}
			if q.Rate > 0 {
				most := max(maxQueue, time.Duration(float64(minQueue)*8/float64(q.Rate)*1e9))
				require.LessOrEqual(t, queued, most+time.Microsecond, "the queue is bounded")
			}
			idle = begin.Add(onLink)
			require.WithinDuration(t, idle.Add(q.Delay), arrival, time.Microsecond)
			require.False(t, arrival.Before(last), "frames arrive in order")
			last = arrival
		}
	})
}

func TestQualityOfNoLinkIsRefused(t *testing.T) {
	for _, q := range []Quality{{Rate: -1}, {Delay: -1}, {Loss: -0.1}, {Loss: 1.1}, {Loss: math.NaN()}} {
		require.ErrorContains(t, q.check(), "nettest: a link can't have the quality {")
		require.ErrorContains(t, q.check(), "rate and delay are not negative, and loss is from 0 to 1")
	}
	for _, q := range []Quality{{}, {Rate: 1, Delay: 1, Loss: 1}} {
		assert.NoError(t, q.check())
	}
}

func TestRelayDelaysFramesOfBothDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, outer := net.Pipe()
		b, inner := net.Pipe()
		r := newRelay(outer, inner, Quality{Delay: time.Second})
		defer r.close()
		for _, ends := range [][2]net.Conn{{a, b}, {b, a}} {
			begin := time.Now()
			_, err := ends[0].Write([]byte("frame"))
			require.NoError(t, err)
			got := make([]byte, 10)
			n, err := ends[1].Read(got)
			require.NoError(t, err)
			assert.Equal(t, "frame", string(got[:n]))
			assert.Equal(t, time.Second, time.Since(begin))
		}
	})
}

func TestRelayEndsWithFramesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, outer := net.Pipe()
		b, inner := net.Pipe()
		r := newRelay(outer, inner, Quality{Delay: time.Hour})
		for range 3 {
			_, err := a.Write([]byte("frame"))
			require.NoError(t, err)
		}
		synctest.Wait()
		begin := time.Now()
		r.close()
		assert.Zero(t, time.Since(begin))
		_, err := b.Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.EOF)
	})
}
