package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestReplayOfTooFewRowsIsReported asks for an area of more rows than can be read.
func TestReplayOfTooFewRowsIsReported(t *testing.T) {
	d, err := newDriver(options{rounds: 1, duration: time.Millisecond}, t.Output())
	require.NoError(t, err)
	rs := []row{{
		name: borrowMillion, unit: "rows/s", replay: replayLoad{bytes: 4 << 20}, job: job{Kind: replayBorrow, Size: 1024, Inflight: 1000000},
		systems: []string{"raylink"},
	}}
	res, err := d.run(t.Context(), rs)
	require.NoError(t, err)
	require.Len(t, res.failed, 1)
	require.ErrorContains(t, res.failed[0], "of 1000000 rows can be read")
	shared := d.shared.dir
	require.NoError(t, d.close())
	assert.NoDirExists(t, shared)
}

// TestPlainRows checks that the peers do the work that they are compared by.
func TestPlainRows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rows")
	require.NoError(t, os.WriteFile(path, make([]byte, 10*64), 0o600))
	store, err := openPlainRows(64, path)
	require.NoError(t, err)
	s, ok := store.(*plainRows)
	require.True(t, ok)
	require.Equal(t, 10, s.capacity())
	payload := make([]byte, 3*64)
	for i := range payload {
		payload[i] = byte(i + 1)
	}
	s.next = 8 // around the end
	require.NoError(t, s.write(t.Context(), 3, payload))
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, payload, append(append([]byte(nil), content[8*64:]...), content[:64]...))
	require.NoError(t, s.sample(t.Context(), 100))
	for i := range 100 {
		require.Contains(t, []byte{0, 1, 65, 129}, s.into[64*i])
	}
	require.NoError(t, s.close())
}

// TestBuffersOfOtherSystems measures the replay beside Reverb and cpprb. Where these are not
// installed, they are reported as missing.
func TestBuffersOfOtherSystems(t *testing.T) {
	d, err := newDriver(options{rounds: 1, duration: 5 * time.Millisecond}, t.Output())
	require.NoError(t, err)
	rs := bufferRows()
	for i := range rs {
		rs[i].replay.bytes, rs[i].job.Inflight = 1<<20, 8
	}
	res, err := d.run(t.Context(), rs)
	require.NoError(t, err)
	require.NoError(t, d.close())
	require.Empty(t, res.failed)
	lines := res.lines()
	require.Len(t, lines, 8)
	for _, l := range lines {
		if l.System == reverbSystem || l.System == cpprbSystem {
			if l.Missing != "" {
				require.Contains(t, l.Missing, "make bench-reverb")
				continue
			}
		}
		assert.Positive(t, l.Value, "%s of %s", l.Name, l.System)
	}
}
