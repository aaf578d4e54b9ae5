package raylink_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/tunnel"
)

// recorder keeps the events that it is notified of.
type recorder struct {
	mu     sync.Mutex // guards events
	events []any
}

func (r *recorder) add(event any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event)
}

// listener records every kind of event. A cycle is recorded by its error.
func (r *recorder) listener() runtime.EventListener {
	return runtime.EventListener{
		NodeStarted:      func(e runtime.NodeStartedInfo) { r.add(e) },
		NodeDied:         func(e runtime.NodeDiedInfo) { r.add(e) },
		NodeRestarted:    func(e runtime.NodeRestartedInfo) { r.add(e) },
		ConnectionOpened: func(e runtime.ConnectionInfo) { r.add(e) },
		ConnectionLost:   func(e runtime.ConnectionLostInfo) { r.add(e) },
		CallRefused:      func(e runtime.CallRefusedInfo) { r.add(e) },
		CycleRefused:     func(e runtime.CallRefusedInfo) { r.add(e.Err) },
	}
}

// eventOf waits for an event of a type.
func eventOf[E any](t *testing.T, r *recorder, is func(E) bool) E {
	t.Helper()
	var found E
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, event := range r.events {
			if e, ok := event.(E); ok && is(e) {
				found = e
				return true
			}
		}
		return false
	}, patience, time.Millisecond, "no %T", found)
	return found
}

// placements are where a node may live.
var placements = map[string]runtime.CreateOption{"in process": runtime.ParentProcess(), "child process": runtime.OwnProcess()}

func TestEventsOfNodes(t *testing.T) {
	t.Parallel()
	for name, placement := range placements {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r recorder
			rt := system(t, raylink.WithEventListener(r.listener()))
			p := create(t, rt, placement)
			pid := int(pidOf(t, p))
			started := eventOf(t, &r, func(e runtime.NodeStartedInfo) bool { return e.NID == p.Ref().NID() })
			assert.Equal(t, runtime.EventNode{NID: p.Ref().NID(), Path: p.Ref().Path(), Type: "probe", Incarnation: 1, PID: pid}, started.EventNode)
			assert.Positive(t, started.Duration)
			assert.WithinDuration(t, time.Now(), started.Time, patience)

			require.NoError(t, p.Ref().Stop(patient(t)))
			died := eventOf(t, &r, func(e runtime.NodeDiedInfo) bool { return e.NID == p.Ref().NID() })
			assert.Equal(t, started.EventNode, died.EventNode)
			assert.Equal(t, "stopped", died.Reason)
			assert.Positive(t, died.Lifetime)

			// A node whose set-up fails has never started.
			_, err := contractv1raylink.CreateProbe(patient(t), rt, &contractv1.ProbeConfig{Fail: "no"}, placement, runtime.WithAlias("spoilt"))
			require.Error(t, err)
			require.NoError(t, rt.Close())
			deaths := 0
			for _, event := range r.events {
				if e, ok := event.(runtime.NodeDiedInfo); ok && strings.HasPrefix(e.Path, "probe-") {
					assert.Equal(t, p.Ref().Path(), e.Path)
					deaths++
				}
			}
			assert.Equal(t, 1, deaths, "each death is reported once")
		})
	}
}

func TestEventOfAKilledNode(t *testing.T) {
	t.Parallel()
	var r, other recorder
	rt := system(t, raylink.WithEventListener(r.listener()))
	caller := joined(t, rt, runtime.WithEventListener(other.listener()))
	p := create(t, rt, runtime.OwnProcess())
	far, err := contractv1raylink.ProbeFrom(caller, p.Ref().NodeRef())
	require.NoError(t, err)
	pid := pidOf(t, far)
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
	for _, at := range []*recorder{&r, &other} {
		died := eventOf(t, at, func(e runtime.NodeDiedInfo) bool { return e.NID == p.Ref().NID() })
		assert.Contains(t, died.Reason, "signal 9")
		assert.Equal(t, int(pid), died.PID)
	}
	_, err = far.Add(patient(t), nil)
	require.Error(t, err)
	_, err = p.Add(patient(t), nil)
	require.Error(t, err)
}

func TestEventsOfConnections(t *testing.T) {
	t.Parallel()
	var here, there recorder
	rt := system(t, raylink.WithEventListener(here.listener()))
	p := create(t, rt)
	other, err := join.Start(t.Context(), append(contract.Types(), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()),
		runtime.WithEventListener(there.listener()))...)
	require.NoError(t, err)
	far, err := contractv1raylink.ProbeFrom(other, p.Ref().NodeRef())
	require.NoError(t, err)
	_, err = far.Add(patient(t), nil)
	require.NoError(t, err)
	opened := eventOf(t, &there, func(e runtime.ConnectionInfo) bool { return !e.Incoming && e.Network == "unix" })
	assert.Equal(t, p.Ref().Record().GetHost().GetId(), opened.Peer)
	toBrain := eventOf(t, &there, func(e runtime.ConnectionInfo) bool { return !e.Incoming && e.Network == "tcp" })
	assert.Equal(t, rt.Address(), toBrain.Address)
	accepted := eventOf(t, &here, func(e runtime.ConnectionInfo) bool { return e.Incoming && e.Network == "unix" })
	assert.NotEmpty(t, accepted.Peer)

	require.NoError(t, other.Close())
	lost := eventOf(t, &here, func(e runtime.ConnectionLostInfo) bool { return e.Peer == accepted.Peer && e.Network == "unix" })
	assert.Equal(t, accepted, lost.ConnectionInfo)
	require.Error(t, lost.Err)
	assert.Positive(t, lost.Duration)
	closed := eventOf(t, &there, func(e runtime.ConnectionLostInfo) bool { return e.Network == "unix" })
	require.ErrorIs(t, closed.Err, tunnel.ErrClosed)

	// A child's process is a peer like any other.
	child := create(t, rt, runtime.OwnProcess())
	pid := pidOf(t, child)
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
	eventOf(t, &here, func(e runtime.ConnectionLostInfo) bool {
		return !e.Incoming && e.Peer == child.Ref().Record().GetHost().GetId()
	})
}

func TestEventsOfRefusedCalls(t *testing.T) {
	t.Parallel()
	var r recorder
	rt := system(t, raylink.WithEventListener(r.listener()))
	p := create(t, rt)
	far, err := contractv1raylink.ProbeFrom(joined(t, rt), p.Ref().NodeRef())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(patient(t))
	turn := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "turn"})
	require.Eventually(t, func() bool {
		log, err := p.Log(ctx, nil)
		return err == nil && len(log.GetBlocked()) > 0
	}, patience, time.Millisecond)
	for name, handle := range map[string]*contractv1raylink.Probe{"local": p, "tunnel": far} {
		var calls []*runtime.Future[*contractv1.AddResponse]
		for range 65 { // one more than the schema's max_pending
			calls = append(calls, handle.AddAsync(ctx, nil))
		}
		_, err := runtime.Gather(ctx, calls...)
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err), name)
		refused := eventOf(t, &r, func(e runtime.CallRefusedInfo) bool { return connect.CodeOf(e.Err) == connect.CodeResourceExhausted })
		assert.Equal(t, p.Ref().NID(), refused.NID)
		assert.Equal(t, p.Ref().Path(), refused.Path)
		assert.Equal(t, "contract.v1.Probe/Add", refused.Method)
		assert.Zero(t, refused.Caller)
		r.mu.Lock()
		r.events = nil
		r.mu.Unlock()
	}
	cancel()
	_, _ = turn.Get(patient(t))

	p = create(t, rt)
	for _, async := range []bool{false, true} {
		_, err = p.Relay(patient(t), &contractv1.RelayRequest{Next: &contractv1.Reach{Node: p.Ref().NodeRef()}, What: "add", Async: async})
		require.ErrorContains(t, err, "would wait for itself")
		cycle := eventOf(t, &r, func(e error) bool { return strings.Contains(e.Error(), "would wait for itself") })
		assert.Contains(t, cycle.Error(), p.Ref().Path()+" contract.v1.Probe/Relay")
		r.mu.Lock()
		r.events = nil
		r.mu.Unlock()
	}
}

// TestEventListenersAreUserCode has listeners that panic, end their goroutine, call back and block.
func TestEventListenersAreUserCode(t *testing.T) {
	t.Parallel()
	var r recorder
	var log bytes.Buffer
	var rt *raylink.Runtime
	ready := make(chan struct{})
	found := make(chan error, 100)
	rt = system(t, raylink.WithLogger(slog.New(slog.NewTextHandler(&log, nil))),
		raylink.WithEventListener(runtime.EventListener{NodeStarted: func(runtime.NodeStartedInfo) { panic("oh dear") }}),
		raylink.WithEventListener(runtime.EventListener{NodeStarted: func(runtime.NodeStartedInfo) { goruntime.Goexit() }}),
		raylink.WithEventListener(runtime.EventListener{NodeStarted: func(e runtime.NodeStartedInfo) {
			<-ready
			p, err := contractv1raylink.FindProbe(context.Background(), rt, runtime.NID(e.NID))
			if err == nil {
				_, err = p.Add(context.Background(), nil)
			}
			found <- err
		}}),
		raylink.WithEventListener(r.listener()))
	close(ready)
	p := create(t, rt)
	eventOf(t, &r, func(e runtime.NodeStartedInfo) bool { return e.NID == p.Ref().NID() })
	require.Eventually(t, func() bool { return <-found == nil }, patience, time.Millisecond, "a listener may call the node")

	// One that blocks delays nothing but the end, and that by a second.
	blocks := make(chan struct{})
	defer close(blocks)
	stuck, err := raylink.Start(t.Context(), append(contract.Types(), raylink.WithData(t.TempDir()), raylink.WithEventListener(
		runtime.EventListener{NodeStarted: func(runtime.NodeStartedInfo) { <-blocks }}))...)
	require.NoError(t, err)
	for range 3 {
		_, err := create(t, stuck).Add(patient(t), nil)
		require.NoError(t, err)
	}
	require.ErrorContains(t, stuck.Close(), "an event listener has not returned within 1s")
}

func TestEventsAreLogged(t *testing.T) {
	t.Parallel()
	name := t.TempDir() + "/events.log"
	file, err := os.Create(name)
	require.NoError(t, err)
	defer file.Close() //nolint:errcheck // only read afterwards
	rt := system(t, raylink.WithEventListener(runtime.LogEvents(slog.New(slog.NewTextHandler(file, nil)))))
	p := create(t, rt)
	_, err = p.Relay(patient(t), &contractv1.RelayRequest{Next: &contractv1.Reach{Node: p.Ref().NodeRef()}, What: "add"})
	require.Error(t, err)
	require.NoError(t, rt.Close())
	logged, err := os.ReadFile(name)
	require.NoError(t, err)
	for _, text := range []string{
		`level=INFO msg="node started" node=probe-0`, `level=INFO msg="node died" node=probe-0`, "reason=stopped",
		`level=WARN msg="cycle refused" node=probe-0 method=contract.v1.Probe/Add caller=probe-0`,
	} {
		assert.Contains(t, string(logged), text)
	}
}
