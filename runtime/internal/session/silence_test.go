package session

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSilenceIsCountedWhileTheProcessRuns(t *testing.T) {
	const period = time.Second
	now := time.Now()
	s := NewSilence(period, now)
	look := func(passed time.Duration, received int64) time.Duration {
		now = now.Add(passed)
		return s.At(now, received)
	}
	require.Equal(t, period, look(period, 0))
	require.Equal(t, 2*period, look(period, 0))
	require.Zero(t, look(period, 1), "there was traffic")
	require.Equal(t, period+lateness, look(period+lateness, 1), "a little late")
	require.Zero(t, look(time.Hour, 1), "it was stopped")
	require.Equal(t, period, look(period, 1))
	require.Zero(t, s.At(now.Add(period).Round(0).Add(time.Hour), 1), "it was suspended")
}
