package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

// step is one step of a random run.
type step struct {
	What   string
	Size   int
	Count  int
	Wait   time.Duration
	Target int
}

func steps() *rapid.Generator[[]step] {
	size := rapid.OneOf(
		rapid.IntRange(0, 200), rapid.IntRange(8<<10-20, 8<<10+20), rapid.IntRange(64<<10-20, 64<<10+20),
		rapid.IntRange(0, 300<<10), rapid.Just(1<<20),
	)
	wait := rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 10, 1000}).Draw(t, "ms")) * time.Millisecond
	})
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			What: rapid.SampledFrom([]string{
				"unary", "unary", "unary", "unary", "fail", "hold", "cancel", "deadline", "large",
				"bidi", "server", "client", "abandon", "stuck", "delay", "stall", "resume", "cut", "alone", "slow", "choke",
			}).Draw(t, "what"),
			Size:   size.Draw(t, "size"),
			Count:  rapid.IntRange(0, 6).Draw(t, "count"),
			Wait:   wait.Draw(t, "wait"),
			Target: rapid.IntRange(0, 1).Draw(t, "target"),
		}
	}), 1, 40)
}

// pattern returns message content that depends on seed, so that it can be verified on arrival.
func pattern(seed, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(seed + i*7 + i>>8)
	}
	return b
}

// world is the state of one random run: a tunnel, the model of what each call may return, and the
// open calls.
type world struct {
	t      *rapid.T
	client *tunnel.Conn
	server *tunnel.Conn
	link   *memnet.Link
	cut    bool
	run    sync.WaitGroup

	mu       sync.Mutex
	failures []string
	seen     map[string][]int // by target, the calls in the order in which the handler received them
	sent     map[string][]int
	ends     map[int]int // the number of calls of Done
}

func (w *world) failf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}

// ServeUnary answers as the procedure demands.
func (w *world) ServeUnary(in *tunnel.Incoming) {
	req := &wrapperspb.BytesValue{}
	if err := in.Decode(req); err != nil {
		w.failf("decode: %v", err)
	}
	var seed int
	if _, err := fmt.Sscanf(in.Header().Get("seed"), "%d", &seed); err != nil {
		w.failf("seed: %v", err)
	}
	if !bytes.Equal(req.GetValue(), pattern(seed, len(req.GetValue()))) {
		w.failf("call %d was modified", seed)
	}
	w.mu.Lock()
	w.seen[in.Target] = append(w.seen[in.Target], seed)
	w.mu.Unlock()
	if seed%2 == 0 {
		w.answer(in, req, seed)
		return
	}
	in.RunInline(work(func() {
		if seed%4 == 1 && in.Procedure != "/p/echo" {
			in.MayBlock()
		}
		switch in.Procedure {
		case "/p/hold":
			<-in.Context().Done()
		case "/p/later":
			<-time.After(time.Millisecond)
		}
		w.answer(in, req, seed)
		if in.Procedure == "/p/fail" {
			runtime.Goexit()
		}
	}))
}

func (w *world) answer(in *tunnel.Incoming, req *wrapperspb.BytesValue, seed int) {
	switch in.Procedure {
	case "/p/fail":
		in.Reply(nil, connect.Errorf(connect.CodeAborted, "%d", seed))
	case "/p/hold":
		go func() {
			<-in.Context().Done()
			in.Reply(nil, in.Context().Err())
		}()
	case "/p/later":
		time.AfterFunc(time.Millisecond, func() { in.Reply(req, nil) })
	case "/p/large":
		in.Reply(wrapperspb.Bytes(pattern(seed, 2<<20)), nil)
	default:
		in.SetTrailer(in.Header())
		in.Reply(req, nil)
	}
}

// ServeStream echoes, or does not read.
func (w *world) ServeStream(ctx context.Context, in *tunnel.Incoming, s connect.ServerStream) error {
	switch in.Procedure {
	case "/p/stuck":
		<-ctx.Done()
		return ctx.Err()
	case "/p/client":
		count := 0
		for {
			err := s.Receive(&wrapperspb.BytesValue{})
			if errors.Is(err, io.EOF) {
				return s.Send(wrapperspb.Bytes(make([]byte, count)))
			}
			if err != nil {
				return err
			}
			count++
		}
	}
	return echoStream(ctx, in, s)
}

// checkEnd compares a call's outcome with what the model allows.
func (w *world) checkEnd(what string, seed int, err error, allowed ...connect.Code) {
	if err == nil {
		return
	}
	code := connect.CodeOf(err)
	if code == connect.CodeUnavailable {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.cut {
			w.failures = append(w.failures, fmt.Sprintf("%s %d: %v, but the link was not cut", what, seed, err))
		}
		return
	}
	if !slices.Contains(allowed, code) {
		w.failf("%s %d: %v", what, seed, err)
	}
}

func (w *world) unary(seed int, s step) {
	ctx, cancel := context.WithCancel(context.Background())
	if s.What == "deadline" {
		ctx, cancel = context.WithTimeout(context.Background(), 5*time.Millisecond)
	}
	procedure := map[string]string{
		"unary": "/p/echo", "fail": "/p/fail", "hold": "/p/hold", "cancel": "/p/later", "deadline": "/p/hold", "large": "/p/large",
	}[s.What]
	target := fmt.Sprintf("target-%d", s.Target)
	res := &wrapperspb.BytesValue{}
	done := make(chan struct{})
	call := &tunnel.Call{
		Target: target, Caller: "c", Procedure: procedure, Request: wrapperspb.Bytes(pattern(seed, s.Size)), Response: res,
		Header: tunnel.Header{{Key: "seed", Value: strconv.Itoa(seed)}},
	}
	end := func(*tunnel.Call) {
		w.mu.Lock()
		w.ends[seed]++
		w.mu.Unlock()
		close(done)
	}
	if call.Synchronous = seed%3 > 0; !call.Synchronous {
		call.Done = end
	}
	if err := w.client.Start(ctx, call); err != nil {
		cancel()
		w.checkEnd("start", seed, err, connect.CodeDeadlineExceeded)
		return
	}
	w.mu.Lock()
	w.sent[target] = append(w.sent[target], seed)
	w.mu.Unlock()
	if call.Synchronous {
		w.run.Go(func() {
			w.client.Wait(ctx, call, context.Context.Err)
			end(call)
		})
	}
	w.run.Go(func() {
		defer cancel()
		switch s.What {
		case "cancel", "hold":
			<-time.After(s.Wait)
			call.Cancel(context.Canceled)
		case "deadline":
			<-ctx.Done()
		}
		<-done
		w.mu.Lock()
		w.mu.Unlock() //nolint:staticcheck // orders with Done's bookkeeping
		switch s.What {
		case "unary":
			w.checkEnd(s.What, seed, call.Err)
			if call.Err == nil && (!bytes.Equal(res.GetValue(), pattern(seed, s.Size)) || call.ResponseTrailer.Get("seed") != strconv.Itoa(seed)) {
				w.failf("unary %d was modified", seed)
			}
		case "large":
			w.checkEnd(s.What, seed, call.Err)
			if call.Err == nil && !bytes.Equal(res.GetValue(), pattern(seed, 2<<20)) {
				w.failf("large %d was modified", seed)
			}
		case "fail":
			w.checkEnd(s.What, seed, call.Err, connect.CodeAborted)
			if call.Err == nil {
				w.failf("fail %d succeeded", seed)
			}
		case "cancel":
			w.checkEnd(s.What, seed, call.Err, connect.CodeCanceled)
		case "hold", "deadline":
			w.checkEnd(s.What, seed, call.Err, connect.CodeCanceled, connect.CodeDeadlineExceeded)
			if call.Err == nil {
				w.failf("%s %d succeeded", s.What, seed)
			}
		}
	})
}

// alone makes synchronous calls one after the other, whose caller ends up reading its own answers.
func (w *world) alone(seed int, s step) {
	w.run.Go(func() {
		for i := range 8 {
			ctx, cancel := context.WithTimeout(context.Background(), max(s.Wait, time.Millisecond))
			procedure, size := "/p/echo", s.Size
			if i%4 == 3 {
				procedure, size = "/p/large", 2<<20
			}
			res := &wrapperspb.BytesValue{}
			call := &tunnel.Call{
				Target: fmt.Sprintf("sync-%d-%d", seed, i), Procedure: procedure, Request: wrapperspb.Bytes(pattern(seed, s.Size)), Response: res,
				Header: tunnel.Header{{Key: "seed", Value: strconv.Itoa(seed)}}, Synchronous: true,
			}
			err := w.client.Start(ctx, call)
			if err == nil {
				w.mu.Lock()
				w.sent[call.Target] = append(w.sent[call.Target], seed)
				w.mu.Unlock()
				w.client.Wait(ctx, call, context.Context.Err)
				err = call.Err
			}
			if err == nil && !bytes.Equal(res.GetValue(), pattern(seed, size)) {
				w.failf("alone %d was modified", seed)
			}
			if deadline, _ := ctx.Deadline(); time.Since(deadline) > 3*time.Millisecond {
				w.failf("alone %d returned %v after its deadline", seed, time.Since(deadline))
			}
			cancel()
			w.checkEnd("alone", seed, err, connect.CodeDeadlineExceeded)
		}
	})
}

func (w *world) stream(seed int, s step) {
	w.run.Go(func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		shape := map[string]connect.StreamType{
			"bidi": connect.StreamTypeBidi, "abandon": connect.StreamTypeBidi, "stuck": connect.StreamTypeBidi,
			"server": connect.StreamTypeServer, "client": connect.StreamTypeClient,
		}[s.What]
		stream, err := w.client.Stream(ctx, tunnel.StreamRequest{Procedure: "/p/" + s.What, Target: "s", StreamType: shape})
		if err != nil {
			w.checkEnd("open", seed, err)
			return
		}
		count := s.Count
		if s.What == "server" {
			count = 1
		}
		sent := make(chan struct{})
		w.run.Go(func() {
			defer close(sent)
			for i := range count {
				if err := stream.Send(wrapperspb.Bytes(pattern(seed+i, s.Size))); err != nil {
					if !errors.Is(err, io.EOF) {
						w.checkEnd("send", seed, err, connect.CodeCanceled)
					}
					return
				}
			}
			if err := stream.CloseSend(); err != nil {
				w.checkEnd("close send", seed, err, connect.CodeCanceled)
			}
		})
		switch s.What {
		case "abandon", "stuck":
			<-time.After(s.Wait)
			cancel()
		case "client":
			res := &wrapperspb.BytesValue{}
			err := stream.Receive(res)
			w.checkEnd("receive", seed, err)
			if err == nil && len(res.GetValue()) != count {
				w.failf("client stream %d: %d of %d messages", seed, len(res.GetValue()), count)
			}
			if err == nil && !errors.Is(stream.Receive(res), io.EOF) {
				w.failf("client stream %d goes on", seed)
			}
		default:
			for i := 0; ; i++ {
				res := &wrapperspb.BytesValue{}
				err := stream.Receive(res)
				if errors.Is(err, io.EOF) {
					if i != count {
						w.failf("%s %d ended after %d of %d messages", s.What, seed, i, count)
					}
					break
				}
				if err != nil {
					w.checkEnd("receive", seed, err)
					break
				}
				if !bytes.Equal(res.GetValue(), pattern(seed+i, s.Size)) {
					w.failf("%s %d: message %d was modified", s.What, seed, i)
				}
			}
		}
		cancel()
		<-sent
		if err := stream.Close(); err != nil {
			w.failf("close: %v", err)
		}
	})
}

func (w *world) do(seed int, s step) {
	switch s.What {
	case "bidi", "server", "client", "abandon", "stuck":
		w.stream(seed, s)
	case "alone":
		w.alone(seed, s)
	case "slow":
		w.link.Rate(100_000 * (s.Count + 1))
		time.AfterFunc(s.Wait, func() { w.link.Rate(0) })
	case "choke":
		w.link.StallRepliesAfter(s.Size)
		time.AfterFunc(s.Wait, w.link.Resume)
	case "delay":
		w.link.Delay(s.Wait)
	case "stall":
		w.link.Stall()
		time.AfterFunc(s.Wait, w.link.Resume)
	case "resume":
		w.link.Resume()
	case "cut":
		if s.Count > 4 { // so that most runs continue for long
			w.mu.Lock()
			w.cut = true
			w.mu.Unlock()
			w.link.Cut()
		}
	default:
		w.unary(seed, s)
	}
	<-time.After(s.Wait)
}

// TestRandomRuns mixes calls of all shapes and sizes with cancellations, delays, stalls and cuts.
// Every call ends exactly once, with an outcome that the model allows; messages arrive unmodified
// and in order; and nothing is held afterwards.
func TestRandomRuns(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := steps().Draw(rt, "steps")
		small := rapid.Bool().Draw(rt, "small windows")
		var failures string
		synctest.Test(t, func(*testing.T) { failures = randomRun(rt, script, small) })
		if failures != "" {
			rt.Fatal(failures)
		}
	})
}

func randomRun(rt *rapid.T, script []step, small bool) string {
	w := &world{t: rt, seen: make(map[string][]int), sent: make(map[string][]int), ends: make(map[int]int)}
	cfg := tunnel.Config{Logger: silent()}
	if small {
		cfg.Window, cfg.StreamWindow, cfg.MaxMessageBytes = 80<<10, 64<<10, 2<<20+100
		cfg.MaxBacklog = 1 << 30
	}
	near, far := memnet.Pipe()
	w.link = near.Link()
	w.client, w.server = join(rt, near, far, cfg, cfg, w)
	for i, s := range script {
		w.do(i, s)
	}
	w.link.Resume()
	w.link.Rate(0)
	w.run.Wait()
	<-time.After(time.Minute) // until delayed answers and delayed data have arrived
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for seed, n := range w.ends {
		if n != 1 {
			w.failures = append(w.failures, fmt.Sprintf("call %d ended %d times", seed, n))
		}
	}
	for target, seen := range w.seen {
		if !subsequence(seen, w.sent[target]) {
			w.failures = append(w.failures, fmt.Sprintf("%s: sent %v, served %v", target, w.sent[target], seen))
		}
	}
	for _, c := range []*tunnel.Conn{w.client, w.server} {
		if leak := tunnel.Leaks(c); leak != "" {
			w.failures = append(w.failures, "left: "+leak)
		}
		if err := c.Err(); err != nil && (!w.cut || errors.Is(err, tunnel.ErrProtocol)) {
			w.failures = append(w.failures, fmt.Sprintf("the connection ended: %v", err))
		}
	}
	require.NoError(rt, w.client.Close())
	require.NoError(rt, w.server.Close())
	synctest.Wait()
	return strings.Join(w.failures, "\n")
}

// subsequence reports whether all elements of part are in whole, in the same order.
func subsequence(part, whole []int) bool {
	for _, x := range whole {
		if len(part) > 0 && part[0] == x {
			part = part[1:]
		}
	}
	return len(part) == 0
}
