package raylink_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// logged records log output for tests to search.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.buf.Bytes(), []byte(s))
}

func (l *logged) option() raylink.Option {
	return raylink.WithLogger(slog.New(slog.NewTextHandler(l, nil)))
}

// others makes a system with one node of the type Other, with the given set-up.
func others(t *testing.T, setUp func(context.Context, *runtime.Node) error, opts ...raylink.Option) *raylink.Runtime {
	t.Helper()
	opts = append(opts, raylink.WithData(t.TempDir()), contractv1raylink.OtherType(
		func(ctx context.Context, n *runtime.Node) (contractv1raylink.OtherNode, error) {
			return contractv1raylink.UnimplementedOtherNode{}, setUp(ctx, n)
		}))
	rt, err := raylink.Start(t.Context(), opts...)
	require.NoError(t, err)
	return rt
}

// TestSetupThatDoesNotReturnFailsItsCreation covers set-ups in this process and in one of their
// own.
func TestSetupThatDoesNotReturnFailsItsCreation(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for word, text := range map[string]string{contract.WordPanic: contract.WordPanic, contract.WordGoexit: "ended its goroutine"} {
		for _, where := range []runtime.CreateOption{runtime.ParentProcess(), runtime.OwnProcess()} {
			_, err := contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{Fail: word}, where, runtime.WithAlias("fragile"))
			require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, text)
			require.ErrorContains(t, err, "setting up probe-")
		}
	}
	p, err := contractv1raylink.CreateProbe(ctx, driver, nil, runtime.WithAlias("fragile"))
	require.NoError(t, err, "the alias must be free again")
	require.NoError(t, p.Ref().Stop(ctx))
}

// TestSetupThatIgnoresItsContextIsAbandoned checks that the creation, and everything else, ends
// soon after its context.
func TestSetupThatIgnoresItsContextIsAbandoned(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	rt := others(t, func(context.Context, *runtime.Node) error { <-release; return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := contractv1raylink.CreateOther(ctx, rt)
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "setting up other-0")
	require.ErrorContains(t, err, "the set-up function had not returned")
	children, err := rt.Children(t.Context())
	require.NoError(t, err)
	for _, c := range children {
		require.NotEqual(t, "other", c.GetType())
	}
	require.NoError(t, rt.Close())
}

// TestStopNamesTheOnStopFunctionThatDoesNotReturn checks that Stop returns nevertheless, and calls
// the other functions.
func TestStopNamesTheOnStopFunctionThatDoesNotReturn(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for text, second := range map[string]func(context.Context) error{
		"OnStop function 2 of 3 has not returned":     func(context.Context) error { <-release; return nil },
		"OnStop function 2 of 3 ended its goroutine":  func(context.Context) error { goruntime.Goexit(); return nil },
		"OnStop function 2 of 3 panicked: on purpose": func(context.Context) error { panic("on purpose") },
		"stopping other-0: its own error":             func(context.Context) error { return errors.New("its own error") },
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			var log logged
			var called []int
			rt := others(t, func(_ context.Context, n *runtime.Node) error {
				n.OnStop(func(context.Context) error { called = append(called, 1); return nil })
				n.OnStop(second)
				n.OnStop(func(context.Context) error { called = append(called, 3); return nil })
				return nil
			}, runtime.WithDrain(time.Second), log.option())
			n, err := contractv1raylink.CreateOther(t.Context(), rt)
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err = n.Ref().Stop(ctx)
			require.ErrorContains(t, err, text)
			require.NoError(t, ctx.Err())
			assert.Equal(t, []int{3, 1}, called)
			_, err = contractv1raylink.FindOther(t.Context(), rt, runtime.Path("other-0"))
			require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
			require.NoError(t, rt.Close())
		})
	}
}

// TestTaskThatEndsItsGoroutineFailsItsNode checks that it does as an error or a panic does.
func TestTaskThatEndsItsGoroutineFailsItsNode(t *testing.T) {
	t.Parallel()
	var log logged
	rt := others(t, func(_ context.Context, n *runtime.Node) error {
		n.Go(func(context.Context) error { goruntime.Goexit(); return nil })
		return nil
	}, log.option())
	n, err := contractv1raylink.CreateOther(t.Context(), rt)
	if err == nil { // otherwise the task fails before the set-up is over
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		require.NoError(t, n.Ref().Ended(ctx))
	}
	require.True(t, log.contains("a task ended its goroutine"))
	require.NoError(t, rt.Close())
}

// blocking is a log handler that does not return until gate is closed.
type blocking struct {
	slog.Handler

	gate <-chan struct{}
}

func (b blocking) Handle(ctx context.Context, r slog.Record) error {
	<-b.gate
	return b.Handler.Handle(ctx, r)
}

func (b blocking) WithAttrs(attrs []slog.Attr) slog.Handler {
	return blocking{b.Handler.WithAttrs(attrs), b.gate}
}

// TestBlockedOutputDelaysOnlyLines has an Output function that does not return. It delays what a
// node prints, whether one line or more than fits into pipes, but not the node. Close reports what
// it did not wait for, and the node's log has all lines.
func TestBlockedOutputDelaysOnlyLines(t *testing.T) {
	t.Parallel()
	for _, lines := range []int{1, 1 << 15} {
		t.Run(strconv.Itoa(lines), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			gate := make(chan struct{})
			defer close(gate)
			var log logged
			rt, err := raylink.Start(ctx, append(contract.Types(), raylink.WithData(t.TempDir()), raylink.WithDrain(5*time.Second),
				log.option(), raylink.WithOutput(func(string, string) { <-gate }))...)
			require.NoError(t, err)
			text := strings.Repeat("a line of what the node prints\n", lines)
			p, err := contractv1raylink.CreateProbe(ctx, rt, &contractv1.ProbeConfig{Print: text}, runtime.OwnProcess())
			require.NoError(t, err)
			_, err = p.Add(ctx, &contractv1.AddRequest{By: 1})
			require.NoError(t, err)
			require.NoError(t, p.Ref().Stop(ctx))
			file := filepath.Join(rt.RunDirectory().Logs(), "probe-0.log")
			err = rt.Close()
			require.ErrorContains(t, err, "what probe-0 printed could not be shown: the function given with WithOutput has not returned for ")
			require.True(t, log.contains("the function given with WithOutput takes no lines"))
			printed, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, lines, strings.Count(string(printed), "a line of what the node prints"))
		})
	}
}

// TestOutputThatPanicsGetsTheNextLine covers functions that panic and ones that end their
// goroutine.
func TestOutputThatPanicsGetsTheNextLine(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var log logged
	got := make(chan string, 3)
	rt, err := raylink.Start(ctx, append(contract.Types(), raylink.WithData(t.TempDir()), raylink.WithDrain(5*time.Second), log.option(),
		raylink.WithOutput(func(_, line string) {
			got <- line
			switch line {
			case "one":
				panic("on purpose")
			case "two":
				goruntime.Goexit()
			}
		}))...)
	require.NoError(t, err)
	_, err = contractv1raylink.CreateProbe(ctx, rt, &contractv1.ProbeConfig{Print: "one\ntwo\nthree"}, runtime.OwnProcess())
	require.NoError(t, err)
	for _, want := range []string{"one", "two", "three"} {
		select {
		case line := <-got:
			assert.Equal(t, want, line)
		case <-ctx.Done():
			require.FailNow(t, "a line is missing")
		}
	}
	require.NoError(t, rt.Close())
	require.True(t, log.contains("the function given with WithOutput panicked"))
}

// TestBlockedLoggerDelaysNothing has a log handler that does not return. It delays neither calls
// nor the end of a node. The file in the run directory has the records that the handler did not
// accept, and a warning; Close returns an error.
func TestBlockedLoggerDelaysNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	gate := make(chan struct{})
	defer close(gate)
	rt := others(t, func(_ context.Context, n *runtime.Node) error {
		n.Logger().Warn("from a node's set-up")
		n.OnStop(func(context.Context) error { panic("logged by the runtime") })
		return nil
	}, raylink.WithLogger(slog.New(blocking{slog.NewTextHandler(&logged{}, nil), gate})))
	for range 3 {
		n, err := contractv1raylink.CreateOther(ctx, rt)
		require.NoError(t, err)
		_, err = n.Ping(ctx, nil)
		require.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, n.Ref().Stop(ctx), "logged by the runtime")
	}
	file := filepath.Join(rt.RunDirectory().Logs(), "driver.log")
	err := rt.Close()
	require.ErrorContains(t, err, "closing the runtime: the log's handler has not returned for ")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Contains(t, string(text), "the log's handler (WithLogger, by default a write to standard error) does not return")
	assert.Equal(t, 3, strings.Count(string(text), "an OnStop function panicked"))
}

// stubborn is a node whose methods ignore their contexts and run until gate is closed.
type stubborn struct {
	contractv1raylink.UnimplementedProbeNode

	began chan struct{}
	gate  chan struct{}
}

func (d stubborn) wait() {
	d.began <- struct{}{}
	<-d.gate
}

func (d stubborn) Add(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	d.wait()
	return &contractv1.AddResponse{}, nil
}

func (d stubborn) BlockBeside(context.Context, *contractv1.BlockRequest) (*contractv1.BlockResponse, error) {
	d.wait()
	return &contractv1.BlockResponse{}, nil
}

func (d stubborn) Count(context.Context, *contractv1.CountRequest, contractv1raylink.ProbeCountServerStream) error {
	d.wait()
	return nil
}

// TestCallersOfAMethodThatDoesNotReturnGetTheEndOfItsNode covers every way except a call that runs
// the method on its caller's goroutine. The callers' contexts do not end.
func TestCallersOfAMethodThatDoesNotReturnGetTheEndOfItsNode(t *testing.T) {
	t.Parallel()
	d := stubborn{began: make(chan struct{}), gate: make(chan struct{})}
	rt, err := raylink.Start(t.Context(), raylink.WithData(t.TempDir()), raylink.WithDrain(100*time.Millisecond), contractv1raylink.ProbeType(
		func(context.Context, *runtime.Node, *contractv1.ProbeConfig) (contractv1raylink.ProbeNode, error) {
			return d, nil
		}))
	require.NoError(t, err)
	other, err := join.Start(t.Context(), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, other.Close())
		require.NoError(t, rt.Close())
	})
	t.Cleanup(func() { close(d.gate) })
	ctx := context.Background()
	add := func(p *contractv1raylink.Probe) error {
		_, err := p.Add(ctx, &contractv1.AddRequest{})
		return err
	}
	addAsync := func(p *contractv1raylink.Probe) error {
		_, err := p.AddAsync(ctx, &contractv1.AddRequest{}).Get(ctx)
		return err
	}
	beside := func(p *contractv1raylink.Probe) error {
		_, err := p.BlockBeside(ctx, &contractv1.BlockRequest{})
		return err
	}
	count := func(p *contractv1raylink.Probe) error {
		s, err := p.Count(ctx, &contractv1.CountRequest{})
		if err == nil {
			_, err = s.Receive()
		}
		return err
	}
	for name, test := range map[string]struct {
		method string
		call   func(p *contractv1raylink.Probe) error
		ways   string
	}{
		"a call":              {"Add", add, "tunnel http"},
		"an async call":       {"Add", addAsync, "local tunnel http"},
		"a concurrent method": {"BlockBeside", beside, "tunnel http"},
		"a stream":            {"Count", count, "local tunnel http"},
	} {
		for way := range strings.FieldsSeq(test.ways) {
			t.Run(name+" by "+way, func(t *testing.T) {
				p, err := contractv1raylink.CreateProbe(ctx, rt, nil)
				require.NoError(t, err)
				path := p.Ref().Path()
				caller := p
				switch way {
				case "tunnel":
					caller, err = contractv1raylink.FindProbe(ctx, other, runtime.Path(path))
					require.NoError(t, err)
				case "http":
					client := &http.Client{Transport: &http.Transport{}}
					t.Cleanup(client.CloseIdleConnections)
					caller = contractv1raylink.NewProbeTunnel(connect.NewClient(connecthttp.NewTransport(
						runtime.HTTPClient(client), "http://"+rt.Address()+"/"+path)))
				}
				called := make(chan error, 1)
				go func() { called <- test.call(caller) }()
				<-d.began
				err = p.Ref().Stop(ctx)
				require.ErrorContains(t, err, "draining "+path+": 1 calls were still running and 0 waiting (running for ")
				require.ErrorContains(t, err, "ms at least: "+test.method+")")
				select {
				case err := <-called:
					require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
					require.ErrorContains(t, err, path+" stopped while it was in "+test.method+", which has not returned")
				case <-time.After(patience):
					require.FailNow(t, "the caller is still blocked")
				}
			})
		}
	}
}

// TestCallsOfANodeThatStopsDuringItsSetUpAreUnavailable stops a node while calls wait for its
// set-up: streams, calls that run concurrently, and queued ones.
func TestCallsOfANodeThatStopsDuringItsSetUpAreUnavailable(t *testing.T) {
	t.Parallel()
	setUp := func(ctx context.Context, _ *runtime.Node, _ *contractv1.ProbeConfig) (contractv1raylink.ProbeNode, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	rt, err := raylink.Start(t.Context(), raylink.WithData(t.TempDir()), contractv1raylink.ProbeType(setUp))
	require.NoError(t, err)
	ctx := patient(t)
	for range 30 {
		p, err := contractv1raylink.CreateProbe(ctx, rt, nil, runtime.NoWait(), runtime.ParentProcess())
		require.NoError(t, err)
		const streams = 20
		ends := make(chan error)
		for range streams {
			stream, err := p.Chat(ctx)
			require.NoError(t, err)
			go func() {
				_, err := stream.Receive()
				ends <- errors.Join(err, stream.Close())
			}()
		}
		go func() {
			_, err := p.BlockBeside(ctx, &contractv1.BlockRequest{})
			ends <- err
		}()
		go func() {
			_, err := p.Add(ctx, &contractv1.AddRequest{By: 1})
			ends <- err
		}()
		_ = p.Ref().Stop(ctx) // its set-up has failed
		for range streams + 2 {
			err := <-ends
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
		}
	}
	require.NoError(t, rt.Close())
}
