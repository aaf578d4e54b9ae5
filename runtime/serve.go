package runtime

import (
	"context"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/internal/mailbox"
	"github.com/raylink/raylink/runtime/tunnel"
)

// newCall makes the context of a call that reaches a node, whatever its way. ctx is the caller's:
// its end and deadline apply, its values do not.
func newCall(ctx context.Context, m *Method, way wayNumber) *callContext {
	return &callContext{call: Call{method: m, way: way}, caller: ctx}
}

// bind makes n the node of the call: it sets the node and the context that ends with it.
func (n *Node) bind(cc *callContext) {
	cc.node = n
	cc.nodeCtx = n.work
	if cc.call.method.builtin && n.host != nil {
		// Built-in methods may outlive the node, such as the one that stops it.
		cc.nodeCtx = n.host.life
	}
}

// isConcurrent reports whether a method runs without a turn.
func (n *Node) isConcurrent(m *Method) bool {
	return m.Concurrent() || n.concurrent != nil && !m.builtin && n.concurrent[m.index]
}

// invoke runs a unary method for a caller in this process that waits for it. If the node is idle,
// or the method is concurrent, it runs inline on the caller's goroutine, without a handover and
// wake-up. Such a call cannot return before its method does, so it may overrun its deadline by the
// time that the method takes to notice (docs/turns.md has the figures behind this choice).
func (n *Node) invoke(cc *callContext, req proto.Message) (proto.Message, error) {
	ctx := cc.caller
	if ctx.Err() != nil {
		return nil, n.ended(ctx, cc.call.method, unsent)
	}
	n.bind(cc)
	if n.isConcurrent(cc.call.method) {
		if err := n.enterConcurrent(cc); err != nil {
			return nil, err
		}
		defer n.leaveConcurrent(cc)
		return n.runInline(cc, req)
	}
	if err := n.refuseCycle(cc); err != nil {
		return nil, err
	}
	if n.mailbox.TryTurn(&cc.ownTurn, cc) {
		cc.turn = &cc.ownTurn
		defer cc.ownTurn.Release()
		return n.runInline(cc, req)
	}
	return n.invokeQueued(cc, req)
}

// invokeQueued is invoke for a call that does not run inline.
func (n *Node) invokeQueued(cc *callContext, req proto.Message) (proto.Message, error) {
	ctx := cc.caller
	j := &job{cc: cc, req: req, size: proto.Size(req), done: make(chan struct{})}
	if err := n.enqueue(j); err != nil {
		return nil, err
	}
	mayBlock(ctx)
	select {
	case <-j.done:
		return j.res, j.err
	case <-n.life.Done():
		if returnsLate(ctx, j.done) {
			return j.res, j.err
		}
		return nil, n.unreturned(cc.call.method)
	case <-ctx.Done():
	}
	at := n.withdraw(j)
	if at == running {
		select {
		case <-j.done:
			// Both happened at once: prefer the result.
			return j.res, j.err
		default:
		}
	}
	return nil, n.ended(ctx, cc.call.method, at)
}

// runInline runs a unary method on its caller's goroutine. If the caller's context has ended
// meanwhile, the error is that, as for every other way.
func (n *Node) runInline(cc *callContext, req proto.Message) (proto.Message, error) {
	res, err := n.run(cc, req)
	if cc.held.Load() != nil {
		return n.awaitHolds(cc, res, err)
	}
	if cc.caller.Err() != nil {
		return nil, n.ended(cc.caller, cc.call.method, running)
	}
	return res, err
}

// submit puts a unary call into the mailbox, or starts a concurrent one, and returns. finish is
// called once, on a goroutine of the node; if submit returns an error it is never called.
func (n *Node) submit(cc *callContext, req proto.Message, size int, finish func(*job)) (*job, error) {
	j := &job{cc: cc, req: req, size: size, finish: finish}
	return j, n.submitJob(j)
}

func (n *Node) submitJob(j *job) error {
	cc := j.cc
	n.bind(cc)
	if n.isConcurrent(cc.call.method) {
		if err := n.reserveConcurrent(cc, j); err != nil {
			return err
		}
		go func() {
			kept := false
			defer func() {
				if !kept {
					n.leaveConcurrent(cc)
				}
			}()
			if err := n.awaitReady(cc); err != nil {
				j.Refuse(err)
				return
			}
			kept = j.run(nil)
		}()
		return nil
	}
	if err := n.refuseCycle(cc); err != nil {
		return err
	}
	return n.enqueue(j)
}

// cancel cancels a submitted call, and returns how far it had come. If it had not begun, it never
// runs. Unless it was running, finish is not called.
func (n *Node) cancel(j *job, cause error) stage {
	at := n.withdraw(j)
	if at == running {
		j.cc.abort(cause)
	}
	return at
}

// withdraw removes a call for whose answer its caller no longer waits, and returns how far it had
// come. Its answer is not held any more, not even if it is still running.
func (n *Node) withdraw(j *job) stage {
	switch {
	case j.entry != nil && n.mailbox.Remove(j.entry):
		return inMailbox
	case j.forsake():
		j.leave()
		return heldBack
	default:
		return running
	}
}

func (n *Node) enqueue(j *job) error {
	j.entry = &mailbox.Entry{Work: j, Label: j.cc.call.method.name, Bytes: int64(j.size)}
	var err error
	j.queued, err = n.mailbox.Enqueue(j.entry)
	return n.refused(j.cc, err)
}

// enterConcurrent reserves a place for a concurrent call. It blocks until the node is set up.
func (n *Node) enterConcurrent(cc *callContext) error {
	if err := n.reserveConcurrent(cc, cc); err != nil {
		return err
	}
	err := n.awaitReady(cc)
	if err != nil {
		cc.end()
		n.leaveConcurrent(cc)
	}
	return err
}

// reserveConcurrent counts a concurrent call, or refuses it. Built-in methods are always accepted
// and not counted, since one of them drains the node. of is the value listed as running: cc, or
// its job.
func (n *Node) reserveConcurrent(cc *callContext, of any) error {
	m := cc.call.method
	if m.builtin {
		return nil
	}
	if err := n.refuseUnready(cc.chain, cc.call.from, m.fullName()); err != nil {
		return n.refusedCycle(cc, err)
	}
	return n.refused(cc, n.mailbox.Enter(&cc.ownTurn, m.name, of))
}

// awaitReady blocks until the node is set up.
func (n *Node) awaitReady(cc *callContext) error {
	if cc.call.method.builtin || n.isUp.Load() {
		return nil
	}
	select {
	case <-n.ready:
		return n.neverReady
	default:
	}
	select {
	case <-n.ready:
		return n.neverReady
	case <-cc.Done():
		if n.endedBefore(cc.caller) {
			return context.Cause(n.work)
		}
		return n.ended(cc, cc.call.method, inSetup)
	}
}

func (n *Node) leaveConcurrent(cc *callContext) {
	if !cc.call.method.builtin {
		n.mailbox.Leave(&cc.ownTurn)
	}
}

// refuseUnready refuses a call that would deadlock with the node's set-up: the set-up waits for the
// call, or for a child that calls the node in its own set-up.
func (n *Node) refuseUnready(chain *chain, caller *Caller, method string) error {
	if n.isUp.Load() {
		return nil
	}
	select {
	case <-n.ready:
		return nil
	default:
	}
	if chain.holds(n.nid) > 0 {
		return connect.Errorf(connect.CodeFailedPrecondition,
			"the call would wait for itself: %s -> %s %s, which is served when the set-up is done", chain, n.path, method)
	}
	if caller != nil && n.creating.Load() > 0 && strings.HasPrefix(caller.Path, n.path+"/") {
		return connect.Errorf(connect.CodeFailedPrecondition, "%s is being set up and waits for a child, so %s can't call it yet: "+
			"create the child in a method of %s, or with NoWait", n.path, caller.Path, n.path)
	}
	return nil
}

func (n *Node) refuseCycle(cc *callContext) error {
	if err := n.refuseUnready(cc.chain, cc.call.from, cc.call.method.fullName()); err != nil {
		return n.refusedCycle(cc, err)
	}
	return n.refusedCycle(cc, cc.chain.refuseCycle(n.nid, n.path, cc.call.method.fullName(), n.mailbox.Turns()))
}

// job is a unary call in a mailbox.
type job struct {
	// entry is its place in the queue, if it has one.
	entry *mailbox.Entry
	cc    *callContext
	req   proto.Message
	size  int
	// queued is set if other calls were before it when it was enqueued.
	queued bool
	// held is the fingerprint of an answer that is held, see fingerprint.go.
	held fingerprint

	// When res and err are set, done is closed, finish is called and in gets the reply; each may be
	// nil.
	done   chan struct{}
	finish func(*job)
	in     *tunnel.Incoming
	res    proto.Message
	err    error
}

// Run implements [mailbox.Work].
func (j *job) Run(turn *mailbox.Turn) { j.run(turn) }

// run runs the job and answers it. If it returns true, the answer is held back; a job without a
// turn has then not ended in the mailbox.
func (j *job) run(turn *mailbox.Turn) (kept bool) {
	n := j.cc.node
	j.cc.turn = turn
	ended := false
	defer func() {
		if !ended { // its caller must not block for ever
			j.res, j.err = nil, n.goexited(j.cc.call.method)
			j.end()
		}
	}()
	if j.cc.caller.Err() != nil {
		j.err = n.ended(j.cc.caller, j.cc.call.method, inMailbox)
	} else if begin, latency := monotonic(), n.latencyOf(j); latency != nil {
		j.res, j.err = n.run(j.cc, j.req)
		latency.observe(monotonic() - begin)
	} else {
		j.res, j.err = n.run(j.cc, j.req)
	}
	ended = true
	if j.keep() {
		return true
	}
	j.end()
	return false
}

// Label implements [mailbox.Sized].
func (j *job) Label() string { return j.cc.Label() }

// Bytes implements [mailbox.Sized].
func (j *job) Bytes() int64 { return int64(j.size) }

// Refuse implements [mailbox.Work].
func (j *job) Refuse(err error) {
	j.cc.end() // releases what waiting for the node's set-up may have registered
	j.err = err
	j.end()
}

func (j *job) end() {
	if j.done != nil {
		close(j.done)
	}
	if j.finish != nil {
		j.finish(j)
	}
	if j.in != nil {
		j.answer()
	}
}

// answer sends the outcome of a job that came through a tunnel.
func (j *job) answer() {
	if j.err == nil && !j.cc.call.hasResponseMetadata() {
		j.in.Reply(j.res, nil)
		return
	}
	header, trailer, err := j.cc.node.outcome(j.cc, j.err)
	j.in.SetHeader(header.header)
	j.in.SetTrailer(trailer.header)
	j.in.Reply(j.res, err)
}

// run runs a unary method, and converts its error for the caller. If the method ends its goroutine,
// run does not return.
func (n *Node) run(cc *callContext, req proto.Message) (res proto.Message, err error) {
	returned := false
	defer func() {
		cc.end()
		if !returned {
			cc.held.Store(nil)
			res, err = nil, n.failed(cc.call.method, usercode.Outcome(false, recover()))
		}
	}()
	res, err = n.runMethod(cc, req)
	returned = true
	return res, err
}

func (n *Node) runMethod(cc *callContext, req proto.Message) (res proto.Message, err error) {
	if err := n.verifySent(cc); err != nil {
		return nil, err
	}
	switch m := cc.call.method; {
	case m.builtin:
		res, err = m.unary(n, cc, req)
	case n.intercept == nil:
		res, err = m.unary(n.impl, cc, req)
	default:
		res, err = n.runIntercepted(cc, req)
	}
	if err == nil && cc.call.way == byLocal {
		if err := n.checkEncodes(cc.call.method, false, res); err != nil {
			return nil, err
		}
		if err := n.checkDecodes(cc.call.method, false, res); err != nil {
			return nil, err
		}
		res = n.passes(res)
	}
	if broken := n.verifyReturned(cc, res); broken != nil {
		return nil, broken
	}
	if err != nil {
		return nil, n.convertError(cc, err)
	}
	return res, nil
}

// runIntercepted runs a unary method inside the interceptors.
func (n *Node) runIntercepted(cc *callContext, req proto.Message) (proto.Message, error) {
	m := cc.call.method
	inv := &Invocation{Node: n.ref(), Method: m, Request: req}
	if err := n.intercept(cc, inv); err != nil {
		return nil, err
	}
	if isNil(inv.Response) {
		return m.newResponse(), nil
	}
	if !m.isResponse(inv.Response) {
		return nil, connect.Errorf(connect.CodeInternal, "an interceptor made a %T the response of %s", inv.Response, m.fullName())
	}
	return inv.Response, nil
}

// runStream runs a streaming method, and converts its error. If the method ends its goroutine,
// runStream does not return: its caller then replies with [Node.goexited].
func (n *Node) runStream(cc *callContext, stream connect.ServerStream) (err error) {
	n.bind(cc)
	m := cc.call.method
	if err := n.enterConcurrent(cc); err != nil {
		return err
	}
	returned := false
	defer func() {
		cc.end()
		n.leaveConcurrent(cc)
		if !returned {
			err = n.failed(m, usercode.Outcome(false, recover()))
		}
	}()
	if n.intercept == nil {
		err = m.stream(n.impl, cc, stream)
	} else {
		err = n.intercept(cc, &Invocation{Node: n.ref(), Method: m, Stream: stream})
	}
	if err != nil {
		err = n.convertError(cc, err)
	}
	returned = true
	return err
}

// latencyOf is the latency EWMA of the method of a job from a tunnel; nil for any other job.
func (n *Node) latencyOf(j *job) *latencyEWMA {
	m := j.cc.call.method
	if j.in == nil || m.builtin {
		return nil
	}
	return &n.latencies[m.index]
}

// tryInline decides whether a job runs inline, on the goroutine that reads its connection, and if
// so acquires the turn or the concurrent place that it needs.
func (n *Node) tryInline(j *job, moreBehind bool) (bool, error) {
	latency := n.latencyOf(j)
	if latency == nil || !latency.quick(moreBehind) || !n.isUp.Load() {
		return false, nil
	}
	cc := j.cc
	n.bind(cc)
	if n.isConcurrent(cc.call.method) {
		return true, n.reserveConcurrent(cc, j)
	}
	if err := n.refuseCycle(cc); err != nil {
		return false, err
	}
	if !n.mailbox.TryTurn(&cc.ownTurn, j) {
		return false, nil
	}
	cc.turn = &cc.ownTurn
	return true, nil
}

// serveInline runs inline a job for which tryInline has returned true.
func (n *Node) serveInline(j *job) {
	cc := j.cc
	if !n.isConcurrent(cc.call.method) {
		defer cc.ownTurn.Release()
		j.run(cc.turn)
		return
	}
	kept := false
	defer func() {
		if !kept {
			n.leaveConcurrent(cc)
		}
	}()
	kept = j.run(nil)
}
