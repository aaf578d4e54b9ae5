package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
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
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	raylink "github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
)

const (
	hosts = 3
	// grace is how late after its deadline or cancellation a call may return, on a busy machine. A
	// call that was not notified returns later than that, or never.
	grace = 5 * time.Second
	// longest is the longest deadline of a call.
	longest = 3 * time.Second
	// aftermath is how long after a cut new calls may fail because of it, and searches after an
	// absence of Brain.
	aftermath = 2 * time.Second
	// tick is the unit of the world's clock.
	tick = 10 * time.Millisecond
	// mostHeap bounds the heap at any time, heapLeft the heap when nothing runs any more.
	mostHeap = 1 << 30
	heapLeft = 64 << 20
)

// world is the state of one run of the test, and its findings.
type world struct {
	t     *testing.T
	hosts []*host
	brain *brain
	// cradle is the process of nodes whose children have processes of their own.
	cradle *exec.Cmd

	run     sync.WaitGroup
	over    chan struct{}
	blocked atomic.Int64
	// ups and downs count the nodes of this process that were set up, and stopped.
	ups, downs atomic.Int64
	// alone is set if mostly one caller of each host makes calls, which then reads the connection.
	alone atomic.Bool
	// clock is how long the process has been running, in ticks. On a machine that has much other
	// work, time in which the test gets no CPU does not count.
	clock atomic.Int64
	// cuts counts the cuts of connections; away is when Brain was last absent, on clock.
	cuts, away atomic.Int64

	mu       sync.Mutex // guards what follows
	faults   []string
	outcomes map[string]int
}

// host is a host of the system with its handles of all nodes.
type host struct {
	rt    *join.Runtime
	proxy *proxy
	own   *contractv1raylink.Probe
	nodes []*contractv1raylink.Probe
	// cradle is the host's handle of the node in the cradle.
	cradle *contractv1raylink.Probe
	// cut is when the connections to the host were last cut, on the world's clock.
	cut atomic.Int64
}

func (w *world) faultf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.faults) < 20 {
		w.faults = append(w.faults, fmt.Sprintf(format, args...))
	}
}

func (w *world) isOver() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

// call is the context of a call, and the time at which it must have returned.
type call struct {
	context.Context //nolint:containedctx // it is the call's, and lives as long

	w    *world
	what string
	// to are the hosts whose connections the call needs.
	to    []*host
	begin time.Time
	// begun is begin on the world's clock.
	begun int64
	limit time.Time
	end   func()
	// slack is how much longer than others the call may take. brain is set if it needs Brain.
	slack time.Duration
	brain bool
	// life is that of the calling or called node, or nil.
	life *life
}

// begin makes the context of a call. It has an early or late deadline, or is canceled.
func (w *world) begin(r *rand.Rand, what string, least time.Duration, to ...*host) *call {
	c := &call{w: w, what: what, to: to, begin: time.Now(), begun: w.clock.Load()}
	short := least + time.Duration(r.IntN(30))*time.Millisecond
	switch r.IntN(6) {
	case 0:
		c.limit = c.begin.Add(short)
		c.Context, c.end = context.WithDeadline(context.Background(), c.limit)
	case 1:
		c.limit = c.begin.Add(short)
		ctx, cancel := context.WithCancel(context.Background()) // no deadline ends it at its node
		timer := time.AfterFunc(short, cancel)
		c.Context, c.end = ctx, func() { timer.Stop(); cancel() }
	default:
		c.limit = c.begin.Add(longest)
		c.Context, c.end = context.WithDeadline(context.Background(), c.limit)
	}
	return c
}

// checkLate checks that the call has returned in time.
func (c *call) checkLate(err error) {
	late, running := time.Since(c.limit), time.Duration(c.w.clock.Load()-c.begun)*tick
	if allowed := grace + c.slack; late > allowed && running > c.limit.Sub(c.begin)+allowed {
		c.w.faultf("%s returned %v after it should have: %v", c.what, late, err)
	}
}

// check ends a call. It must have returned in time, and may have failed only because of its context
// or of a disturbance of its connection. check reports whether the call has succeeded.
func (c *call) check(err error) bool {
	defer c.end()
	c.checkLate(err)
	code, outcome := connect.CodeOf(err), "ok"
	if err != nil {
		outcome = code.String()
	}
	c.w.mu.Lock()
	c.w.outcomes[c.what+" "+outcome]++
	c.w.mu.Unlock()
	// A node may notice that the deadline has passed before the caller's own timer fires.
	deadline, _ := c.Deadline()
	ended := c.Err() != nil || !time.Now().Before(deadline)
	recently := func(at *atomic.Int64) bool { return c.begun-at.Load() < int64(aftermath/tick) }
	switch {
	case err == nil:
		return true
	case ended && (code == connect.CodeCanceled || code == connect.CodeDeadlineExceeded):
	case code == connect.CodeUnavailable && slices.ContainsFunc(c.to, func(h *host) bool { return recently(&h.cut) }):
	case code == connect.CodeUnavailable && c.brain && recently(&c.w.away):
	case code == connect.CodeUnavailable && c.life != nil && (c.life.later || c.life.ending.Load()):
	case code == connect.CodeResourceExhausted: // its node has a bound, and canceled calls may still run
	default:
		c.w.faultf("%s failed: %v", c.what, err)
	}
	return false
}

// caller makes calls, one after the other.
type caller struct {
	w     *world
	host  *host
	r     *rand.Rand
	name  int64
	count int64
	to    int
}

// next is the number of the caller's next call.
func (c *caller) next() int64 {
	c.count++
	return number(c.name, c.w.cuts.Load(), c.count)
}

// target chooses a node, mostly the previous one, and returns its host too.
func (c *caller) target() (*contractv1raylink.Probe, *host) {
	if c.r.IntN(8) == 0 {
		c.to = c.r.IntN(hosts)
	}
	return c.host.nodes[c.to], c.w.hosts[c.to]
}

func (c *caller) add() {
	to, on := c.target()
	ctx, by := c.w.begin(c.r, "add", 0, on), c.next()
	res, err := to.Add(ctx, &contractv1.AddRequest{By: by})
	if ctx.check(err) && res.GetSum() != by {
		c.w.faultf("add got another call's response: %x, not %x", res.GetSum(), by)
	}
}

func (c *caller) echo() {
	size := []int{16, 16, 16, 16, 16, 9 << 10, 9 << 10, 64 << 10, 64 << 10, 200 << 10, 200 << 10, 1 << 20}[c.r.IntN(12)]
	payload := pattern(c.r.IntN(256), size)
	to, on := c.target()
	ctx := c.w.begin(c.r, "echo", 0, on)
	res, err := to.Echo(ctx, &contractv1.EchoRequest{Payload: payload})
	if ctx.check(err) && !bytes.Equal(payload, res.GetPayload()) {
		c.w.faultf("the response of an echo of %d bytes was changed", size)
	}
}

// fetch has a small request and a larger response.
func (c *caller) fetch() {
	size := 1 + c.r.IntN(300<<10)
	to, on := c.target()
	ctx := c.w.begin(c.r, "fetch", 0, on)
	res, err := to.Echo(ctx, &contractv1.EchoRequest{Payload: fmt.Appendf(nil, "%s%d", fetchPrefix, size)})
	if ctx.check(err) && !bytes.Equal(pattern(size, size), res.GetPayload()) {
		c.w.faultf("a fetched response of %d bytes was changed", size)
	}
}

// flood makes very many async calls, of which most wait when their context ends.
func (c *caller) flood(calls int) {
	i := c.r.IntN(hosts)
	ctx := c.w.begin(c.r, "flood", 0, c.w.hosts[i])
	ctx.limit = ctx.begin.Add(longest)
	all := make([]*raylink.Future[*contractv1.AddResponse], calls)
	for n := range all {
		all[n] = c.host.nodes[i].AddAsync(ctx, &contractv1.AddRequest{By: c.next()})
	}
	var last error
	for _, f := range all {
		if _, err := f.Get(context.Background()); connect.CodeOf(err) != connect.CodeResourceExhausted {
			last = err
		}
	}
	ctx.check(last)
}

// burst makes async calls, which arrive in the order of their creation, and cancels some.
func (c *caller) burst() {
	to, on := c.target()
	type begun struct {
		ctx    *call
		by     int64
		future *raylink.Future[*contractv1.AddResponse]
	}
	all := make([]begun, 1+c.r.IntN(12))
	for i := range all {
		b := begun{ctx: c.w.begin(c.r, "async", 0, on), by: c.next()}
		req := &contractv1.AddRequest{By: b.by}
		if c.r.IntN(4) == 0 { // a large request, which small ones must not overtake
			field := protowire.AppendTag(nil, 1000, protowire.BytesType)
			req.ProtoReflect().SetUnknown(protowire.AppendBytes(field, pattern(0, 200<<10)))
		}
		b.future = to.AddAsync(b.ctx, req)
		all[i] = b
	}
	for _, b := range all {
		if c.r.IntN(10) == 0 {
			b.future.Cancel()
			b.ctx.end()
		}
		ctx, cancel := context.WithTimeout(context.Background(), longest+2*grace)
		res, err := b.future.Get(ctx)
		cancel()
		if b.ctx.check(err) && res.GetSum() != b.by {
			c.w.faultf("an async call got another call's response: %x, not %x", res.GetSum(), b.by)
		}
	}
}

// nested makes a call through several nodes, each in a turn. Their indices increase, so there is no
// cycle.
func (c *caller) nested() {
	ctx, by := c.w.begin(c.r, "nested", 0, c.w.hosts...), c.next()
	reach := func(i int) *contractv1.Reach { return &contractv1.Reach{Node: c.host.nodes[i].Ref().NodeRef()} }
	res, err := c.host.nodes[0].Relay(ctx, &contractv1.RelayRequest{
		Next: reach(1), Back: reach(2), What: strconv.FormatInt(by, 10),
	})
	if ctx.check(err) && res.GetSum() != by {
		c.w.faultf("a nested call got another call's response: %x, not %x", res.GetSum(), by)
	}
}

// wait calls methods that return when their context ends.
func (c *caller) wait() {
	to, on := c.target()
	ctx := c.w.begin(c.r, "wait", 0, on)
	if time.Until(ctx.limit) > time.Second { // otherwise the callers would do nothing else
		ctx.end()
		return
	}
	var err error
	if c.r.IntN(3) == 0 {
		_, err = to.Block(ctx, &contractv1.BlockRequest{})
	} else {
		_, err = to.BlockBeside(ctx, &contractv1.BlockRequest{})
	}
	if ctx.check(err) {
		c.w.faultf("a method that waits for the end of its context returned before it")
	}
}

func (c *caller) chat() {
	to, on := c.target()
	ctx := c.w.begin(c.r, "chat", 20*time.Millisecond, on)
	stream, err := to.Chat(ctx)
	if err != nil {
		ctx.check(err)
		return
	}
	defer func() { _ = stream.Close() }()
	text := strings.Repeat("x", c.r.IntN(20<<10))
	for i := range 1 + c.r.IntN(20) {
		want := strconv.Itoa(i) + text
		if err = stream.Send(&contractv1.ChatRequest{Text: want}); err != nil && !errors.Is(err, io.EOF) {
			ctx.check(err)
			return
		}
		res, rerr := stream.Receive()
		if rerr != nil {
			if errors.Is(rerr, io.EOF) {
				c.w.faultf("a chat ended without an error in the middle")
			}
			ctx.check(rerr)
			return
		}
		if res.GetText() != want {
			c.w.faultf("a chat's message was changed")
		}
	}
	if err = stream.CloseSend(); err == nil {
		if _, err = stream.Receive(); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	ctx.check(err)
}

func (c *caller) numbers() {
	numbers, size := uint32(c.r.IntN(200)), c.r.IntN(8<<10)
	if c.r.IntN(8) == 0 {
		numbers, size = 3, 300<<10
	}
	to, on := c.target()
	abandon := c.r.IntN(4) == 0
	ctx := c.w.begin(c.r, "count", 20*time.Millisecond, on)
	stream, err := to.Count(ctx, &contractv1.CountRequest{To: numbers, Payload: uint32(size)})
	if err != nil {
		ctx.check(err)
		return
	}
	defer func() { _ = stream.Close() }()
	for i := uint32(0); ; i++ {
		res, err := stream.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
				if i != numbers {
					c.w.faultf("a stream of %d ended without an error after %d", numbers, i)
				}
			}
			ctx.check(err)
			return
		}
		if res.GetNumber() != i || !bytes.Equal(res.GetPayload(), pattern(int(i), size)) {
			c.w.faultf("message %d of a stream was received as %d, or changed", i, res.GetNumber())
		}
		if abandon && i > numbers/2 {
			_ = stream.Close()
			ctx.check(nil)
			return
		}
	}
}

func (c *caller) sum() {
	to, on := c.target()
	ctx := c.w.begin(c.r, "sum", 20*time.Millisecond, on)
	stream, err := to.Sum(ctx)
	if err != nil {
		ctx.check(err)
		return
	}
	defer func() { _ = stream.Close() }()
	want := int64(0)
	for i := range int64(c.r.IntN(300)) {
		if err = stream.Send(&contractv1.SumRequest{Number: i}); err != nil {
			break // the response has the reason
		}
		want += i
	}
	res, err := stream.CloseAndReceive()
	if ctx.check(err) && res.GetSum() != want {
		c.w.faultf("a sum of %d was received as %d", want, res.GetSum())
	}
}

func (c *caller) find() {
	ctx := c.w.begin(c.r, "find", 0)
	ctx.brain = true
	want := c.host.nodes[c.r.IntN(hosts)].Ref()
	found, err := contractv1raylink.FindProbe(ctx, c.host.rt, raylink.Path(want.Path()))
	if ctx.check(err) && found.Ref().NID() != want.NID() {
		c.w.faultf("%s was found as %s, not %s", want.Path(), found.Ref().NID(), want.NID())
	}
	select {
	case <-c.w.over:
	case <-time.After(20 * time.Millisecond):
	}
}

// start starts the callers.
func (w *world) start(seed uint64) {
	shapes := [][]func(*caller){
		{(*caller).add, (*caller).fetch},
		{(*caller).add},
		{(*caller).echo, (*caller).fetch},
		{(*caller).burst},
		{(*caller).nested},
		{(*caller).wait},
		{(*caller).chat, (*caller).sum},
		{(*caller).numbers},
		{(*caller).find},
	}
	last := int64(0)
	for _, h := range w.hosts {
		for _, does := range shapes {
			last++
			name := last
			c := &caller{w: w, host: h, name: name, r: rand.New(rand.NewPCG(seed, uint64(name)))}
			w.run.Go(func() {
				for !w.isOver() {
					if w.alone.Load() && int(name)%len(shapes) != 1 {
						w.pause(time.Duration(c.r.IntN(300)) * time.Millisecond)
						if c.r.IntN(8) > 0 {
							continue
						}
					}
					does[c.r.IntN(len(does))](c)
				}
			})
		}
	}
}

// floods sometimes makes a flood of calls. The connection must work as well as before it.
func (w *world) floods(r *rand.Rand) {
	for i := range int64(1 << 14) {
		w.pause(time.Duration(500+r.IntN(8000)) * time.Millisecond)
		if w.isOver() {
			return
		}
		c := &caller{w: w, host: w.hosts[r.IntN(hosts)], r: r, name: 1<<14 + 1 + i}
		c.flood(5000)
	}
}

// pause waits for d, or the end of the run.
func (w *world) pause(d time.Duration) {
	select {
	case <-w.over:
	case <-time.After(d):
	}
}

// disturbLinks slows, stalls and cuts links.
func (w *world) disturbLinks(r *rand.Rand) {
	for !w.isOver() {
		h := w.hosts[r.IntN(hosts)]
		if r.IntN(10) == 0 {
			w.cuts.Add(1) // first: calls that begin after the cut need another name
			h.cut.Store(math.MaxInt64)
			h.proxy.cut()
			h.cut.Store(w.clock.Load())
			w.count("cut")
		} else {
			what, undo := h.proxy.disturb(r)
			w.count(what)
			w.pause(time.Duration(50+r.IntN(800)) * time.Millisecond)
			undo()
		}
		w.pause(time.Duration(r.IntN(300)) * time.Millisecond)
		w.alone.Store(r.IntN(3) == 0)
		if r.IntN(4) == 0 { // a fast system has other faults than a slow one
			w.pause(time.Second)
		}
	}
}

// disturbBrain suspends Brain's process for a while, or kills it and starts another.
func (w *world) disturbBrain(r *rand.Rand) {
	for !w.isOver() {
		w.pause(time.Duration(200+r.IntN(1500)) * time.Millisecond)
		w.away.Store(math.MaxInt64)
		var err error
		if r.IntN(2) == 0 {
			w.count("Brain stopped")
			if err = w.brain.signal(syscall.SIGSTOP); err == nil {
				w.pause(time.Duration(200+r.IntN(1500)) * time.Millisecond)
				err = w.brain.signal(syscall.SIGCONT)
			}
		} else {
			w.count("Brain killed")
			if err = w.brain.kill(); err == nil {
				w.pause(time.Duration(r.IntN(500)) * time.Millisecond)
				err = w.brain.start()
			}
		}
		w.away.Store(w.clock.Load())
		if err != nil {
			w.faultf("disturbing Brain: %v", err)
			return
		}
	}
}

func (w *world) count(what string) {
	w.mu.Lock()
	w.outcomes["disturbed: "+what]++
	w.mu.Unlock()
}

// watchHeap checks that the heap is bounded throughout the run.
func (w *world) watchHeap() {
	for !w.isOver() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if m.HeapAlloc > mostHeap {
			w.faultf("the heap has %d MiB", m.HeapAlloc>>20)
			return
		}
		w.pause(500 * time.Millisecond)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // frees what the first one has run finalizers for
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// options are every host's.
func (w *world) options() []join.Option {
	return []join.Option{
		raylink.WithToken(token), raylink.WithDrain(drain),
		raylink.WithStartTimeout(processCreation), contractv1raylink.ProbeType(w.setUp),
	}
}

// join makes a host that others reach by a proxy, with one node.
func (w *world) join(ctx context.Context) *host {
	t, listen := w.t, reserve(w.t)
	p, err := newProxy(listen)
	require.NoError(t, err)
	t.Cleanup(p.close)
	rt, err := join.Start(ctx, append(w.options(), raylink.WithBrain(w.brain.address), raylink.WithListen(listen), raylink.WithAdvertise(p.address()))...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, rt.Close()) }) // once more does nothing
	own, err := contractv1raylink.CreateProbe(ctx, rt, nil)
	require.NoError(t, err)
	// Processes of one machine would connect by Unix sockets, but these must use the proxy.
	require.NoError(t, os.Remove(own.Ref().NodeRef().GetHost().GetSocket()))
	return &host{rt: rt, proxy: p, own: own}
}

// startCradle starts the cradle.
func (w *world) startCradle(ctx context.Context) {
	t := w.t
	w.cradle = exec.Command(os.Args[0])
	w.cradle.Env = append(os.Environ(), cradleMode+"="+w.brain.address)
	node, err := startServing(w.cradle)
	t.Cleanup(func() { _ = w.cradle.Process.Kill() })
	require.NoError(t, err)
	for _, h := range w.hosts {
		h.cradle, err = contractv1raylink.FindProbe(ctx, h.rt, raylink.Path(node))
		require.NoError(t, err)
	}
}

// limit is how long open calls may still take at the end.
func (w *world) limit() time.Duration {
	if *brief {
		return longest + grace + patience // no processes are created
	}
	return processCreation + drain + 2*grace + 2*patience
}

// await waits for a time. A brief run ends with the first failure.
func (w *world) await(d time.Duration) {
	end := time.Now().Add(d)
	for time.Now().Before(end) && (!*brief || !w.isFaulty()) {
		<-time.After(min(time.Until(end), 100*time.Millisecond))
	}
}

func (w *world) isFaulty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.faults) > 0
}

// awaitCalls waits for all callers. It reports calls that do not return.
func (w *world) awaitCalls() {
	done := make(chan struct{})
	go func() { w.run.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(w.limit()):
		w.report()
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		require.Fail(w.t, "a call has not returned")
	}
}

// TestSoak keeps a system of three hosts busy with calls of all shapes, while its links are slowed,
// stalled and cut, Brain is suspended and killed, and the garbage collector runs as often as it
// can. Each caller's calls run in order, none twice. Each returns in time with its own response,
// and fails only for a reason. The contexts of methods end with their calls, memory is bounded, and
// nothing is left at the end.
func TestSoak(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	if *brief {
		patience = 10 * time.Second
	}
	t.Logf("-soak=%v -soak.seed=%d", *duration, *seed)
	dir, err := os.MkdirTemp("/tmp", "soak") //nolint:usetesting // short: Unix sockets are to fit
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	sockets := filepath.Join(dir, "s")
	t.Setenv("RAYLINK_DATA", filepath.Join(dir, "data"))
	t.Setenv("RAYLINK_RUNTIME_DIR", sockets)
	t.Setenv("GOGC", "5") // the processes of Brain and of nodes
	defer debug.SetGCPercent(debug.SetGCPercent(5))
	w := &world{t: t, over: make(chan struct{}), outcomes: make(map[string]int)}
	w.brain = &brain{address: reserve(t)}
	files := openFiles(t)
	require.NoError(t, w.brain.start())
	t.Cleanup(func() { _ = w.brain.cmd.Process.Kill() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range hosts {
		w.hosts = append(w.hosts, w.join(ctx))
	}
	for _, h := range w.hosts {
		for _, other := range w.hosts {
			handle, err := contractv1raylink.ProbeFrom(h.rt, other.own.Ref().NodeRef())
			require.NoError(t, err)
			h.nodes = append(h.nodes, handle)
		}
	}
	w.startCradle(ctx)
	before := heap()
	for _, h := range w.hosts {
		h.cut.Store(math.MinInt32)
	}
	w.away.Store(math.MinInt32)
	w.run.Go(func() {
		for !w.isOver() {
			w.pause(tick)
			w.clock.Add(1)
		}
	})
	w.start(*seed)
	w.run.Go(func() { w.disturbLinks(rand.New(rand.NewPCG(*seed, 1<<32))) })
	if !*brief {
		w.run.Go(func() { w.disturbBrain(rand.New(rand.NewPCG(*seed, 1<<33))) })
		w.run.Go(func() { w.visit(rand.New(rand.NewPCG(*seed, 1<<36)), churners+hosts) })
	}
	w.run.Go(func() { w.floods(rand.New(rand.NewPCG(*seed, 1<<34))) })
	for i, h := range w.hosts {
		if *brief {
			break // mutants are detected sooner if less else happens
		}
		w.run.Go(func() { w.churn(h, rand.New(rand.NewPCG(*seed, 1<<35+uint64(i))), churners+int64(i)) })
	}
	w.run.Go(w.watchHeap)
	w.await(*duration)
	// On a busy machine some kinds of calls may not have been made yet.
	assert.Eventually(t, func() bool { return len(w.missing()) == 0 || *brief }, patience, 10*time.Millisecond, "some outcomes did not occur")
	close(w.over)
	w.awaitCalls()
	w.report()
	w.checkRecovery()
	w.checkLives()
	w.checkEnd(files, sockets, before)
}

// report logs the outcomes and the failures.
func (w *world) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(w.outcomes)) {
		w.t.Logf("%8d %s", w.outcomes[what], what)
	}
	w.t.Logf("missing: %v; faults: %v", w.missingLocked(), w.faults)
}

// missing are the required outcomes that have not occurred yet.
func (w *world) missing() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.missingLocked()
}

func (w *world) missingLocked() []string {
	return slices.DeleteFunc([]string{
		"add ok", "echo ok", "fetch ok", "async ok", "nested ok", "chat ok", "count ok", "sum ok",
		"find ok", "wait deadline_exceeded", "wait canceled",
		"create here ok", "create below ok", "create far ok", "live ok", "stop ok", "visit ok",
	}, func(what string) bool { return w.outcomes[what] > 0 })
}

// checkRecovery checks that the system works when it is no longer disturbed.
func (w *world) checkRecovery() {
	t := w.t
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var count atomic.Int64
	assert.Eventually(t, func() bool { return w.blocked.Load() == 0 }, patience, time.Millisecond,
		"a method's context did not end with its call")
	if *brief && t.Failed() {
		return // enough
	}
	for _, h := range w.hosts {
		for _, to := range h.nodes {
			assert.Eventually(t, func() bool {
				_, err := to.Add(ctx, &contractv1.AddRequest{By: number(1<<14, 0, count.Add(1))})
				return err == nil
			}, patience, 10*time.Millisecond, "%s can't be reached any more", to.Ref().Path())
			assert.Eventually(t, func() bool {
				_, err := contractv1raylink.FindProbe(ctx, h.rt, raylink.Path(to.Ref().Path()))
				return err == nil
			}, patience, 10*time.Millisecond, "%s is not found any more", to.Ref().Path())
		}
	}
}

// checkEnd closes everything and checks that nothing is left.
func (w *world) checkEnd(files int, sockets string, before uint64) {
	t := w.t
	if after := heap(); after > before+heapLeft {
		assert.Fail(t, "memory is left", "%d MiB, %d before", after>>20, before>>20)
	}
	for _, h := range w.hosts {
		require.NoError(t, h.rt.Close())
		h.proxy.close()
	}
	require.NoError(t, w.cradle.Process.Signal(endCradle))
	assert.NoError(t, w.cradle.Wait())
	require.NoError(t, w.brain.signal(syscall.SIGTERM))
	assert.NoError(t, w.brain.cmd.Wait())
	var left any
	none := func(find func() any) func() bool {
		return func() bool {
			left = find()
			return left == nil
		}
	}
	assert.Eventually(t, none(func() any {
		if found := ours(filepath.Dir(sockets)); len(found) > 0 {
			return found
		}
		return nil
	}), patience, 10*time.Millisecond, "processes are left")
	assert.Eventually(t, none(func() any {
		if n := openFiles(t); n > files {
			return n
		}
		return nil
	}), patience, 10*time.Millisecond, "open files are left")
	// The next process on the machine removes what a killed Brain could not.
	require.NoError(t, rundir.SweepHosts(sockets))
	entries, err := filepath.Glob(filepath.Join(sockets, "*", "*"))
	require.NoError(t, err)
	assert.Empty(t, slices.DeleteFunc(entries, func(path string) bool { return filepath.Base(filepath.Dir(path)) == "locks" }))
	if left != nil {
		t.Logf("left: %v", left)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	assert.Empty(t, w.faults)
	require.NoError(t, goleak.Find())
}
