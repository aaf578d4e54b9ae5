package brain

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain/internal/tree"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/invariants"
)

func openQuietly(t testing.TB) *Brain {
	t.Helper()
	b, err := Open(Options{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func joinMachines(t testing.TB, b *Brain, count int) {
	t.Helper()
	require.NoError(t, b.JoinMachines(count))
}

// TestHostThatDiesWhileItAttachesKeepsNoMachine has a host whose death is recorded before what it
// declares: nothing would remove the machine later.
func TestHostThatDiesWhileItAttachesKeepsNoMachine(t *testing.T) {
	b := openQuietly(t)
	host := keeperHost(1)
	session, err := b.leases.Attach(t.Context(), host)
	require.NoError(t, err)
	require.NoError(t, b.leases.Report(t.Context(), host.GetId(), "killed"))
	_, attachErr := b.attach(t.Context(), session, &brainv1.AttachRequest{
		Host: host, Machine: &machinev1.Machine{Id: host.GetMachine(), Name: "one"},
	})
	res, err := b.Service().ListMachines(t.Context(), &brainv1.ListMachinesRequest{})
	require.NoError(t, err)
	require.Empty(t, res.GetMachines(), "the host is dead, and its machine is in the system")
	require.ErrorContains(t, attachErr, "was declared dead")
}

func TestManyMachines(t *testing.T) {
	b := openQuietly(t)
	joinMachines(t, b, 5000)
	res, err := b.Service().ListMachines(t.Context(), &brainv1.ListMachinesRequest{})
	require.NoError(t, err)
	require.Len(t, res.GetMachines(), 5000)
	_, err = b.Service().Register(t.Context(), &brainv1.RegisterRequest{
		Type: "worker", Count: 5000, Place: &nodev1.Place{Strategy: nodev1.PlaceStrategy_PLACE_STRATEGY_ONE_PER_MACHINE},
	})
	require.NoError(t, err)
}

// TestTwentyThousandRegistrationsOnAThousandMachines has concurrent callers register until the
// machines are full of them.
func TestTwentyThousandRegistrationsOnAThousandMachines(t *testing.T) {
	b := openQuietly(t)
	joinMachines(t, b, 1000)
	callers, each := 16, 1250
	if invariants.RaceEnabled {
		each = 125 // the race detector is a hundred times as slow here
	}
	total := callers * each
	place := &nodev1.Place{Resources: map[string]int64{"cpu": 128_000 * 1000 / int64(total), "memory": 1 << 30}}
	begin := time.Now()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				if _, err := b.Service().Register(context.Background(), &brainv1.RegisterRequest{Type: "worker", Service: "a.v1.A", Place: place}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%.0f registrations/s", float64(total)/time.Since(begin).Seconds())
	res, err := b.Service().ListMachines(t.Context(), &brainv1.ListMachinesRequest{})
	require.NoError(t, err)
	for _, use := range res.GetMachines() {
		require.EqualValues(t, total/1000, use.GetNodes(), "%s has another number of nodes", use.GetMachine().GetName())
		require.EqualValues(t, 128_000, use.GetUsed()["cpu"])
	}
}

// BenchmarkRegister registers nodes on a Brain in memory, and reports what a node uses of that
// beside its entry in the store.
func BenchmarkRegister(b *testing.B) {
	for _, bench := range []struct {
		name     string
		machines int
		place    *nodev1.Place
	}{
		{"unplaced", 0, nil},
		{"parent", 1000, &nodev1.Place{Resources: map[string]int64{"cpu": 1}}},
		{"emptiest", 1000, &nodev1.Place{Resources: map[string]int64{"cpu": 1}, Strategy: nodev1.PlaceStrategy_PLACE_STRATEGY_SPREAD}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			brain := openQuietly(b)
			joinMachines(b, brain, bench.machines)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				_, err := brain.Service().Register(context.Background(), &brainv1.RegisterRequest{
					Type: "worker", Service: "a.v1.A", Place: bench.place, Launcher: keeperHost(i % 1000),
				})
				if err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkNodeInMemory is what a node with an allocation and a host uses in the tree, after it was
// registered or loaded.
func BenchmarkNodeInMemory(b *testing.B) {
	const nodes, machines = 100_000, 1000
	for b.Loop() {
		registered, loaded := nodesInMemory(b, nodes, machines)
		b.ReportMetric(registered, "B/registered")
		b.ReportMetric(loaded, "B/loaded")
		b.ReportMetric(0, "ns/op")
	}
}

// nodesInMemory returns the bytes that each node uses.
func nodesInMemory(b *testing.B, nodes, machines int) (registered, loaded float64) {
	b.Helper()
	root := &nodev1.NodeRecord{Nid: "00000000-0000-4000-8000-000000000000", Name: "BRAIN", Path: "BRAIN"}
	disk := make(map[string][]byte)
	made := tree.New(root, tree.Limits{Requests: 1})
	commit := func(change func(x *tree.Txn)) {
		x := made.Begin(time.Now())
		change(x)
		x.Expire()
		writes, err := x.Writes()
		require.NoError(b, err)
		for _, w := range writes {
			if disk[w.Key] = w.Value; w.Value == nil {
				delete(disk, w.Key)
			}
		}
		x.Merge()
	}
	commit(func(x *tree.Txn) {
		for i := range machines {
			require.NoError(b, x.Keep(keeperHost(i), &machinev1.Machine{
				Id: keeperHost(i).GetMachine(), Name: fmt.Sprint("machine-", i), Resources: map[string]int64{"cpu": 128_000, "memory": 512 << 30},
			}))
		}
	})
	for first := 0; first < nodes; first += 1000 {
		commit(func(x *tree.Txn) {
			for i := range 1000 {
				at := keeperHost((first + i) % machines)
				records, err := x.Register(&brainv1.RegisterRequest{
					Type: "worker", Service: "demo.v1.Worker", Launcher: at, RequestId: tree.NewUUID(),
					Place: &nodev1.Place{Resources: map[string]int64{"cpu": 500, "memory": 1 << 30}, On: at.GetMachine()},
				})
				require.NoError(b, err)
				_, err = x.Update([]*brainv1.Change{{Nid: records[0].GetNid(), Incarnation: 1, State: nodev1.NodeState_NODE_STATE_RUNNING, Host: at}})
				require.NoError(b, err)
			}
		})
	}
	with := heap()
	runtime.KeepAlive(made)
	made = nil
	without := heap()
	again, err := tree.Load(root, tree.Limits{}, func(yield func(tree.Write, error) bool) {
		for key, value := range disk {
			if !yield(tree.Write{Key: key, Value: value}, nil) {
				return
			}
		}
	})
	require.NoError(b, err)
	reloaded := heap()
	runtime.KeepAlive(again)
	runtime.KeepAlive(disk)
	return float64(with-without) / float64(nodes), float64(reloaded-without) / float64(nodes)
}

// heap is the size of what is reachable.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
