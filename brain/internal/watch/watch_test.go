package watch

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

func record(nid string, revision uint64) *nodev1.NodeRecord {
	return &nodev1.NodeRecord{Nid: nid, Revision: revision, State: nodev1.NodeState_NODE_STATE_RUNNING}
}

func dead(nid string, revision uint64) *nodev1.NodeRecord {
	return &nodev1.NodeRecord{Nid: nid, Revision: revision, State: nodev1.NodeState_NODE_STATE_DEAD, Cause: "a test"}
}

func receive(t *testing.T, w *Watcher) ([]string, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	records, synced, err := w.Next(ctx)
	require.NoError(t, err)
	var list []string
	for _, rec := range records {
		list = append(list, fmt.Sprintf("%s@%d", rec.GetNid(), rec.GetRevision()))
	}
	return list, synced
}

func silent(t *testing.T, w *Watcher) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _, err := w.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestWatcherGetsCurrentRecordsAndThenChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(Options{})
		w := h.NewWatcher()
		defer w.Close()
		require.NoError(t, w.Add([]*nodev1.NodeRecord{record("a", 1), record("b", 2)}))
		list, _ := receive(t, w)
		require.Equal(t, []string{"a@1", "b@2"}, list)
		h.Publish([]*nodev1.NodeRecord{record("c", 3), record("b", 4)})
		list, _ = receive(t, w)
		require.Equal(t, []string{"b@4"}, list)
		w.Remove([]string{"b"})
		h.Publish([]*nodev1.NodeRecord{record("b", 5)})
		silent(t, w)
	})
}

func TestSlowWatcherGetsTheNewestOfEachNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(Options{})
		w := h.NewWatcher()
		defer w.Close()
		require.NoError(t, w.All([]*nodev1.NodeRecord{record("a", 1), record("b", 2)}))
		for revision := range uint64(10_000) {
			h.Publish([]*nodev1.NodeRecord{record("b", 3+revision)})
		}
		h.Publish([]*nodev1.NodeRecord{record("c", 20_000)})
		list, synced := receive(t, w)
		require.Equal(t, []string{"a@1", "b@10002", "c@20000"}, list)
		require.True(t, synced)
		h.Publish([]*nodev1.NodeRecord{dead("b", 30_000)})
		list, synced = receive(t, w)
		require.Equal(t, []string{"b@30000"}, list)
		require.False(t, synced)
	})
}

func TestEmptyTreeIsSyncedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewHub(Options{}).NewWatcher()
		defer w.Close()
		require.NoError(t, w.All(nil))
		list, synced := receive(t, w)
		require.Empty(t, list)
		require.True(t, synced)
		require.NoError(t, w.All(nil))
		silent(t, w)
	})
}

func TestBigTreeIsSentInBatches(t *testing.T) {
	h := NewHub(Options{BatchBytes: 100, MaxPending: 1})
	w := h.NewWatcher()
	defer w.Close()
	var tree []*nodev1.NodeRecord
	for i := range 200 {
		tree = append(tree, record(strconv.Itoa(i), uint64(i)))
	}
	require.NoError(t, w.All(tree))
	got, batches := 0, 0
	for synced := false; !synced; batches++ {
		var list []string
		list, synced = receive(t, w)
		got += len(list)
	}
	require.Equal(t, 200, got)
	require.Greater(t, batches, 10)
}

func TestWatcherTooFarBehindEndsAlone(t *testing.T) {
	h := NewHub(Options{MaxPending: 10, MaxNids: 20})
	slow, quick := h.NewWatcher(), h.NewWatcher()
	defer slow.Close()
	defer quick.Close()
	require.NoError(t, slow.All(nil))
	require.NoError(t, quick.Add([]*nodev1.NodeRecord{record("15", 0)}))
	for i := range 20 {
		h.Publish([]*nodev1.NodeRecord{record(strconv.Itoa(i), 1)})
	}
	_, _, err := slow.Next(t.Context())
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	list, _ := receive(t, quick)
	require.Equal(t, []string{"15@1"}, list)

	var many []*nodev1.NodeRecord
	for i := range 20 {
		many = append(many, record(strconv.Itoa(i), 1))
	}
	require.ErrorContains(t, quick.Add(many), "the bound is 20")
}

func TestNidOfADeadNodeIsNotFollowed(t *testing.T) {
	h := NewHub(Options{})
	w := h.NewWatcher()
	defer w.Close()
	require.NoError(t, w.Add([]*nodev1.NodeRecord{record("a", 1), dead("b", 2)}))
	h.Publish([]*nodev1.NodeRecord{dead("a", 3)})
	list, _ := receive(t, w)
	require.Equal(t, []string{"a@3", "b@2"}, list)
	require.Empty(t, w.nids)
	require.Empty(t, h.byNid)
}

func TestClosedHubEndsItsWatchers(t *testing.T) {
	h := NewHub(Options{})
	before := h.NewWatcher()
	h.Close(connect.NewError(connect.CodeUnavailable, "closing"))
	after := h.NewWatcher()
	for _, w := range []*Watcher{before, after} {
		_, _, err := w.Next(t.Context())
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		w.Close()
		w.Close()
	}
	require.Empty(t, h.open)
}

// TestWatchersEndWithTheNewest publishes, adds, removes and receives at random. A watcher that then
// receives everything queued has the newest record of each node that it follows, and never received
// an older one after a newer one.
func TestWatchersEndWithTheNewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := NewHub(Options{BatchBytes: rapid.IntRange(1, 100).Draw(t, "batch")})
		w := h.NewWatcher()
		defer w.Close()
		current := make(map[string]*nodev1.NodeRecord)
		followed, known := make(map[string]bool), make(map[string]uint64)
		revision, all := uint64(0), false
		next := func() bool {
			records, synced, err := w.next()
			require.NoError(t, err)
			for _, rec := range records {
				require.GreaterOrEqual(t, rec.GetRevision(), known[rec.GetNid()])
				known[rec.GetNid()] = rec.GetRevision()
			}
			return len(records) > 0 || synced
		}
		nid := rapid.Map(rapid.IntRange(0, 5), strconv.Itoa)
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				revision++
				rec := record(nid.Draw(t, "nid"), revision)
				current[rec.GetNid()] = rec
				h.Publish([]*nodev1.NodeRecord{rec})
			},
			"add": func(t *rapid.T) {
				n := nid.Draw(t, "nid")
				if current[n] != nil {
					followed[n] = true
					require.NoError(t, w.Add([]*nodev1.NodeRecord{current[n]}))
				}
			},
			"remove": func(t *rapid.T) {
				n := nid.Draw(t, "nid")
				delete(followed, n)
				w.Remove([]string{n})
			},
			"all": func(*rapid.T) {
				all = true
				var list []*nodev1.NodeRecord
				for _, rec := range current {
					list = append(list, rec)
				}
				require.NoError(t, w.All(list))
			},
			"receive": func(*rapid.T) { next() },
			"": func(*rapid.T) {
				require.Len(t, w.pending, len(w.queue))
				require.LessOrEqual(t, len(w.queue), 6)
			},
		})
		for next() {
		}
		for n, rec := range current {
			if all || followed[n] {
				require.Equal(t, rec.GetRevision(), known[n], "%s", n)
			}
		}
	})
}
