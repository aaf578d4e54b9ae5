package main

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/services/replay"
)

// replaysMode is the variable that makes a program that joins a Brain create so many replays. The
// first one has rows, tables with items, an area, and an insert that waits.
const replaysMode = "RAYLINK_TEST_REPLAYS"

// createReplays creates replays.
func createReplays(ctx context.Context, rt *join.Runtime, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	config := &replayv1.ReplayConfig{
		Capacity: 8,
		Columns: []*tensorv1.Column{
			replay.Column[float32]("state", 8), replay.Column[int32]("action"), {Name: "last", Dtype: tensorv1.DataType_DATA_TYPE_BOOL},
		},
		Tables: []*replayv1.TableConfig{
			replay.Table("per", replay.Prioritized(0.6), replay.MaxItems(100), replay.SamplesPerInsert(8, 2, 100)),
			replay.Table("queue", replay.FIFO(), replay.Queue(1)),
		},
	}
	for i := range n {
		handle, err := replayv1raylink.CreateReplay(ctx, rt, config)
		if err == nil && i == 0 {
			err = fillReplay(ctx, handle)
		}
		if err != nil {
			return err
		}
		config.Tables = nil
	}
	return nil
}

// fillReplay writes six rows, creates items, and leaves an area and an insert that waits.
func fillReplay(ctx context.Context, handle *replayv1raylink.Replay) error {
	c, err := replay.OpenClient(ctx, handle)
	if err != nil {
		return err
	}
	batch, err := c.NewBatch(6)
	if err != nil {
		return err
	}
	state, err := replay.Values[float32](batch, "state")
	if err != nil {
		return err
	}
	for i := range state {
		state[i] = float32(i) / 4
	}
	action, err := replay.Values[int32](batch, "action")
	if err != nil {
		return err
	}
	copy(action, []int32{1, 0, -1, 1, 0, 1})
	batch.Bytes(2)[5] = 1
	if _, err := c.Writer().Append(ctx, batch); err != nil {
		return err
	}
	item := func(first uint64, length uint32, priority float64) *replayv1.Item {
		return &replayv1.Item{Runs: []*replayv1.Run{{First: first, Length: length}}, Priority: &priority}
	}
	if _, err := handle.CreateItems(ctx, &replayv1.CreateItemsRequest{
		Table: "per", Items: []*replayv1.Item{item(0, 1, 0), item(1, 3, 2.5), item(4, 2, 0)}, Caller: "actor-0",
	}); err != nil {
		return err
	}
	if _, err := handle.SampleItems(ctx, &replayv1.SampleItemsRequest{Table: "per", Items: 4, Caller: "learner-0"}); err != nil {
		return err
	}
	if _, err := c.Reader(nil).Hold(ctx, 2); err != nil {
		return err
	}
	waiting := &replayv1.CreateItemsRequest{Table: "queue", Items: []*replayv1.Item{item(4, 1, 1), item(5, 1, 1)}, Caller: "actor-8", WaitMs: 10_000}
	go func() {
		for {
			_, _ = handle.CreateItems(ctx, waiting) // until the program is ended
		}
	}()
	for {
		res, err := handle.Inspect(ctx, &replayv1.InspectRequest{Table: "queue"})
		if err != nil || len(res.GetTables()[0].GetBlocked()) > 0 {
			return err
		}
	}
}

// TestStatsSayWhyItemsAreNotSaved has the state of a replay's file.
func TestStatsSayWhyItemsAreNotSaved(t *testing.T) {
	saved := &replayv1.FileStatus{Items: "/data/steps.items", SavedNs: uint64(150 * time.Millisecond)}
	assert.Equal(t, "saved 150ms ago in /data/steps.items", describeItems(saved).text())
	saved.SavedNs, saved.Problem = uint64(90*time.Second), "no space left on device"
	assert.Equal(t, "not saved for 1m30s in /data/steps.items: no space left on device", describeItems(saved).text())
	text, err := json.Marshal(describeItems(saved))
	require.NoError(t, err)
	assert.JSONEq(t, `{"file":"/data/steps.items","saved_seconds":90,"problem":"no space left on device"}`, string(text))
	assert.Empty(t, describeItems(nil).text())
}

// TestReplaysOfASystem lists several replays, one of which is in a process that does not run.
func TestReplaysOfASystem(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	driver := startDriver(t, b, replaysMode+"=2")
	stdout, stderr, exit := b.raylink(t, "replay", "list", "-o", "json")
	require.Zero(t, exit, stderr)
	var list struct {
		Replays []replayInfo `json:"replays"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &list))
	require.Len(t, list.Replays, 2)
	assert.Equal(t, "replay-0", list.Replays[0].Node)
	assert.Equal(t, []string{"per", "queue"}, list.Replays[0].Tables)
	assert.Equal(t, uint64(6), list.Replays[0].Ring.Rows)
	assert.Equal(t, []holderInfo{{int64(driver.Process.Pid), 2, list.Replays[0].Ring.Holders[0].Age}}, list.Replays[0].Ring.Holders)
	assert.Equal(t, uint64(8), list.Replays[1].Ring.Capacity)
	assert.Empty(t, list.Replays[1].Tables)

	_, stderr, exit = b.raylink(t, "replay", "stats")
	assert.Equal(t, exitUsage, exit)
	assert.Contains(t, stderr, "the system has 2 replays: choose one of replay-0, replay-1 by --replay")
	stdout, _, exit = b.raylink(t, "replay", "items", "per", "--replay", "replay-1")
	assert.Equal(t, exitCall+3, exit, stdout)
	stdout, stderr, exit = b.raylink(t, "replay", "stats", "per", "--replay", "replay-0", "-o", "json")
	require.Zero(t, exit, stderr)
	var stats struct {
		Tables []tableInfo `json:"tables"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &stats))
	require.Len(t, stats.Tables, 1)
	assert.Equal(t, []float64{0, 0, 0, 0, 0, 0, 2.5}, stats.Tables[0].Priorities)
	stdout, _, _ = b.raylink(t, "__complete", "replay", "limit", "--replay", "replay-0", "")
	assert.Contains(t, stdout, "per\t3 items\nqueue\t1 items\n")
	stdout, _, _ = b.raylink(t, "__complete", "replay", "stats", "--replay", "")
	assert.Contains(t, stdout, "replay-1\treplay, running")

	pid := int(b.records(t)["replay-1"].GetHost().GetPid())
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	stdout, stderr, exit = b.raylink(t, "replay", "list")
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	require.Zero(t, exit, stderr)
	assert.Equal(t, 1, strings.Count(stdout, "it does not answer within 5s"), stdout)
}
