package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
)

// TestMissingRedisIsReported looks for Redis where there are no programs at all: its systems are
// missing with a reason, and the others are measured.
func TestMissingRedisIsReported(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	d, err := newDriver(options{rounds: 2, duration: time.Millisecond, systems: []string{redisSystem, redisPipelined, rueidisSystem, pebbleSystem}}, t.Output())
	require.NoError(t, err)
	rs, err := selected(rows(), "storage/(incr|put)")
	require.NoError(t, err)
	res, err := d.run(t.Context(), rs)
	require.NoError(t, err)
	require.NoError(t, d.close())
	require.Empty(t, res.failed)
	lines := res.lines()
	require.Len(t, lines, 5)
	for _, l := range lines[:4] {
		assert.Contains(t, l.Missing, "redis-server is not installed", l.Name)
		assert.Zero(t, l.Value)
	}
	assert.Equal(t, pebbleSystem, lines[4].System)
	assert.Positive(t, lines[4].Value)
	for _, target := range res.targets(lines) {
		assert.False(t, target.measured, target.what)
	}
	path := filepath.Join(t.TempDir(), "table.md")
	require.NoError(t, summarize(lines, "some machine", path))
	table, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(table), "| `incr/callers=50` | calls/s | redis | missing | | rueidis | missing | |")
}

// TestRedisEndsWithItsServer starts a redis-server, and looks for it afterwards.
func TestRedisEndsWithItsServer(t *testing.T) {
	if err := findRedis(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	srv, err := serveRedis(t.Context(), dir, "")
	require.NoError(t, err)
	require.NoError(t, ping(t.Context(), srv.address()))
	appended, err := filepath.Glob(filepath.Join(dir, "appendonlydir", "*.aof"))
	require.NoError(t, err)
	assert.NotEmpty(t, appended, "nothing is appended to a file")
	require.NoError(t, srv.close())
	require.Error(t, ping(t.Context(), srv.address()))
}

// TestRedisThatEndsIsReported starts a redis-server whose directory does not exist.
func TestRedisThatEndsIsReported(t *testing.T) {
	if err := findRedis(); err != nil {
		t.Skip(err)
	}
	r := &runningRedis{cmd: exec.CommandContext(t.Context(), redisServer, "--dir", filepath.Join(t.TempDir(), "none")), at: "127.0.0.1:1", done: make(chan error, 1)}
	require.NoError(t, r.cmd.Start())
	go func() { r.done <- r.cmd.Wait() }()
	require.ErrorContains(t, r.ready(t.Context()), "has ended")
	require.NoError(t, r.close())
}

func TestFiguresOfRedisBenchmark(t *testing.T) {
	const names = `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"` + "\n"
	f, err := redisFigures(names + `"INCR bench:counter","90909.09","0.314","0.096","0.303","0.431","0.903","1.023"` + "\n")
	require.NoError(t, err)
	assert.InDelta(t, 90909.09, f.value, 1e-9)
	assert.InDelta(t, 303, f.p50, 1e-9)
	assert.InDelta(t, 903, f.p99, 1e-9)
	for _, wrong := range []string{
		"", names, "Could not connect to Redis at 127.0.0.1:1: Connection refused\n", `"test","rps"` + "\n" + `"INCR","1"` + "\n",
		names + `"INCR","nan?","0","0","0","0","0","0"` + "\n", names + `"INCR","0","0","0","0","0","0","0"` + "\n",
	} {
		_, err := redisFigures(wrong)
		require.Error(t, err, wrong)
	}
}

// TestLostKeysAreReported has keys of a storage removed and changed before they are checked.
func TestLostKeysAreReported(t *testing.T) {
	rt, err := raylink.Start(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, rt.Close()) }()
	s, err := storagev1raylink.FindStorage(t.Context(), rt, runtime.Path(systemStorage))
	require.NoError(t, err)
	c := &raylinkStorage{rt: rt, work: reopenWork, handles: []*storagev1raylink.Storage{s}}
	const keys = 100
	require.NoError(t, c.fill(keys))
	require.NoError(t, c.checkKeys(t.Context(), keys))
	res, err := c.firstAnswer(t.Context())
	require.NoError(t, err)
	assert.Positive(t, res.Moment.Ended)

	_, err = s.Put(t.Context(), &storagev1.PutRequest{Key: filledKey(keys / 2), Value: one()})
	require.NoError(t, err)
	require.ErrorContains(t, c.checkKeys(t.Context(), keys), "instead of 50")
	for _, i := range []int{keys - 1, 0} {
		_, err = s.Delete(t.Context(), &storagev1.DeleteRequest{Key: filledKey(i)})
		require.NoError(t, err)
	}
	require.Error(t, c.checkKey(t.Context(), keys-1))
	_, err = c.firstAnswer(t.Context())
	require.ErrorContains(t, err, "the storage has lost")
}

// TestPrivateMemorySettles measures this process, with garbage and without.
func TestPrivateMemorySettles(t *testing.T) {
	defer collectOnSignal()()
	const size = 64 << 20
	garbage := bytes.Repeat([]byte{1}, size)
	with, err := private(os.Getpid())
	require.NoError(t, err)
	assert.Greater(t, with, uint64(len(garbage)))
	without, err := settledMemory(t.Context(), os.Getpid())
	require.NoError(t, err)
	assert.Less(t, without, with-size/2)
	_, err = private(0)
	require.Error(t, err)
}
