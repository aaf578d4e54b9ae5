package soak

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	raylink "github.com/raylink/raylink/runtime"
)

const (
	// drain bounds the end of a node, and with it that of a creation that is given up: it ends what
	// it had begun before it returns.
	drain = 4 * time.Second
	// creation is the longest deadline of a creation and of a stop, and processCreation of one that
	// starts a process, which is slow on a machine that has other work.
	creation        = 6 * time.Second
	processCreation = 30 * time.Second
	// notice is how long a death may take to be known at another host. Brain may be away for some
	// seconds meanwhile.
	notice = 15 * time.Second
	// churners is the first caller name of the goroutines that create nodes; callers have lower
	// ones.
	churners = 1 << 13
)

// life is a node that is created and ended during the run.
type life struct {
	at    place
	probe *contractv1raylink.Probe
	// later is set if the node was not set up when its creation returned; it may never be.
	later bool
	// ending is set before the node is stopped or killed: from then on its calls may fail.
	ending atomic.Bool
}

// place is where a node is created.
type place struct {
	what    string
	on      *host
	from    raylink.Parent
	opts    []raylink.CreateOption
	longest time.Duration
}

// place chooses where and how the next node is created.
func (c *caller) place() place {
	far := c.r.IntN(hosts)
	switch n := c.r.IntN(24); {
	case n == 0:
		return place{
			"create process", c.host, c.host.cradle.Ref(), []raylink.CreateOption{raylink.OwnProcess()}, processCreation,
		}
	case n < 8:
		return place{"create here", c.host, c.host.rt, []raylink.CreateOption{raylink.Here()}, creation}
	case n < 16:
		return place{
			"create below", c.host, c.host.own.Ref(), []raylink.CreateOption{raylink.ParentProcess()}, creation,
		}
	}
	return place{
		"create far", c.w.hosts[far], c.host.nodes[far].Ref(), []raylink.CreateOption{raylink.ParentProcess()}, creation,
	}
}

// lasting is begin for operations that need Brain. They have a long deadline, or are canceled
// early.
func (c *caller) lasting(what string, longest time.Duration, early bool, to ...*host) *call {
	if early {
		longest = time.Duration(c.r.IntN(60)) * time.Millisecond
	}
	b := &call{w: c.w, what: what, to: to, begin: time.Now(), begun: c.w.clock.Load(), slack: drain, brain: true}
	b.limit = b.begin.Add(longest)
	b.Context, b.end = context.WithDeadline(context.Background(), b.limit)
	return b
}

// live creates nodes, calls and ends them, in each possible way.
func (c *caller) live() {
	at := c.place()
	opts := at.opts
	later := c.r.IntN(3) == 0
	if later {
		opts = append(opts, raylink.NoWait())
	}
	ctx := c.lasting(at.what, at.longest, c.r.IntN(4) == 0, at.on, c.host)
	probes, err := contractv1raylink.CreateProbeN(ctx, at.from, 1+c.r.IntN(2), &contractv1.ProbeConfig{}, opts...)
	if !ctx.check(err) {
		return
	}
	var all sync.WaitGroup
	for i, probe := range probes {
		l := &life{at: at, probe: probe, later: later}
		user := &caller{w: c.w, host: c.w.hosts[c.r.IntN(hosts)], r: rand.New(rand.NewPCG(c.r.Uint64(), uint64(i))), name: c.name}
		ender := &caller{w: c.w, host: c.host, r: rand.New(rand.NewPCG(c.r.Uint64(), uint64(i)))}
		all.Go(func() { user.use(l) })
		all.Go(func() { ender.finish(l) })
	}
	all.Wait()
}

// use calls the node until its end, and expects to be notified of that.
func (c *caller) use(l *life) {
	p, err := contractv1raylink.ProbeFrom(c.host.rt, l.probe.Ref().NodeRef())
	if err != nil {
		c.w.faultf("a reference of a created node: %v", err)
		return
	}
	for first := true; !l.ending.Load() || first; first = false {
		ctx := c.w.begin(c.r, "live", 20*time.Millisecond, l.at.on)
		ctx.life = l
		switch c.r.IntN(4) {
		case 0:
			stream, serr := p.Chat(ctx)
			for err = serr; err == nil; {
				if err = stream.Send(&contractv1.ChatRequest{Text: "x"}); err == nil || errors.Is(err, io.EOF) {
					_, err = stream.Receive()
				}
			}
			if serr == nil {
				_ = stream.Close()
			}
			if errors.Is(err, io.EOF) {
				c.w.faultf("a chat ended cleanly by itself")
			}
		case 1:
			_, err = p.BlockBeside(ctx, &contractv1.BlockRequest{})
		case 2:
			_, err = p.AddAsync(ctx, &contractv1.AddRequest{By: c.next()}).Get(context.Background())
		default:
			_, err = p.Add(ctx, &contractv1.AddRequest{By: c.next()})
		}
		ctx.check(err)
	}
	begun := c.w.clock.Load()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.Ref().Ended(ctx); err != nil {
		c.w.faultf("the end of %s was not known: %v", p.Ref().Path(), err)
		return
	}
	if took := time.Duration(c.w.clock.Load()-begun) * tick; took > notice+drain {
		c.w.faultf("the end of %s was known after %v", p.Ref().Path(), took)
	}
	last := c.lasting("after the end", longest, false)
	if _, err = p.Add(last, &contractv1.AddRequest{By: c.next()}); err == nil {
		c.w.faultf("%s answered after its end", p.Ref().Path())
	}
	last.checkLate(err)
	last.end()
}

// finish ends the node: it is stopped, or its process is killed.
func (c *caller) finish(l *life) {
	c.w.pause(time.Duration(c.r.IntN(150)) * time.Millisecond)
	pid := l.probe.Ref().Record().GetHost().GetPid()
	l.ending.Store(true)
	if l.at.what == "create process" && pid != 0 && c.r.IntN(2) == 0 {
		c.w.count("node killed")
		if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			c.w.faultf("killing a node's process: %v", err)
		}
		return
	}
	for { // a stop that failed is repeated: the node has to end
		ctx := c.lasting("stop", creation, false, l.at.on, c.host)
		err := l.probe.Ref().Stop(ctx)
		if ctx.check(err) || connect.CodeOf(err) == connect.CodeUnavailable && l.probe.Ref().State() == nodev1.NodeState_NODE_STATE_DEAD {
			return
		}
		if time.Since(ctx.begin) > patience {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-l.over():
			return
		}
	}
}

// over returns a channel that is closed when the node is known to have ended.
func (l *life) over() <-chan struct{} {
	if l.probe.Ref().State() != nodev1.NodeState_NODE_STATE_DEAD {
		return nil
	}
	ended := make(chan struct{})
	close(ended)
	return ended
}

// churn creates and ends nodes, one after the other.
func (w *world) churn(h *host, r *rand.Rand, name int64) {
	c := &caller{w: w, host: h, r: r, name: name}
	for !w.isOver() {
		for w.alone.Load() && !w.isOver() { // its calls use the same connections
			w.pause(100 * time.Millisecond)
		}
		c.live()
		w.pause(time.Duration(r.IntN(100)) * time.Millisecond)
	}
}

// visit has a host join briefly, call the others, and leave while its calls are open.
func (w *world) visit(r *rand.Rand, name int64) {
	c := &caller{w: w, r: r, name: name}
	for !w.isOver() {
		w.pause(time.Duration(200+r.IntN(1500)) * time.Millisecond)
		ctx := c.lasting("visit", creation, r.IntN(4) == 0, w.hosts...)
		rt, err := join.Start(ctx, append(w.options(), raylink.WithBrain(w.brain.address))...)
		if ctx.check(err) {
			c.stay(rt)
		}
	}
}

func (c *caller) stay(rt *join.Runtime) {
	var calls sync.WaitGroup
	leaving := &life{}
	for _, h := range c.w.hosts {
		p, err := contractv1raylink.ProbeFrom(rt, h.own.Ref().NodeRef())
		if err != nil {
			c.w.faultf("a reference of a live node: %v", err)
			continue
		}
		r := rand.New(rand.NewPCG(c.r.Uint64(), 1))
		calls.Go(func() {
			for !leaving.ending.Load() {
				ctx := c.w.begin(r, "visitor's", 0, h)
				ctx.life = leaving
				_, err := p.BlockBeside(ctx, &contractv1.BlockRequest{})
				ctx.check(err)
			}
		})
	}
	ctx := c.lasting("visitor creates", creation, false)
	if _, err := contractv1raylink.CreateProbe(ctx, rt, nil); ctx.check(err) {
		c.w.count("visitor created")
	}
	leaving.ending.Store(true)
	begun := c.w.clock.Load()
	if err := rt.Close(); err != nil {
		c.w.count("visitor left with an error: " + connect.CodeOf(err).String())
	}
	if took := time.Duration(c.w.clock.Load()-begun) * tick; took > 2*drain+grace {
		c.w.faultf("a visitor needed %v to leave", took)
	}
	calls.Wait()
}

// checkLives checks that nothing is left of the nodes that were created and ended, in the hosts and
// in Brain.
func (w *world) checkLives() {
	t := w.t
	assert.Eventually(t, func() bool { return w.ups.Load()-w.downs.Load() == hosts }, patience, 10*time.Millisecond,
		"nodes that were set up were not stopped")
	t.Logf("%d nodes were set up in the process", w.ups.Load())
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := raylink.NewHTTPTransport(token, protocols)
	defer transport.CloseIdleConnections()
	brain := brainv1connect.NewBrainServiceClient(connect.NewClient(
		connecthttp.NewTransport(&http.Client{Transport: transport}, "http://"+w.brain.address)))
	var left []string
	if !assert.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		res, err := brain.List(ctx, &brainv1.ListRequest{})
		if err != nil {
			return false
		}
		left = nil
		for _, rec := range res.GetNodes() {
			if strings.HasPrefix(path.Base(rec.GetPath()), "probe-") {
				left = append(left, rec.GetPath()+" "+rec.GetState().String())
			}
		}
		return len(left) == hosts+1 // one is in the cradle
	}, patience, 50*time.Millisecond) {
		require.Fail(t, "records of nodes are left", "%d: %v", len(left), left)
	}
}
