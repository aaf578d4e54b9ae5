package raylink_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

// probesBelow lists the probes below a parent, by nid.
func probesBelow(t *testing.T, parent interface {
	Children(ctx context.Context) ([]*nodev1.NodeRecord, error)
},
) map[string]nodev1.NodeState {
	t.Helper()
	children, err := parent.Children(patient(t))
	require.NoError(t, err)
	probes := make(map[string]nodev1.NodeState)
	for _, rec := range children {
		if rec.GetType() == "probe" {
			probes[rec.GetNid()] = rec.GetState()
		}
	}
	return probes
}

type parentNode interface {
	runtime.Parent
	Children(ctx context.Context) ([]*nodev1.NodeRecord, error)
}

// TestCanceledCreationLeavesNothing cancels creations at random moments. Afterwards the returned
// nodes are left, and no others.
func TestCanceledCreationLeavesNothing(t *testing.T) {
	t.Parallel()
	rt := system(t)
	other := joined(t, rt)
	far, err := contractv1raylink.ProbeFrom(other, create(t, rt).Ref().NodeRef())
	require.NoError(t, err)
	// Each row has a parent of its own, because rows run concurrently.
	apart := system(t)
	tests := []struct {
		name  string
		from  parentNode
		opts  []runtime.CreateOption
		times int
	}{
		{"in the process of Brain", rt, nil, 300},
		{"in a process that joined", joinedAs{joined(t, apart), apart}, []runtime.CreateOption{runtime.Here()}, 300},
		{"below a node of another process", far.Ref(), nil, 300},
		{"in processes of their own", create(t, driver).Ref(), []runtime.CreateOption{runtime.OwnProcess()}, 12},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			_, err := contractv1raylink.CreateProbe(patient(t), test.from, nil, test.opts...)
			require.NoError(t, err)
			took := time.Since(began)
			var made, failed int
			want := probesBelow(t, test.from)
			for i := range test.times {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(2*took))
				opts := append([]runtime.CreateOption{runtime.WithAlias(fmt.Sprintf("%s%d", strings.ReplaceAll(test.name, " ", "_"), i%7))}, test.opts...)
				if i%2 == 0 {
					opts = test.opts
				}
				p, err := contractv1raylink.CreateProbe(ctx, test.from, nil, opts...)
				cancel()
				if err == nil {
					made++
					if i%2 == 0 {
						want[p.Ref().NID()] = nodev1.NodeState_NODE_STATE_RUNNING
					} else {
						require.NoError(t, p.Ref().Stop(patient(t)))
					}
				} else {
					failed++
					require.Contains(t, []connect.Code{connect.CodeDeadlineExceeded, connect.CodeCanceled}, connect.CodeOf(err), "%v", err)
				}
				require.Equal(t, want, probesBelow(t, test.from), "creation number %d: %v", i, err)
			}
			t.Logf("%d made, %d failed", made, failed)
			require.Positive(t, failed, "no creation was canceled")
		})
	}
}

// joinedAs creates nodes by one runtime and lists them by another.
type joinedAs struct {
	*join.Runtime

	lister *raylink.Runtime
}

func (j joinedAs) Children(ctx context.Context) ([]*nodev1.NodeRecord, error) {
	return j.lister.Children(ctx)
}

// cutter forwards connections to an address, and cuts them after a given number of further bytes.
type cutter struct {
	net.Listener

	target string
	left   atomic.Int64 // bytes until the next cut; negative for never
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	all    sync.WaitGroup
}

func newCutter(t *testing.T, target string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &cutter{Listener: l, target: target, open: make(map[net.Conn]struct{})}
	c.left.Store(-1)
	c.all.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", target)
			if err != nil {
				_ = from.Close()
				continue
			}
			c.mu.Lock()
			c.open[from], c.open[to] = struct{}{}, struct{}{}
			c.mu.Unlock()
			for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
				c.all.Go(func() { c.forward(way[0], way[1]) })
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.cut()
		c.all.Wait()
	})
	return c
}

func (c *cutter) forward(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if left := c.left.Load(); left >= 0 && c.left.Add(-int64(n)) < 0 {
			c.left.Store(-1)
			c.cut()
			return
		}
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.Close()
	}
	clear(c.open)
}

// TestCreationWithALostResponseLeavesNothing cuts the connection to Brain at random bytes, also
// between a change and its response.
func TestCreationWithALostResponseLeavesNothing(t *testing.T) {
	t.Parallel()
	rt := system(t)
	link := newCutter(t, rt.Address())
	ctx := patient(t)
	other, err := join.Start(ctx, append([]join.Option{runtime.WithBrain(link.Addr().String()), runtime.WithData(t.TempDir())}, contract.Types()...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	var made, failed int
	want := make(map[string]nodev1.NodeState)
	for range 60 {
		link.left.Store(rand.Int64N(4000))
		p, err := contractv1raylink.CreateProbe(ctx, other, nil, runtime.Here())
		if err != nil {
			failed++
			continue
		}
		made++
		want[p.Ref().NID()] = nodev1.NodeState_NODE_STATE_RUNNING
	}
	link.left.Store(-1)
	t.Logf("%d made, %d failed", made, failed)
	require.Positive(t, failed, "no connection was cut during a creation")
	var got map[string]nodev1.NodeState
	if !assert.Eventually(t, func() bool {
		got = probesBelow(t, rt)
		return assert.ObjectsAreEqual(want, got)
	}, patience, 10*time.Millisecond) {
		require.Equal(t, want, got, "returned, and those that Brain has")
	}
}

func TestCloseEndsACreationWithItsProcess(t *testing.T) {
	t.Parallel()
	for name, deaf := range map[string]bool{"that honours its context": false, "that ignores its context": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := patient(t)
			// A runtime that has joined, whose children are processes of this binary.
			part, err := join.Start(ctx, append([]join.Option{runtime.WithBrain(driver.Address())}, contract.Types()...)...)
			require.NoError(t, err)
			created := make(chan error, 1)
			file := t.TempDir() + "/pid"
			go func() {
				_, err := contractv1raylink.CreateProbe(ctx, part, &contractv1.ProbeConfig{
					PidFile: file, Wait: durationpb.New(time.Hour), Deaf: deaf,
				}, runtime.OwnProcess())
				created <- err
			}()
			pid := pidIn(t, file)
			require.NoError(t, part.Close())
			assert.False(t, alive(pid), "Close returned before the process of the node had ended")
			err = <-created
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
			assert.Contains(t, err.Error(), "closing")
		})
	}
}

// pidIn waits until a process has written its id to a file.
func pidIn(t *testing.T, file string) int64 {
	t.Helper()
	var pid int64
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		_, err = fmt.Sscanln(string(text), &pid)
		return err == nil
	}, patience, time.Millisecond)
	return pid
}

func TestStopDuringSetUpDoesNotWaitForPendingCalls(t *testing.T) {
	t.Parallel()
	rt := system(t, raylink.WithDrain(time.Hour))
	other := joined(t, rt)
	for _, waiting := range []int{0, 3} {
		for name, from := range map[string]runtime.Finder{"here": rt, "elsewhere": other} {
			t.Run(fmt.Sprintf("%d calls wait, stopped from %s", waiting, name), func(t *testing.T) {
				t.Parallel()
				ctx := patient(t)
				p, err := contractv1raylink.CreateProbe(ctx, rt, &contractv1.ProbeConfig{Wait: durationpb.New(time.Hour)}, runtime.NoWait())
				require.NoError(t, err)
				p, err = contractv1raylink.ProbeFrom(from, p.Ref().NodeRef())
				require.NoError(t, err)
				var calls []*runtime.Future[*contractv1.AddResponse]
				for range waiting {
					calls = append(calls, p.AddAsync(ctx, nil))
				}
				require.NoError(t, p.Ref().Stop(ctx))
				for _, call := range calls {
					_, err := call.Get(ctx)
					require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
					assert.Contains(t, err.Error(), p.Ref().Path())
				}
				_, err = contractv1raylink.FindProbe(ctx, rt, runtime.NID(p.Ref().NID()))
				assert.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
			})
		}
	}
}

func TestStopDuringTheSetUpOfAProcess(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	file := t.TempDir() + "/pid"
	p, err := contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{PidFile: file, Wait: durationpb.New(time.Hour)}, runtime.NoWait())
	require.NoError(t, err)
	pid := pidIn(t, file)
	call := p.AddAsync(ctx, nil)
	require.NoError(t, p.Ref().Stop(ctx))
	_, err = call.Get(ctx)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	gone(t, pid)
}

func TestStoppedParentCancelsItsCreations(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	file := t.TempDir() + "/pid"
	call := p.SpawnAsync(ctx, &contractv1.SpawnRequest{Config: &contractv1.ProbeConfig{PidFile: file, Wait: durationpb.New(time.Hour)}})
	pid := pidIn(t, file)
	require.NoError(t, p.Ref().Stop(ctx))
	assert.False(t, alive(pid), "the child's process is still running")
	_, err := call.Get(ctx)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "is stopping")
}

func TestCreationReturnsTheFirstErrorInTime(t *testing.T) {
	t.Parallel()
	for name, placed := range map[string]runtime.CreateOption{"one process": runtime.ParentProcess(), "a process each": runtime.OwnProcess()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 3 {
				_, err := contractv1raylink.CreateProbeN(patient(t), create(t, driver).Ref(), 6, &contractv1.ProbeConfig{Wait: durationpb.New(time.Hour)}, placed,
					runtime.EachConfig(func(i int, cfg *contractv1.ProbeConfig) {
						if i == 3 {
							cfg.Wait, cfg.Fail = nil, "there is no level 9000"
						}
					}))
				require.Equal(t, connect.CodeUnknown, connect.CodeOf(err), "%v", err)
				require.Contains(t, err.Error(), "probe-3: there is no level 9000")
			}
		})
	}
}

func TestEachNodeOfACreationHasItsOwnConfiguration(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	other := joined(t, rt)
	base := &contractv1.ProbeConfig{Start: 100}
	each := runtime.EachConfig(func(i int, cfg *contractv1.ProbeConfig) { cfg.Start += int64(i) })
	for name, parent := range map[string]runtime.Parent{
		"in one process": rt, "below a node elsewhere": joinedRef(t, other, create(t, rt)), "in processes of their own": driver,
	} {
		probes, err := contractv1raylink.CreateProbeN(ctx, parent, 3, base, each)
		require.NoError(t, err, name)
		for i, p := range probes {
			sum, err := p.Add(ctx, nil)
			require.NoError(t, err)
			assert.Equal(t, int64(100+i), sum.GetSum(), name)
			require.NoError(t, p.Ref().Stop(ctx))
		}
	}
	assert.Equal(t, int64(100), base.GetStart(), "the caller's configuration was changed")
	_, err := contractv1raylink.CreateProbeN(ctx, rt, 2, nil, runtime.EachConfig(func(int, *contractv1.AddRequest) {}))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "ProbeConfig")
	_, err = contractv1raylink.CreateOtherN(ctx, rt, 2, each)
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
}

func joinedRef(t *testing.T, other *join.Runtime, p *contractv1raylink.Probe) runtime.Ref {
	t.Helper()
	far, err := contractv1raylink.ProbeFrom(other, p.Ref().NodeRef())
	require.NoError(t, err)
	return far.Ref()
}

func TestSetUpThatReturnsNoNodeFails(t *testing.T) {
	t.Parallel()
	for _, placed := range []runtime.CreateOption{runtime.ParentProcess(), runtime.OwnProcess()} {
		_, err := contractv1raylink.CreateProbe(patient(t), driver, &contractv1.ProbeConfig{Nothing: true}, placed)
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
		assert.Contains(t, err.Error(), "returned no error and a nil *contract.Probe")
	}
	rt, err := raylink.Start(t.Context(), raylink.WithData(t.TempDir()), contractv1raylink.OtherType(
		func(context.Context, *runtime.Node) (contractv1raylink.OtherNode, error) {
			return nil, nil //nolint:nilnil // the test is for this result
		}))
	require.NoError(t, err)
	defer func() { require.NoError(t, rt.Close()) }()
	_, err = contractv1raylink.CreateOther(patient(t), rt)
	require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), "setting up other-0")
}

// killedChildren is how many children TestKilledChildrenLeaveNoDirectories kills:
// RAYLINK_TEST_KILLED, or 8. Each is a process of this binary, which takes a third of a second with
// the race detector.
func killedChildren() int {
	if n, err := strconv.Atoi(os.Getenv("RAYLINK_TEST_KILLED")); err == nil {
		return n
	}
	return 8
}

func TestKilledChildrenLeaveNoDirectories(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	p := create(t, driver)
	var dirs []string
	var pids []int64
	for range killedChildren() {
		res, err := p.Spawn(ctx, nil)
		require.NoError(t, err)
		child, err := contractv1raylink.ProbeFrom(driver, res.GetChildren()[0])
		require.NoError(t, err)
		dirs = append(dirs, child.Ref().NodeRef().GetHost().GetDirectory())
		pids = append(pids, pidOf(t, child))
	}
	for _, dir := range dirs {
		require.DirExists(t, dir)
	}
	for _, pid := range pids {
		require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
	}
	for _, dir := range dirs {
		require.Eventually(t, func() bool {
			_, err := os.Stat(dir)
			return os.IsNotExist(err)
		}, patience, 5*time.Millisecond, "%s was left behind", dir)
	}
	_, err := p.Add(ctx, nil)
	require.NoError(t, err, "their parent must continue to run")
}
