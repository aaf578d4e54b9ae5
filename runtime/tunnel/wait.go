package tunnel

import "context"

// Most calls are over in less than a millisecond, and to watch their contexts meanwhile costs more than all else that their callers do: a channel
// and a select for one that waits, a registration for one that doesn't. So nobody does at first. Calls are looked after every millisecond by the
// [Overseer]: whose context has ended, or who has been open for some time, is told to watch its context itself from then on.

// waiting is the part of a call that has [Call.Waits] or [Call.Follow].
type waiting struct {
	// tokens has, for a caller that waits, room for both: watch, at the most once, and then over.
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
	// patience is how often the overseer finds a call open before its caller is to watch its context itself.
	patience = 8
	// mostLooks is how many of a connection's calls it looks after at once. With more of them, each has its turn less often.
	mostLooks = 2048
)

// Reset makes a call that is over one that can be started again, without what it had; it keeps what waiting needs.
func (call *Call) Reset() { *call = Call{Waits: call.Waits, waiting: waiting{tokens: call.tokens}} }

// expect prepares for a caller that is going to wait: it is to read its own answer if it is alone and nobody else reads. Callers hold the lock.
func (c *Conn) expect(call *Call) {
	if call.tokens == nil {
		call.tokens = make(chan token, 2)
	}
	call.reads = false
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
}

// oversee has the call's context looked after.
func (c *Conn) oversee(ctx context.Context, call *Call) {
	call.ctx, call.looks, call.told = ctx, 0, false
	if !c.overseen.Load() {
		c.cfg.Overseer.add(c)
	}
}

// Wait waits until a call that Waits is over. It must be called once after each successful [Conn.Start] of such a call, with the same context,
// and may make the caller read the connection meanwhile. If the context ends first, the call is cancelled with what ended makes of it: at once
// where the call has been open for some milliseconds, and within two milliseconds before that, or a millisecond for each 2048 open calls.
func (c *Conn) Wait(ctx context.Context, call *Call, ended func(context.Context) error) {
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

// openCall is a call that the overseer has found.
type openCall struct {
	id   uint32
	call *Call
	ctx  context.Context //nolint:containedctx // for one look
	// follow is to be called: the call has been open for long.
	follow func()
}

// lookAfter tells those whose calls have been open for long, or whose contexts have ended, to watch their contexts. found is memory to use, and
// returned for the next time.
func (c *Conn) lookAfter(found []openCall) []openCall {
	found = c.openCalls(found[:0])
	// A context's Err and what is to be told are others' code, which is not called with the lock.
	for _, o := range found {
		if o.follow == nil && o.ctx.Err() != nil {
			o.follow = c.told(o)
		}
		if o.follow != nil {
			o.follow()
		}
	}
	clear(found)
	return found
}

func (c *Conn) openCalls(found []openCall) []openCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range min(len(c.slots), mostLooks) {
		c.looked = (c.looked + 1) % len(c.slots)
		call := c.slots[c.looked].call
		if call == nil || call.ctx == nil || call.told {
			continue
		}
		o := openCall{id: uint32(c.looked), call: call, ctx: call.ctx} //nolint:gosec // at most maxCallID
		if call.looks++; call.looks > patience {
			o.follow = call.tell()
		}
		found = append(found, o)
	}
	return found
}

// told tells the caller of a call whose context has ended, if it is still that call. (If it is another that uses the same memory, that is told too
// early, which does no harm.)
func (c *Conn) told(o openCall) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.slotOf(o.id); s != nil && s.call == o.call && !o.call.told {
		return o.call.tell()
	}
	return nil
}

// tell makes the caller watch its context: one that waits has a token, and for another that is done by what is returned. Callers hold the lock.
func (call *Call) tell() func() {
	call.told = true
	if call.Waits {
		call.tokens <- watch
		return nil
	}
	return call.Follow
}
