package raylink_test

import (
	"context"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/raylink/raylink"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

const patience = contract.Patience

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// alive reports whether a process exists.
func alive(pid int64) bool { return syscall.Kill(int(pid), 0) == nil }

func pidOf(t *testing.T, p *contractv1raylink.Probe) int64 {
	t.Helper()
	res, err := p.Who(patient(t), nil)
	require.NoError(t, err)
	return res.GetPid()
}

func gone(t *testing.T, pids ...int64) {
	t.Helper()
	for _, pid := range pids {
		require.Eventually(t, func() bool { return !alive(pid) }, patience, 5*time.Millisecond, "process %d still exists", pid)
	}
}

// freeze stops a process by SIGSTOP, and returns when it is stopped.
func freeze(t *testing.T, pid int64) {
	t.Helper()
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(int(pid), syscall.SIGCONT) })
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		_, state, ok := strings.Cut(string(stat), ") ")
		return ok && strings.HasPrefix(state, "T")
	}, patience, time.Millisecond)
}

func TestCallersOfAKilledNodeGetTheCauseAtOnce(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	pid := pidOf(t, p)
	call := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "x"})
	stream, err := p.Chat(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&contractv1.ChatRequest{Text: "hello"}))
	_, err = stream.Receive()
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
	_, err = call.Get(ctx)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), p.Ref().Path())
	assert.Contains(t, err.Error(), "signal 9")
	_, err = stream.Receive()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "signal 9")
	_, err = p.Add(ctx, nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "signal 9")
	_, err = contractv1raylink.FindProbe(ctx, driver, runtime.Path(p.Ref().Path()))
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "signal 9")
	assert.Equal(t, nodev1.NodeState_NODE_STATE_DEAD, p.Ref().State())
	gone(t, pid)
}

func TestChildrenEndWithAKilledParent(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	res, err := p.Spawn(ctx, &contractv1.SpawnRequest{Count: 2})
	require.NoError(t, err)
	pids := []int64{pidOf(t, p)}
	var child *contractv1raylink.Probe
	for _, ref := range res.GetChildren() {
		child, err = contractv1raylink.ProbeFrom(driver, ref)
		require.NoError(t, err)
		pids = append(pids, pidOf(t, child))
	}
	require.NoError(t, syscall.Kill(int(pids[0]), syscall.SIGKILL))
	gone(t, pids...)
	_, err = child.Add(ctx, nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
}

func TestEndedNotifiesItsWaiters(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	other := joined(t, rt)
	ends := map[string]func(here *contractv1raylink.Probe) error{
		"stopped": func(here *contractv1raylink.Probe) error { return here.Ref().Stop(ctx) },
		"the well ran dry": func(here *contractv1raylink.Probe) error {
			_, err := here.Crash(ctx, &contractv1.CrashRequest{Task: "the well ran dry"})
			return err
		},
	}
	for name, end := range ends {
		here := create(t, rt)
		far, err := contractv1raylink.FindProbe(ctx, other, runtime.NID(here.Ref().NID()))
		require.NoError(t, err)
		impatient, cancel := context.WithCancel(ctx)
		cancel()
		for where, ref := range map[string]runtime.Ref{"here": here.Ref(), "elsewhere": far.Ref()} {
			assert.Equal(t, connect.CodeCanceled, connect.CodeOf(ref.Ended(impatient)), "%s, %s", name, where)
		}
		ended := make(chan error, 2)
		for _, ref := range []runtime.Ref{here.Ref(), far.Ref()} {
			go func() { ended <- ref.Ended(ctx) }()
		}
		require.NoError(t, end(here))
		for range 2 {
			require.NoError(t, <-ended, name)
		}
		assert.Contains(t, far.Ref().Record().GetCause(), name)
		require.NoError(t, far.Ref().Ended(ctx), "called after the end")
	}
	err := contractv1raylink.NewLocalProbe(contractv1raylink.UnimplementedProbeNode{}).Ref().Ended(ctx)
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "%v", err)
}

func TestExitOfANodesProcessIsItsDeath(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	_, err := p.Crash(ctx, nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "code 3")
}

func TestTaskThatFailsEndsItsNode(t *testing.T) {
	t.Parallel()
	rt := system(t)
	for _, placed := range []runtime.CreateOption{runtime.ParentProcess(), runtime.OwnProcess()} {
		ctx := patient(t)
		var parent runtime.Parent = rt
		if placed != nil {
			parent = driver
		}
		p := create(t, parent, placed)
		_, err := p.Crash(ctx, &contractv1.CrashRequest{Task: "the well ran dry"})
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			_, err = p.Add(ctx, nil)
			return err != nil
		}, patience, time.Millisecond)
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
		require.Eventually(t, func() bool {
			_, err = contractv1raylink.FindProbe(ctx, driver, runtime.NID(p.Ref().NID()))
			return connect.CodeOf(err) == connect.CodeNotFound
		}, patience, 5*time.Millisecond)
		assert.Contains(t, err.Error(), "the well ran dry")
	}
}

// TestNodeEndsWhateverItsErrorSays has errors that can't be stored as they are. The node's end must
// be recorded nevertheless, and other nodes must not be affected.
func TestNodeEndsWhateverItsErrorSays(t *testing.T) {
	t.Parallel()
	rt := system(t)
	for name, parent := range map[string]*raylink.Runtime{"one process": rt, "own process": driver} {
		ctx := patient(t)
		alias := strings.ReplaceAll("unreadable in its "+name, " ", "_")
		p, err := contractv1raylink.CreateProbe(ctx, parent, nil, runtime.WithAlias(alias))
		require.NoError(t, err, name)
		_, err = p.Crash(ctx, &contractv1.CrashRequest{Task: "caf" + contract.NotUTF8 + strings.Repeat("x", 8<<10)})
		require.NoError(t, err, name)
		require.NoError(t, p.Ref().Ended(ctx), name)
		require.Eventually(t, func() bool {
			_, err = contractv1raylink.FindProbe(ctx, parent, runtime.NID(p.Ref().NID()))
			return connect.CodeOf(err) == connect.CodeNotFound
		}, patience, 5*time.Millisecond, name)
		require.ErrorContains(t, err, "failed: caf\uFFFDx", name)
		_, err = contractv1raylink.CreateProbe(ctx, parent, &contractv1.ProbeConfig{Fail: "caf" + contract.NotUTF8}, runtime.WithAlias(alias))
		require.ErrorContains(t, err, "caf", name)
		again, err := contractv1raylink.CreateProbe(ctx, parent, nil, runtime.WithAlias(alias))
		require.NoError(t, err, name)

		// An attribute that can't be stored is refused alone.
		_, err = contractv1raylink.CreateProbe(ctx, parent, nil, runtime.WithAttribute("k", "caf\xff"))
		assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s: %v", name, err)
		_, err = contractv1raylink.CreateProbe(ctx, parent, nil, runtime.WithAlias("caf\xff"))
		assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s: %v", name, err)
		_, err = again.Add(ctx, nil)
		require.NoError(t, err, name)
		require.NoError(t, again.Ref().Stop(ctx), name)
	}
}

func TestSetUpThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	before, err := driver.Children(patient(t))
	require.NoError(t, err)
	known := make(map[string]bool)
	for _, rec := range before {
		known[rec.GetNid()] = true
	}
	tests := []struct {
		name   string
		config *contractv1.ProbeConfig
		limit  time.Duration
		code   connect.Code
		says   string
	}{
		{"by an error", &contractv1.ProbeConfig{Fail: "no paper"}, patience, connect.CodeUnknown, "no paper"},
		{"by its process's end", &contractv1.ProbeConfig{Exit: true}, patience, connect.CodeUnavailable, "the probe leaves"},
		{"by taking too long", &contractv1.ProbeConfig{Wait: durationpb.New(time.Hour)}, 2 * time.Second, connect.CodeDeadlineExceeded, "setting up probe-"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), test.limit)
			defer cancel()
			alias := strings.ReplaceAll("failing "+test.name, " ", "_")
			_, err := contractv1raylink.CreateProbe(ctx, driver, test.config, runtime.WithAlias(alias))
			require.Equal(t, test.code, connect.CodeOf(err), "%v", err)
			require.Contains(t, err.Error(), test.says)
			_, err = contractv1raylink.FindProbe(patient(t), driver, runtime.Alias(alias))
			require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
		})
	}
}

func TestCreateNIsAllOrNothing(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	all, err := contractv1raylink.CreateProbeN(ctx, rt, 50, nil)
	require.NoError(t, err)
	for i, p := range all {
		assert.Equal(t, fmt.Sprintf("probe-%d", i), p.Ref().Path())
	}
	_, err = contractv1raylink.CreateProbeN(ctx, rt, 10, &contractv1.ProbeConfig{Fail: "none of us"})
	require.Error(t, err)
	assert.Contains(t, err.Error(), "none of us")
	children, err := rt.Children(ctx)
	require.NoError(t, err)
	probes := 0
	for _, rec := range children {
		if rec.GetType() == "probe" {
			probes++
		}
	}
	assert.Equal(t, 50, probes)
	// Indices are never reused.
	next := create(t, rt)
	assert.Equal(t, "probe-60", next.Ref().Path())
}

func TestChildCallsItsParentDuringItsCreation(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	// The child's own children make no calls. The parent's turn is released while it waits, so Add
	// runs meanwhile.
	spawn := p.SpawnAsync(ctx, &contractv1.SpawnRequest{Config: &contractv1.ProbeConfig{Wait: durationpb.New(300 * time.Millisecond), Children: 1}})
	var during int
	for {
		_, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
		require.NoError(t, err)
		select {
		case <-spawn.Done():
		default:
			during++
			continue
		}
		break
	}
	res, err := spawn.Get(ctx)
	require.NoError(t, err)
	assert.Positive(t, during, "the parent's mailbox did not serve while it waited")
	child, err := contractv1raylink.ProbeFrom(driver, res.GetChildren()[0])
	require.NoError(t, err)
	children, err := child.Ref().Children(ctx)
	require.NoError(t, err)
	require.Len(t, children, 1)
	assert.Equal(t, child.Ref().Path()+"/probe-0", children[0].GetPath())
}

func TestHandleAsParent(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	child, err := contractv1raylink.CreateProbe(ctx, p.Ref(), &contractv1.ProbeConfig{Start: 40})
	require.NoError(t, err)
	assert.Equal(t, p.Ref().Path()+"/probe-0", child.Ref().Path())
	sum, err := child.Add(ctx, &contractv1.AddRequest{By: 2})
	require.NoError(t, err)
	assert.Equal(t, int64(42), sum.GetSum())
	assert.NotEqual(t, pidOf(t, p), pidOf(t, child))
	pids := []int64{pidOf(t, p), pidOf(t, child)}
	require.NoError(t, p.Ref().Stop(ctx))
	gone(t, pids...)
	_, err = contractv1raylink.FindProbe(ctx, driver, runtime.Path(child.Ref().Path()))
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
	_, err = contractv1raylink.CreateProbe(ctx, p.Ref(), nil)
	assert.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), p.Ref().Path())
}

func TestStopDrains(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	held := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "x"})
	waiting := p.AddAsync(ctx, &contractv1.AddRequest{By: 1})
	require.Eventually(t, func() bool {
		log, err := p.Log(ctx, nil)
		return err == nil && len(log.GetBlocked()) == 1
	}, patience, time.Millisecond)
	stopped := make(chan error, 1)
	go func() { stopped <- p.Ref().Stop(ctx) }()
	require.Eventually(t, func() bool { return p.Ref().State() == nodev1.NodeState_NODE_STATE_STOPPING }, patience, time.Millisecond)
	_, err := p.Add(ctx, nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "is stopping")
	// Release is a method too, and no longer accepted: the call ends with its context.
	held.Cancel()
	res, err := waiting.Get(ctx)
	require.NoError(t, err, "a queued call was not drained")
	assert.Equal(t, int64(1), res.GetSum())
	require.NoError(t, <-stopped)
}

func TestAttributesAreReadWithoutACall(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	other := joined(t, rt)
	p, err := contractv1raylink.CreateProbe(ctx, rt, nil, runtime.WithAttribute("colour", "red"), runtime.WithAlias("the_one"))
	require.NoError(t, err)
	far, err := contractv1raylink.FindProbe(ctx, other, runtime.Alias("the_one"))
	require.NoError(t, err)
	colour, ok := runtime.Attribute[string](far.Ref(), "colour")
	assert.True(t, ok)
	assert.Equal(t, "red", colour)
	_, ok = runtime.Attribute[int](far.Ref(), "colour")
	assert.False(t, ok, "a string is no int")
	assert.Equal(t, "the_one", p.Ref().Alias())
}

func TestAttributeChangesReachHandles(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	var node *runtime.Node
	rt, err := raylink.Start(ctx, runtime.WithData(t.TempDir()), contractv1raylink.OtherType(
		func(ctx context.Context, n *runtime.Node) (contractv1raylink.OtherNode, error) {
			node = n
			return contractv1raylink.UnimplementedOtherNode{}, runtime.SetAttribute(ctx, n, "epoch", 1)
		}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.Close()) })
	_, err = contractv1raylink.CreateOther(ctx, rt, runtime.WithAttribute("colour", "red"))
	require.NoError(t, err)
	far, err := contractv1raylink.FindOther(ctx, joined(t, rt), runtime.Path("other-0"))
	require.NoError(t, err)
	epoch, ok := runtime.Attribute[int](far.Ref(), "epoch")
	require.True(t, ok)
	assert.Equal(t, 1, epoch)
	_, err = far.Ref().Ping(ctx) // the handle follows the node from here on
	require.NoError(t, err)
	require.NoError(t, runtime.SetAttribute(ctx, node, "epoch", 2))
	require.Eventually(t, func() bool {
		epoch, _ := runtime.Attribute[int](far.Ref(), "epoch")
		return epoch == 2
	}, patience, time.Millisecond)
	colour, _ := runtime.Attribute[string](far.Ref(), "colour")
	assert.Equal(t, "red", colour)
}

func TestPathsRelativeToANode(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	_, err := contractv1raylink.FindProbe(ctx, driver, runtime.Path("./probe-0"))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "a driver is not a node: %v", err)

	var node *runtime.Node
	rt, err := raylink.Start(ctx, append(contract.Types()[:1], runtime.WithData(t.TempDir()), contractv1raylink.OtherType(
		func(_ context.Context, n *runtime.Node) (contractv1raylink.OtherNode, error) {
			node = n
			return contractv1raylink.UnimplementedOtherNode{}, nil
		}))...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.Close()) })
	p := create(t, rt)
	asking, err := contractv1raylink.CreateOther(ctx, p.Ref())
	require.NoError(t, err)
	child := create(t, asking.Ref())
	for path, want := range map[string]*contractv1raylink.Probe{"./probe-0": child, "..": p, "../../probe-0": p, "../other-0/probe-0": child, "probe-0": p} {
		found, err := contractv1raylink.FindProbe(ctx, node, runtime.Path(path))
		require.NoError(t, err, path)
		assert.Equal(t, want.Ref().NID(), found.Ref().NID(), path)
	}
	_, err = contractv1raylink.FindProbe(ctx, node, runtime.Path("../../../x-0"))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	parent, err := child.Ref().Parent(ctx)
	require.NoError(t, err)
	assert.Equal(t, asking.Ref().Path(), parent.Path())
	parent, err = p.Ref().Parent(ctx)
	require.NoError(t, err)
	assert.True(t, parent.IsZero(), "the root's children have no parent")
}

func TestBadInputGetsOneClearError(t *testing.T) { //nolint:tparallel // the last check is for the effects of all of them
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	lean := joined(t, rt)
	p, err := contractv1raylink.CreateProbe(ctx, rt, nil, runtime.WithAlias("taken"))
	require.NoError(t, err)
	tests := []struct {
		name string
		do   func() error
		code connect.Code
		says []string
	}{
		{"unknown path", func() error {
			_, err := contractv1raylink.FindProbe(ctx, lean, runtime.Path("probe-0/learner-9"))
			return err
		}, connect.CodeNotFound, []string{"probe-0/learner-9"}},
		{"unknown alias", func() error {
			_, err := contractv1raylink.FindProbe(ctx, lean, runtime.Alias("tken"))
			return err
		}, connect.CodeNotFound, []string{"tken", "taken"}},
		{"unknown nid", func() error {
			_, err := contractv1raylink.FindProbe(ctx, lean, runtime.NID("5a8f5f9e-0000-4000-8000-000000000000"))
			return err
		}, connect.CodeNotFound, []string{"5a8f5f9e"}},
		{"zero where", func() error {
			_, err := contractv1raylink.FindProbe(ctx, lean, runtime.Where{})
			return err
		}, connect.CodeInvalidArgument, []string{"Path, Alias or NID"}},
		{"duplicate alias", func() error {
			_, err := contractv1raylink.CreateProbe(ctx, lean, nil, runtime.WithAlias("taken"))
			return err
		}, connect.CodeAlreadyExists, []string{"taken", "probe-0"}},
		{"alias of many", func() error {
			_, err := contractv1raylink.CreateProbeN(ctx, lean, 2, nil, runtime.WithAlias("both"))
			return err
		}, connect.CodeInvalidArgument, []string{"both"}},
		{"alias that looks like a name", func() error {
			_, err := contractv1raylink.CreateProbe(ctx, lean, nil, runtime.WithAlias("probe-7"))
			return err
		}, connect.CodeInvalidArgument, []string{"probe-7"}},
		{"wrong service", func() error {
			_, err := contractv1raylink.FindOther(ctx, lean, runtime.Alias("taken"))
			return err
		}, connect.CodeFailedPrecondition, []string{"contract.v1.Probe", "contract.v1.Other"}},
		{"zero handle", func() error {
			_, err := (&contractv1raylink.Probe{}).Add(ctx, nil)
			return err
		}, connect.CodeFailedPrecondition, []string{"zero value"}},
		{"message over the limit", func() error {
			far, err := contractv1raylink.ProbeFrom(lean, p.Ref().NodeRef())
			require.NoError(t, err)
			_, err = far.Echo(ctx, &contractv1.EchoRequest{Payload: make([]byte, 65<<20)})
			return err
		}, connect.CodeResourceExhausted, []string{"67108864"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.do()
			require.Equal(t, test.code, connect.CodeOf(err), "%v", err)
			for _, part := range test.says {
				assert.Contains(t, err.Error(), part)
			}
		})
	}
	// None of it had an effect.
	res, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
	require.NoError(t, err)
	assert.Equal(t, int64(1), res.GetSum())
}

func TestUnknownTypeIsReported(t *testing.T) {
	t.Parallel()
	rt := system(t)
	bare, err := joinBare(t, rt)
	require.NoError(t, err)
	_, err = contractv1raylink.CreateProbe(patient(t), bare, nil)
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), `"probe"`)
}

func TestOutputAppearsUnderTheNodesPath(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	var mu sync.Mutex
	var lines []string
	rt := system(t, runtime.WithOutput(func(path, line string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, path+" | "+line)
	}))
	p := create(t, rt, runtime.OwnProcess())
	_, err := p.Spawn(ctx, &contractv1.SpawnRequest{Config: &contractv1.ProbeConfig{Print: "hello from below"}})
	require.NoError(t, err)
	want := p.Ref().Path() + "/probe-0 | hello from below"
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(strings.Join(lines, "\n"), want)
	}, patience, 5*time.Millisecond)
}

// TestStoppedProcess stops a node's process, and continues it after it was declared dead.
func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t, runtime.WithLease(600*time.Millisecond))
	p := create(t, rt, runtime.OwnProcess())
	pid := pidOf(t, p)
	brief := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "x"})
	freeze(t, pid)
	_, err := brief.Get(ctx)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	require.Eventually(t, func() bool {
		_, err = contractv1raylink.FindProbe(ctx, rt, runtime.NID(p.Ref().NID()))
		return connect.CodeOf(err) == connect.CodeNotFound
	}, patience, 5*time.Millisecond, "the silence was not detected")
	assert.Contains(t, err.Error(), p.Ref().Path())
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGCONT))
	// The process learns that it was declared dead, and ends.
	gone(t, pid)
	next := create(t, rt)
	_, err = next.Add(ctx, nil)
	require.NoError(t, err)
}

// TestBriefStopIsTolerated stops a process for less than the lease.
func TestBriefStopIsTolerated(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	pid := pidOf(t, p)
	freeze(t, pid)
	call := p.AddAsync(ctx, &contractv1.AddRequest{By: 2})
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := p.Add(short, nil)
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGCONT))
	res, err := call.Get(ctx)
	require.NoError(t, err)
	assert.Equal(t, int64(2), res.GetSum())
}

// living reports whether a process exists and is not a zombie.
func living(pid int64) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, ok := strings.Cut(string(stat), ") ")
	return ok && !strings.HasPrefix(state, "Z")
}

// TestDescendantsEndWithANodesProcess starts processes that detach from their parent in several
// ways, and ends the node in several ways.
func TestDescendantsEndWithANodesProcess(t *testing.T) {
	t.Parallel()
	if goruntime.GOOS != "linux" {
		t.Skip("processes that have left their group are found on Linux only")
	}
	commands := map[string]string{
		"a process":                     `echo $$ >$FILE; exec sleep 1000`,
		"one that ignores SIGTERM":      `trap "" TERM; echo $$ >$FILE; while :; do sleep 1; done`,
		"one in a session of its own":   `setsid sh -c 'echo $$ >$FILE; exec sleep 1000'`,
		"a daemon":                      `(setsid sh -c 'echo $$ >$FILE; cd /; exec sleep 1000 </dev/null >/dev/null 2>&1' &) ; exit`,
		"one with no environment":       `env -i sh -c "echo \$\$ >$FILE; exec sleep 1000"`,
		"a daemon with no environment":  `(env -i setsid sh -c "echo \$\$ >$FILE; cd /; exec sleep 1000 </dev/null >/dev/null 2>&1" &) ; exit`,
		"a stubborn one in a session":   `setsid sh -c 'trap "" TERM HUP; echo $$ >$FILE; while :; do sleep 1; done'`,
		"one that is started by a pipe": `sh -c 'echo $$ >$FILE; exec sleep 1000' | cat`,
	}
	ends := map[string]func(ctx context.Context, t *testing.T, p *contractv1raylink.Probe){
		"stopped": func(ctx context.Context, t *testing.T, p *contractv1raylink.Probe) {
			t.Helper()
			require.NoError(t, p.Ref().Stop(ctx))
		},
		"killed": func(_ context.Context, t *testing.T, p *contractv1raylink.Probe) {
			t.Helper()
			require.NoError(t, syscall.Kill(int(pidOf(t, p)), syscall.SIGKILL))
		},
		"exited": func(ctx context.Context, t *testing.T, p *contractv1raylink.Probe) {
			t.Helper()
			_, err := p.Crash(ctx, &contractv1.CrashRequest{Quietly: true})
			require.Error(t, err)
		},
	}
	for what, command := range commands {
		for how, end := range ends {
			t.Run(what+", node "+how, func(t *testing.T) {
				t.Parallel()
				ctx := patient(t)
				file := t.TempDir() + "/pid"
				p, err := contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{
					Command: []string{"sh", "-c", "FILE=" + file + "; export FILE; " + command},
				})
				require.NoError(t, err)
				pid := pidIn(t, file)
				end(ctx, t, p)
				require.Eventually(t, func() bool { return !living(pid) }, patience, 5*time.Millisecond, "process %d still runs", pid)
			})
		}
	}
}

func TestProcessThatExitsByItselfIsReported(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p, err := contractv1raylink.CreateProbe(ctx, driver, nil, runtime.WithAlias("leaves_quietly"))
	require.NoError(t, err)
	waiting := p.BlockAsync(ctx, &contractv1.BlockRequest{Name: "x"})
	other, err := contractv1raylink.ProbeFrom(driver, p.Ref().NodeRef())
	require.NoError(t, err)
	_, err = contractv1raylink.CreateProbe(ctx, p.Ref(), nil) // a child ends with it
	require.NoError(t, err)
	waiting.Cancel()
	_, err = p.Crash(ctx, &contractv1.CrashRequest{Quietly: true})
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "exited with code 0 by itself")
	_, err = other.Add(ctx, nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "exited with code 0 by itself")
	_, err = contractv1raylink.FindProbe(ctx, driver, runtime.NID(p.Ref().NID()))
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "exited with code 0 by itself")
	again, err := contractv1raylink.CreateProbe(ctx, driver, nil, runtime.WithAlias("leaves_quietly"))
	require.NoError(t, err, "its alias must be free")
	require.NoError(t, again.Ref().Stop(ctx))
	assert.Equal(t, nodev1.NodeState_NODE_STATE_DEAD, p.Ref().State())
}

// TestNodeThatStopsItselfDoesNotWaitForItself stops nodes from their own methods, which a stop
// waits for. The drain time is longer than the test's time limit.
func TestNodeThatStopsItselfDoesNotWaitForItself(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	part, err := join.Start(ctx, append(contract.Types(), runtime.WithBrain(driver.Address()), runtime.WithDrain(time.Hour))...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, part.Close()) })
	for _, placed := range []runtime.CreateOption{runtime.ParentProcess(), runtime.OwnProcess()} {
		p := create(t, part, placed)
		_, err := p.Crash(ctx, &contractv1.CrashRequest{Stop: "."})
		require.NoError(t, err)
		require.NoError(t, p.Ref().Ended(ctx))
		// From a child.
		parent := create(t, part, placed)
		child, err := contractv1raylink.CreateProbe(ctx, parent.Ref(), nil, placed)
		require.NoError(t, err)
		_, err = child.Crash(ctx, &contractv1.CrashRequest{Stop: ".."})
		require.NoError(t, err)
		require.NoError(t, parent.Ref().Ended(ctx))
		require.NoError(t, child.Ref().Ended(ctx))
	}
}

// TestDeadlineErrorHasTheStageOfTheCall checks over every way that the error has the node, the
// method, and whether the call was queued or ran.
func TestDeadlineErrorHasTheStageOfTheCall(t *testing.T) {
	t.Parallel()
	for name, open := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			way := open(t)
			peer := way.Open(t)
			p := peer.Probe
			soon := func() context.Context {
				ctx, cancel := context.WithTimeout(patient(t), 50*time.Millisecond)
				t.Cleanup(cancel)
				return ctx
			}
			// On a busy machine the node's response may be too late, so the call is repeated.
			// Connect's own
			// clients never wait for it.
			says := func(method, stage string, call func() error) {
				t.Helper()
				for until := time.Now().Add(patience); ; {
					err := call()
					require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.Contains(t, err.Error(), "contract.v1.Probe/"+method)
					if way.Foreign {
						return
					}
					require.Contains(t, err.Error(), peer.Path)
					if strings.Contains(err.Error(), stage) {
						return
					}
					require.True(t, time.Now().Before(until), "no error of %s has the stage %q: %v", method, stage, err)
				}
			}
			says("Block", "while it ran", func() error {
				_, err := p.Block(soon(), &contractv1.BlockRequest{Name: "sync"})
				return err
			})
			says("Block", "while it ran", func() error {
				_, err := p.BlockAsync(soon(), &contractv1.BlockRequest{Name: "async"}).Get(patient(t))
				return err
			})
			if way.Foreign {
				return
			}
			held := p.BlockAsync(patient(t), &contractv1.BlockRequest{Name: "held"})
			require.Eventually(t, func() bool {
				log, err := p.Log(patient(t), nil)
				return err == nil && slices.Contains(log.GetBlocked(), "held")
			}, patience, time.Millisecond)
			const waited = "while it waited in the node's mailbox; it has not run"
			says("Add", waited, func() error {
				_, err := p.Add(soon(), nil)
				return err
			})
			says("Add", waited, func() error {
				_, err := p.AddAsync(soon(), nil).Get(patient(t))
				return err
			})
			held.Cancel()
		})
	}
}
