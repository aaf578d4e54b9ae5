package tunnel

import "context"

// Most calls are over in less than a millisecond, and waiting for two things at once (the answer, and the end of the caller's context) costs
// more than all else that their callers do: a channel for the context, and a select. So a caller waits for its call alone at first. Those who
// wait are looked after every millisecond by the [Overseer]: who waits for a context that has ended is told, and who has waited for some time
// is made to watch its context itself from then on.

// waiting is the part of a call that has [Call.Waits].
type waiting struct {
	// tokens has room for both: watch, at the most once, and then over.
	tokens chan token

	// What follows is guarded by the connection's lock, and used while the call is open: the caller's context, how often the overseer
	// has found it waiting, and whether it has been told to watch its context.
	ctx   context.Context //nolint:containedctx // as long as the caller waits
	looks int
	told  bool
	// reads says that the caller is to read the connection itself. Only Start and Wait use it.
	reads bool
}

// token is what a caller that waits is told.
type token uint8

const (
	// watch: from now on the caller is to watch its context.
	watch token = iota
	// over: the call is.
	over
)

const (
	// patience is how often the overseer finds a call waiting before its caller watches its context itself.
	patience = 8
	// maxPatient is the largest number of open calls with which callers are looked after.
	maxPatient = 1024
)

// Reset makes a call that is over one that can be started again, without what it had; it keeps what waiting needs.
func (call *Call) Reset() { *call = Call{Waits: call.Waits, waiting: waiting{tokens: call.tokens}} }

// expect prepares for a caller that is going to wait: it is to read its own answer if it is alone and nobody else reads. Callers hold the lock.
func (c *Conn) expect(ctx context.Context, call *Call) {
	if call.tokens == nil {
		call.tokens = make(chan token, 2)
	}
	call.ctx, call.looks, call.told, call.reads = ctx, 0, false, false
	alone := c.gate.open == 1
	switch {
	case c.by == byReader:
		if alone {
			c.alone++
		}
	case c.by == byNobody && alone:
		c.by = byCaller
		call.reads = true
	case c.by == byNobody:
		c.takeBack()
	}
	if c.gate.open > maxPatient {
		call.tell()
	}
}

// Wait waits until a call that Waits is over. It must be called once after each successful [Conn.Start] of such a call, with the same context,
// and may make the caller read the connection meanwhile. If the context ends first, the call is cancelled with what ended makes of it: at once
// where the call has been open for some milliseconds, and within two milliseconds before that.
func (c *Conn) Wait(ctx context.Context, call *Call, ended func(context.Context) error) {
	if !c.overseen.Load() {
		c.cfg.Overseer.add(c)
	}
	if call.reads {
		c.readFor(call)
	}
	if <-call.tokens == over {
		return
	}
	select {
	case <-call.tokens:
	case <-ctx.Done():
		call.Cancel(ended(ctx))
		<-call.tokens
	}
}

// waitingCall is a call that the overseer has found waiting.
type waitingCall struct {
	id   uint32
	call *Call
	ctx  context.Context //nolint:containedctx // for one look
}

// lookAfter tells those who wait for their calls, and have waited long enough or for a context that has ended, to watch their contexts.
// found is memory to use, and returned for the next time.
func (c *Conn) lookAfter(found []waitingCall) []waitingCall {
	found = found[:0]
	c.mu.Lock()
	for i := range c.slots {
		call := c.slots[i].call
		if call == nil || !call.Waits || call.told {
			continue
		}
		if call.looks++; call.looks > patience {
			call.tell()
		} else {
			found = append(found, waitingCall{uint32(i), call, call.ctx}) //nolint:gosec // at most maxCallID
		}
	}
	c.mu.Unlock()
	// A context's Err is its maker's code, which is not called with the lock.
	for _, w := range found {
		if w.ctx.Err() == nil {
			continue
		}
		c.mu.Lock()
		if s := c.slotOf(w.id); s != nil && s.call == w.call && !w.call.told {
			w.call.tell() // if it is another call by now, this does no harm
		}
		c.mu.Unlock()
	}
	clear(found)
	return found
}

// tell makes the caller watch its context. Callers hold the lock.
func (call *Call) tell() {
	call.told = true
	call.tokens <- watch
}
