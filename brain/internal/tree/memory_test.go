package tree

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// heap returns the size of what is live, in bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // pooled objects are freed by the second one
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestNodeTakesAtMostOneKiB holds what a tree promises for a hundred thousand nodes: those of a
// machine share what they have in common, although each request has strings of its own.
func TestNodeTakesAtMostOneKiB(t *testing.T) {
	const machines, each, bound = 100, 100, 1 << 10
	tree := New(&nodev1.NodeRecord{Nid: NewUUID()}, Limits{Requests: machines})
	now := time.Now()
	hosts := make([]*nodev1.HostInfo, machines)
	for i := range hosts {
		x := tree.Begin(now)
		hosts[i] = &nodev1.HostInfo{Id: NewUUID(), Address: "10.0.0.1:7000", Machine: fmt.Sprint("machine-", i)}
		require.NoError(t, x.Keep(hosts[i], &machinev1.Machine{
			Id: hosts[i].GetMachine(), Name: hosts[i].GetMachine(), Resources: map[string]int64{"cpu": 1000 * each},
		}))
		x.Merge()
	}
	before := heap()
	for i := range machines * each {
		x := tree.Begin(now)
		_, err := x.Register(&brainv1.RegisterRequest{
			Type: strings.Clone("learner"), Service: strings.Clone("demo.v1.Learner"), RequestId: NewUUID(),
			Launcher: proto.CloneOf(hosts[i%machines]), Place: &nodev1.Place{Resources: map[string]int64{"cpu": 1000}},
		})
		require.NoError(t, err)
		x.Expire()
		x.Merge()
	}
	size := (heap() - before) / (machines * each)
	t.Logf("%d bytes a node", size)
	require.Less(t, size, uint64(bound))
	runtime.KeepAlive(tree)
}

func TestAllocationsAreSharedOnlyIfEqual(t *testing.T) {
	s := newShared()
	of := func(machine string, resources map[string]int64) *nodev1.Allocation {
		return s.allocation(&nodev1.Allocation{Machine: machine, Name: machine, Resources: resources})
	}
	one := of("a", map[string]int64{"cpu": 1, "memory": 2})
	require.Same(t, one, of("a", map[string]int64{"cpu": 1, "memory": 2}))
	require.EqualValues(t, 3, of("a", map[string]int64{"cpu": 1, "memory": 3}).GetResources()["memory"])
	require.EqualValues(t, 2, of("a", map[string]int64{"cpu": 2, "memory": 2}).GetResources()["cpu"])
	require.Equal(t, "b", of("b", map[string]int64{"cpu": 1, "memory": 2}).GetMachine())
	require.Empty(t, of("a", nil).GetResources())
	gpus := []*nodev1.Allocation{{Machine: "a", Gpus: []uint32{0}}, {Machine: "a", Gpus: []uint32{1}}}
	require.NotSame(t, s.allocation(gpus[0]), s.allocation(gpus[1]))
}

func TestCopyOfARecordHasEveryField(t *testing.T) {
	rec := &nodev1.NodeRecord{
		Nid: "a", Name: "b", Path: "c", Type: "d", Index: 1, Parent: "e", Service: "f", Alias: "g", Incarnation: 2,
		State: nodev1.NodeState_NODE_STATE_RUNNING, Host: &nodev1.HostInfo{Id: "h"}, Attributes: map[string]*nodev1.Value{"i": {}},
		Created: timestamppb.New(time.Unix(1, 0)), Revision: 3, Cause: "j", Restarts: true, Allocation: &nodev1.Allocation{Machine: "k"},
	}
	set := 0
	rec.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { set++; return true })
	require.Equal(t, rec.ProtoReflect().Descriptor().Fields().Len(), set, "the test leaves a field unset")
	require.True(t, proto.Equal(rec, copyOf(rec)))
}
