package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/cockroachdb/pebble/v2" //nolint:depguard // to write a directory as a later version would; programs that only join are others
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

// member joins a Brain from the test's process.
func member(t *testing.T, b *brain, opts ...join.Option) *join.Runtime {
	t.Helper()
	opts = append(append([]join.Option{runtime.WithBrain(b.address), runtime.WithData(t.TempDir())}, contract.Types()...), opts...)
	rt, err := join.Start(t.Context(), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, rt.Close()) })
	return rt
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// records are the nodes that `raylink tree` shows, by path.
func (b *brain) records(t *testing.T) map[string]*nodev1.NodeRecord {
	t.Helper()
	stdout, stderr, exit := b.raylink(t, "tree", "-o", "json")
	require.Zero(t, exit, stderr)
	var tree struct {
		Nodes []json.RawMessage `json:"nodes"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &tree))
	records := make(map[string]*nodev1.NodeRecord)
	for _, raw := range tree.Nodes {
		rec := &nodev1.NodeRecord{}
		require.NoError(t, unmarshalJSON(raw, rec))
		records[rec.GetPath()] = rec
	}
	return records
}

// TestBrainIsKilledUnderCalls kills Brain while nodes call each other, and starts it again.
func TestBrainIsKilledUnderCalls(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--lease", "2s")
	startDriver(t, b)
	ctx := patient(t)
	rt := member(t, b)
	chief, err := contractv1raylink.FindProbe(ctx, rt, runtime.Alias("chief?#%41"))
	require.NoError(t, err)
	other, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path("probe-1"))
	require.NoError(t, err)
	own, err := contractv1raylink.CreateProbe(ctx, rt, nil)
	require.NoError(t, err)
	store, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	require.NoError(t, err)
	kv := storage.New(store)
	_, err = storage.Put(ctx, kv, "kept", "through Brain's death")
	require.NoError(t, err)
	before := b.records(t)

	// Calls continue meanwhile: they go from process to process, and need no Brain.
	var calls atomic.Int64
	var wg sync.WaitGroup
	var calling atomic.Bool
	calling.Store(true)
	wg.Go(func() {
		for calling.Load() {
			_, err := chief.Relay(ctx, &contractv1.RelayRequest{Next: &contractv1.Reach{Node: other.Ref().NodeRef()}, What: "add"})
			if err == nil {
				_, err = storage.Add(ctx, kv, "calls", 1)
			}
			if err != nil {
				t.Errorf("a call between nodes, or to Brain's own, failed: %v", err)
				return
			}
			calls.Add(1)
		}
	})
	advance := func() {
		t.Helper()
		now := calls.Load()
		require.Eventually(t, func() bool { return calls.Load() > now+20 || t.Failed() }, patience, time.Millisecond)
	}
	advance()
	b.end(syscall.SIGKILL)
	advance()
	_, err = contractv1raylink.FindProbe(ctx, rt, runtime.Path("probe-1"))
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	_, stderr, exit := b.raylink(t, "tree")
	require.Equal(t, exitNoBrain, exit)
	require.Contains(t, stderr, "no process answers at "+b.address)

	b = startBrain(t, b.data, b.address, "--lease", "2s")
	advance()
	// All hosts reattach: one that does not within a lease would be declared dead.
	require.Eventually(t, func() bool {
		_, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path("probe-1"))
		return err == nil
	}, patience, 5*time.Millisecond)
	fresh, err := contractv1raylink.CreateProbe(ctx, rt, nil)
	require.NoError(t, err, "new nodes can be made again")
	assert.Equal(t, "probe-3", fresh.Ref().Path(), "indices go on")
	beyond := time.Now().Add(3 * time.Second) // a lease, and the time to notice its end
	require.Eventually(t, func() bool { return time.Now().After(beyond) }, patience, 10*time.Millisecond)
	calling.Store(false)
	wg.Wait()

	after := b.records(t)
	for path, was := range before {
		is := after[path]
		if !assert.NotNil(t, is, "%s was lost", path) {
			continue
		}
		assert.Equal(t, was.GetNid(), is.GetNid(), path)
		assert.Equal(t, nodev1.NodeState_NODE_STATE_RUNNING, is.GetState(), path)
		assert.Equal(t, was.GetAlias(), is.GetAlias(), path)
		if path != nodename.RootPath {
			assert.Equal(t, was.GetCreated().AsTime(), is.GetCreated().AsTime(), path+" was made once")
			assert.Equal(t, was.GetIncarnation(), is.GetIncarnation(), path)
			assert.Equal(t, was.GetHost().GetPid(), is.GetHost().GetPid(), path)
		}
	}
	kept, err := storage.Get[string](ctx, kv, "kept")
	require.NoError(t, err)
	assert.Equal(t, "through Brain's death", kept)
	assert.NotContains(t, b.stderr.String(), "died")
	_, err = own.Add(ctx, nil)
	require.NoError(t, err)
}

// TestBrainEndsInOrder terminates Brain, which ends its own nodes, and starts it again.
// Hosts drop their connections to a stopped Brain and retry with backoff: once it continues, they
// need time to reattach.
func TestHealthyHostsSurviveABrainThatWasAway(t *testing.T) {
	const lease = 500 * time.Millisecond
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--lease", lease.String())
	var nodes []*contractv1raylink.Probe
	for range 8 {
		p, err := contractv1raylink.CreateProbe(patient(t), member(t, b, runtime.WithLease(lease)), nil, runtime.ParentProcess())
		require.NoError(t, err)
		nodes = append(nodes, p)
	}
	// pass waits for that many leases.
	pass := func(leases int) {
		t.Helper()
		beyond := time.Now().Add(time.Duration(leases) * lease)
		require.Eventually(t, func() bool { return time.Now().After(beyond) }, patience, 10*time.Millisecond)
	}
	for name, away := range map[string]func(){
		"stopped": func() {
			require.NoError(t, b.Process.Signal(syscall.SIGSTOP))
			pass(6)
			require.NoError(t, b.Process.Signal(syscall.SIGCONT))
		},
		"killed": func() {
			b.end(syscall.SIGKILL)
			pass(6)
			b = startBrain(t, b.data, b.address, "--lease", lease.String())
		},
	} {
		away()
		pass(4)
		for _, p := range nodes {
			rec := b.records(t)[p.Ref().Path()]
			require.Equal(t, nodev1.NodeState_NODE_STATE_RUNNING, rec.GetState(), "%s: %s: %s", name, p.Ref().Path(), rec.GetCause())
		}
	}
}

func TestBrainEndsInOrder(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			b := startBrain(t, t.TempDir(), "127.0.0.1:0")
			before := b.records(t)
			state := b.end(sig)
			assert.Zero(t, state.ExitCode(), "%v: %s", state, b.stderr)
			assert.Empty(t, b.stderr.String())
			for _, path := range []string{"storage-0", "ps-0"} {
				gone(t, before[path].GetHost().GetPid())
			}
			b = startBrain(t, b.data, b.address)
			after := b.records(t)
			for _, path := range []string{"storage-0", "ps-0"} {
				assert.Equal(t, before[path].GetNid(), after[path].GetNid(), path)
				assert.Equal(t, before[path].GetIncarnation()+1, after[path].GetIncarnation(), path)
				assert.Equal(t, nodev1.NodeState_NODE_STATE_RUNNING, after[path].GetState(), path)
			}
			assert.Contains(t, after, "ps-0/officer-1")
			assert.NotContains(t, after, "ps-0/officer-0")
		})
	}
}

// TestBrainTakesItsNodesOverAndEndsThem has a Brain supervise nodes that a killed one has launched.
func TestBrainTakesItsNodesOverAndEndsThem(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	before := b.records(t)
	b.end(syscall.SIGKILL)
	b = startBrain(t, b.data, b.address)
	after := b.records(t)
	for _, path := range []string{"storage-0", "ps-0", "ps-0/officer-0"} {
		assert.Equal(t, before[path].GetHost().GetPid(), after[path].GetHost().GetPid(), path)
	}
	state := b.end(syscall.SIGTERM)
	assert.Zero(t, state.ExitCode(), "%v: %s", state, b.stderr)
	for _, path := range []string{"storage-0", "ps-0"} {
		gone(t, before[path].GetHost().GetPid())
	}
}

// TestBrainMovesToAnotherMachine starts Brain on another machine with the same data: its own nodes
// are placed there, because theirs is gone.
func TestBrainMovesToAnotherMachine(t *testing.T) {
	b := startBrainOn(t, "one", t.TempDir(), "127.0.0.1:0")
	for _, path := range []string{"storage-0", "ps-0"} {
		assert.Equal(t, "one", b.records(t)[path].GetAllocation().GetMachine(), path)
	}
	b.end(syscall.SIGTERM)
	b = startBrainOn(t, "two", b.data, b.address)
	for path, rec := range b.records(t) {
		if path == "storage-0" || path == "ps-0" {
			assert.Equal(t, "two", rec.GetAllocation().GetMachine(), path)
			assert.Equal(t, "two", rec.GetHost().GetMachine(), path)
			assert.EqualValues(t, 2, rec.GetIncarnation(), path)
		}
	}
}

// TestStorageIsStartedAgain kills one of Brain's own nodes, while the Brain that launched it runs
// and while none runs.
func TestStorageIsStartedAgain(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	ctx := patient(t)
	rt := member(t, b)
	store, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	require.NoError(t, err)
	pid := store.Ref().Record().GetHost().GetPid()
	stored := storage.New(store)
	id, err := storage.Put(ctx, stored, "x", "kept")
	require.NoError(t, err)

	require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
	gone(t, pid)
	// The handle finds the next incarnation by itself; calls under way when the last one died
	// failed.
	require.Eventually(t, func() bool {
		_, err := store.Has(ctx, &storagev1.HasRequest{Key: "x"})
		return err == nil
	}, patience, time.Millisecond)
	assert.Equal(t, uint64(2), store.Ref().Incarnation())
	// It has what it had acknowledged, and its ids go on.
	kept, err := store.Get(ctx, &storagev1.GetRequest{Key: "x"})
	require.NoError(t, err)
	assert.Equal(t, "kept", kept.GetValue().GetStringValue())
	assert.Equal(t, id, kept.GetId())
	next, err := storage.Put(ctx, stored, "y", 1)
	require.NoError(t, err)
	assert.Equal(t, id+1, next)

	second := store.Ref().Record().GetHost().GetPid()
	require.NotEqual(t, pid, second)
	b.end(syscall.SIGKILL)
	require.NoError(t, syscall.Kill(int(second), syscall.SIGKILL))
	gone(t, second)
	b = startBrain(t, b.data, b.address)
	require.Eventually(t, func() bool {
		_, err := store.Has(ctx, &storagev1.HasRequest{Key: "x"})
		return err == nil
	}, patience, time.Millisecond)
	assert.Equal(t, uint64(3), store.Ref().Incarnation())
	again, err := stored.ID(ctx, "y")
	require.NoError(t, err)
	assert.Equal(t, next, again)
	// Stopping it starts it again too.
	_, stderr, exit := b.raylink(t, "call", "storage-0", "Stop")
	require.Zero(t, exit, stderr)
	require.Eventually(t, func() bool {
		rec := b.records(t)["storage-0"]
		return rec.GetIncarnation() == 4 && rec.GetState() == nodev1.NodeState_NODE_STATE_RUNNING
	}, patience, 10*time.Millisecond)
}

// TestStorageIsConfigured restarts Brain gracefully: storage-0 has its data, and its new
// configuration.
func TestStorageIsConfigured(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	status := func() *storagev1.StatusResponse {
		t.Helper()
		store, err := storagev1raylink.FindStorage(patient(t), member(t, b), runtime.Path("storage-0"))
		require.NoError(t, err)
		status, err := store.Status(patient(t), nil)
		require.NoError(t, err)
		if status.GetKeys() == 0 {
			_, err = storage.Put(patient(t), storage.New(store), "x", 1)
			require.NoError(t, err)
		}
		return status
	}
	before := status()
	assert.Equal(t, storagev1.Durability_DURABILITY_ASYNC, before.GetDurability())
	assert.Equal(t, filepath.Join(b.data, "storage"), filepath.Dir(before.GetDirectory()))
	b.end(syscall.SIGTERM)
	b = startBrain(t, b.data, b.address, "--storage-durability", "sync", "--storage-max-bytes", "8MiB")
	after := status()
	assert.Equal(t, storagev1.Durability_DURABILITY_SYNC, after.GetDurability())
	assert.Equal(t, before.GetDirectory(), after.GetDirectory())
	assert.EqualValues(t, 8<<20, after.GetMaxBytes())
	assert.EqualValues(t, 1, after.GetKeys())
	_, stderr, exit := b.raylink(t, "brain", "--storage-durability", "eventually")
	assert.NotZero(t, exit)
	assert.Contains(t, stderr, `"eventually" is no durability: write memory, async or sync`)
}

// TestRetriesOutliveANode kills one of Brain's own nodes during idempotent calls: none fails.
func TestRetriesOutliveANode(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	ctx := patient(t)
	restarts := make(chan runtime.NodeRestartedInfo, 1)
	rt := member(t, b, runtime.WithClientInterceptor(runtime.Retry(runtime.RetryPolicy{MaxAttempts: 100})),
		runtime.WithEventListener(runtime.EventListener{NodeRestarted: func(e runtime.NodeRestartedInfo) { restarts <- e }}))
	store, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	require.NoError(t, err)
	pid := store.Ref().Record().GetHost().GetPid()
	restarted := make(chan struct{})
	var calls errgroup.Group
	for i := range 4 {
		calls.Go(func() error {
			for {
				select {
				case <-restarted:
					return nil
				default:
				}
				var err error
				if i%2 == 0 {
					_, err = store.Has(ctx, &storagev1.HasRequest{Key: "x"})
				} else {
					_, err = store.HasAsync(ctx, &storagev1.HasRequest{Key: "x"}).Get(ctx)
				}
				if err != nil {
					return err
				}
			}
		})
	}
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
	gone(t, pid)
	assert.Eventually(t, func() bool { return store.Ref().Incarnation() == 2 }, patience, time.Millisecond)
	_, err = store.Has(ctx, &storagev1.HasRequest{Key: "x"})
	require.NoError(t, err)
	close(restarted)
	require.NoError(t, calls.Wait())
	select {
	case e := <-restarts:
		assert.Equal(t, runtime.EventNode{
			NID: store.Ref().NID(), Path: "storage-0", Type: "storage", Incarnation: 2, PID: int(store.Ref().Record().GetHost().GetPid()),
		}, e.EventNode)
		assert.Contains(t, e.Reason, "signal 9")
	case <-ctx.Done():
		t.Fatal("the restart was not reported")
	}
}

// TestAbandonedNodesEnd shows that Brain's own nodes end if Brain is not started again.
func TestAbandonedNodesEnd(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--lease", "100ms")
	before := b.records(t)
	b.end(syscall.SIGKILL)
	gone(t, before["storage-0"].GetHost().GetPid(), before["ps-0"].GetHost().GetPid())
	// Without a parent that reads their output, it is in their logs.
	log, err := os.ReadFile(filepath.Join(b.data, "runs", "latest", "logs", "storage-0.log"))
	require.NoError(t, err)
	assert.Contains(t, string(log), "Brain has been away for long")
}

// TestBrainBeyondLoopback listens on all addresses, which needs a token, --insecure and an address
// to advertise.
func TestBrainBeyondLoopback(t *testing.T) {
	b := startBrain(t, t.TempDir(), "0.0.0.0:0", "--token", "secret", "--insecure", "--advertise", "127.0.0.1:0")
	stdout, stderr, exit := b.raylink(t, "call", "--token", "secret", "storage-0", "Has", `{"key": "x"}`, "-o", "json")
	require.Zero(t, exit, stderr)
	assert.Equal(t, "{}\n", stdout)
}

// TestTalk shows that a bidi call sends each request, and prints each response, at once.
func TestTalk(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	startDriver(t, b)
	in, ours, err := os.Pipe()
	require.NoError(t, err)
	p := &process{
		Cmd: exec.Command(filepath.Join(program, "raylink"), "call", "probe-0", "Chat"), t: t,
		ended: make(chan struct{}), stdout: newLines(), stderr: newLines(),
	}
	p.Env = environment("RAYLINK_BRAIN=" + b.address)
	p.Stdin, p.Stdout, p.Stderr = in, p.stdout, p.stderr
	p.start()
	require.NoError(t, in.Close())
	_, err = ours.WriteString(`{"text": "good day"}`)
	require.NoError(t, err)
	assert.Equal(t, `{"text":"you said good day"}`, p.line()) //nolint:testifylint // the very line counts
	require.NoError(t, ours.Close())
	<-p.ended
	assert.Zero(t, p.ProcessState.ExitCode(), p.stderr)
}

// TestInterruptedCall ends a call by Ctrl-C, which cancels it at the node.
func TestInterruptedCall(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	startDriver(t, b)
	p := background(t, environment("RAYLINK_BRAIN="+b.address), filepath.Join(program, "raylink"), "call", "probe-0", "BlockBeside", `{"name": "x"}`)
	said := func(what string) func() bool {
		return func() bool {
			stdout, _, exit := b.raylink(t, "call", "probe-0", "Log", "-o", "json")
			return exit == 0 && strings.Contains(stdout, what)
		}
	}
	require.Eventually(t, said(`"blocked":["x"]`), patience, time.Millisecond)
	state := p.end(syscall.SIGINT)
	assert.Equal(t, exitCall+int(connect.CodeCanceled), state.ExitCode(), p.stderr)
	require.Eventually(t, said(`"cancelled":["x"]`), patience, time.Millisecond)
}

// gone waits until processes have ended.
func gone(t *testing.T, pids ...int32) {
	t.Helper()
	for _, pid := range pids {
		require.NotZero(t, pid)
		require.Eventually(t, func() bool { return !alive(pid) }, patience, 5*time.Millisecond, "process %d is still there", pid)
	}
}

// alive reports whether a process runs. A zombie does not: an orphan may stay one until init reaps
// it.
func alive(pid int32) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	if err != nil {
		return syscall.Kill(int(pid), 0) == nil
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// TestBrainDirectory shows the error of a second Brain on a data directory that is in use.
func TestBrainDirectory(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	cmd := exec.Command(filepath.Join(program, "raylink"), "brain", "--data", b.data, "--listen", "127.0.0.1:0")
	cmd.Env = environment()
	_, stderr, exit := finish(t, cmd)
	assert.Equal(t, exitFailed, exit)
	assert.Equal(t, "raylink: open Brain: the directory "+filepath.Join(b.data, "brain")+" is in use by another Brain (pid "+itoa(int32(b.Process.Pid))+")\n", stderr)
}

// TestDirectoryOfANewerVersion shows the error after a downgrade.
func TestDirectoryOfANewerVersion(t *testing.T) {
	for _, newer := range []struct {
		name string
		// write makes a data directory look as if a newer version had written it.
		write func(t *testing.T, dir string)
		says  string
	}{
		{
			name: "what is kept", says: "has format 2, and this program knows formats up to 1",
			write: func(t *testing.T, dir string) {
				db, err := pebble.Open(dir, &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}})
				require.NoError(t, err)
				require.NoError(t, db.Set([]byte("m/format"), []byte{2}, pebble.Sync))
				require.NoError(t, db.Close())
			},
		},
		{
			name: "how it is kept", says: "has files of the format 999, and this program knows formats up to " + itoa(int32(pebble.FormatNewest)),
			write: func(t *testing.T, dir string) {
				markers, err := filepath.Glob(filepath.Join(dir, "marker.format-version.*"))
				require.NoError(t, err)
				require.Len(t, markers, 1)
				require.NoError(t, os.Rename(markers[0], strings.TrimSuffix(markers[0], filepath.Ext(markers[0]))+".999"))
			},
		},
	} {
		t.Run(newer.name, func(t *testing.T) {
			b := startBrain(t, t.TempDir(), "127.0.0.1:0")
			b.end(syscall.SIGTERM)
			dir := filepath.Join(b.data, "brain")
			newer.write(t, dir)
			before := directory(t, dir)
			cmd := exec.Command(filepath.Join(program, "raylink"), "brain", "--data", b.data, "--listen", "127.0.0.1:0")
			cmd.Env = environment()
			stdout, stderr, exit := finish(t, cmd)
			assert.Equal(t, exitFailed, exit)
			assert.Empty(t, stdout)
			assert.Equal(t, "raylink: open Brain: the directory "+dir+" "+newer.says+": it was written by a newer version; use that, or another directory\n", stderr)
			if newer.name == "how it is kept" {
				assert.Equal(t, before, directory(t, dir), "nothing of it was touched")
			}
		})
	}
}

// directory lists the contents of a directory.
func directory(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		files[e.Name()] = string(content)
	}
	return files
}

// quiet is a Pebble logger that discards all.
type quiet struct{}

func (quiet) Infof(string, ...any) {}

func (quiet) Errorf(string, ...any) {}

func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// TestToken shows that a token is required, and the ways to give it.
func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("secret\n"), 0o600))
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--token-file", file)
	for _, way := range []struct {
		name string
		args []string
		env  []string
		fits bool
		says string
	}{
		{name: "none", says: "refuses: no token for Brain at " + b.address + " is found in"},
		{name: "another", args: []string{"--token", "guess"}, says: "is not used: the peer did not prove that it knows this side's token"},
		{name: "open", args: []string{"--open"}, says: "refuses: this side admits only peers that know its token"},
		{name: "flag", args: []string{"--token", "secret"}, fits: true},
		{name: "file", args: []string{"--token-file", file}, fits: true},
		{name: "environment", env: []string{"RAYLINK_TOKEN=secret"}, fits: true},
	} {
		t.Run(way.name, func(t *testing.T) {
			for _, command := range [][]string{{"tree"}, {"call", "storage-0", "Has", `{"key": "x"}`}} {
				cmd := exec.Command(filepath.Join(program, "raylink"), append(command, way.args...)...)
				cmd.Env = environment(append(way.env, "RAYLINK_BRAIN="+b.address)...)
				_, stderr, exit := finish(t, cmd)
				if way.fits {
					assert.Zero(t, exit, stderr)
					continue
				}
				assert.Equal(t, exitNoBrain, exit)
				assert.Contains(t, stderr, "unauthenticated: Brain at "+b.address+" "+way.says)
			}
		})
	}
}

// TestBrainPrintsHowToJoin: the line that it prints is a command that makes a machine join.
func TestBrainPrintsHowToJoin(t *testing.T) {
	brain := background(t, environment("RAYLINK_DATA="+t.TempDir()), filepath.Join(program, "raylink"), "brain", "--listen", "127.0.0.1:0", "--tls")
	var lines []string
	require.Eventually(t, func() bool {
		lines = strings.Split(brain.stdout.String(), "\n")
		return len(lines) > 3
	}, patience, time.Millisecond)
	require.Regexp(t, `^Brain serves at 127\.0\.0\.1:\d+ \(TLS\)\. To join from another machine:$`, lines[0])
	require.Regexp(t, `^  RAYLINK_BRAIN=127\.0\.0\.1:\d+ RAYLINK_TOKEN=rl1\.\S+  raylink agent$`, lines[1])
	require.Regexp(t, `^On this machine: data in \S+, token in \S+$`, lines[2])
	agent := background(t, environment("RAYLINK_DATA="+t.TempDir(), "RAYLINK_MACHINE=another"), "sh", "-c", lines[1])
	require.Regexp(t, `^machine-0: the machine \S+ has joined: `, agent.line())
}
