package tree

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/brain/internal/placement"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// This file contains requests that wait for a place. They are not stored, but in the accounts'
// queue, and therefore part of a transaction. [Txn.Serve] answers those that can be placed now,
// have become impossible, or have lost their parent; its owner passes the answers on once they are
// on disk.

// Caller is the caller of a request that may wait.
type Caller interface {
	// Gone reports whether the caller no longer waits for an answer. Its request is then dropped.
	Gone() bool
	// Answer passes the result of a request that has waited. It is called at most once, and must
	// not block.
	Answer(result Result)
}

// Result is the result of a request that has waited.
type Result struct {
	Nodes    []*nodev1.NodeRecord
	Machines []*brainv1.MachineUse
	Err      error
}

// Waiting is a request that waits for a place: a registration, or the restart of a node. It is
// immutable.
type Waiting struct {
	ticket uint64
	caller Caller
	// id identifies the request for a repetition, and asked is what it asks for. A registration
	// without a request id has none.
	id, asked string
	// The request ends with these nodes and this host: the parent, the node that restarts, and the
	// launcher. Each may be empty.
	parent, nid, launcher string
	// run makes the request, with the places that were decided.
	run func(x *Txn, places []placement.Allocation) ([]*nodev1.NodeRecord, error)
}

// answer is the result of a request that waits no longer.
type answer struct {
	caller Caller
	result Result
}

// RegisterOrWait is [Txn.Register] for a caller that waits if the nodes lack a place. It then
// returns the request that waits, and no records. A repetition of a request that waits takes its
// turn.
func (x *Txn) RegisterOrWait(req *brainv1.RegisterRequest, caller Caller) ([]*nodev1.NodeRecord, *Waiting, error) {
	id := req.GetRequestId()
	asked := x.asked(req)
	waits := func() *Waiting {
		return &Waiting{
			caller: caller, id: id, asked: asked, parent: x.parentOf(req), launcher: req.GetLauncher().GetId(),
			run: func(x *Txn, places []placement.Allocation) ([]*nodev1.NodeRecord, error) {
				return x.register(req, asked, places)
			},
		}
	}
	if earlier := x.waitingFor(id); earlier != nil {
		if earlier.asked != asked {
			return nil, nil, errOtherRequest(id)
		}
		return nil, x.replace(earlier, waits()), nil
	}
	nodes, err := x.register(req, asked, nil)
	if lacking, ok := errors.AsType[*lackingError](err); ok {
		w, err := x.wait(waits(), lacking.request)
		return nil, w, err
	}
	return nodes, nil, err
}

// UpdateOrWait is [Txn.Update] for a caller that waits if a node that restarts lacks a place. It
// then returns the request that waits, and no records.
func (x *Txn) UpdateOrWait(changes []*brainv1.Change, caller Caller) ([]*nodev1.NodeRecord, *Waiting, error) {
	records, err := x.Update(changes)
	lacking, ok := errors.AsType[*lackingError](err)
	if !ok {
		return records, nil, err
	}
	change := changes[0] // the only one
	n, err := x.find(change.GetNid())
	if err != nil {
		return nil, nil, err
	}
	w := &Waiting{
		caller: caller, id: change.GetNid() + "@" + strconv.FormatUint(change.GetIncarnation(), 10),
		parent: n.rec.GetParent(), nid: change.GetNid(), launcher: n.launcher.GetId(),
		run: func(x *Txn, places []placement.Allocation) ([]*nodev1.NodeRecord, error) {
			rec, err := x.update(change, places)
			return []*nodev1.NodeRecord{rec}, err
		},
	}
	if earlier := x.waitingFor(w.id); earlier != nil {
		return nil, x.replace(earlier, w), nil
	}
	if n.rec.GetAllocation() != nil {
		// Its machine has left. If that came back, the node would wait for what it has itself.
		x.accounts.Release(change.GetNid())
		x.edit(n, func(rec *nodev1.NodeRecord) { rec.Allocation = nil })
	}
	w, err = x.wait(w, lacking.request)
	return nil, w, err
}

func errOtherRequest(id string) error {
	return connect.Errorf(connect.CodeInvalidArgument, "the request id %s was used for another registration: a new request needs a new id", id)
}

// wait appends a request to the queue.
func (x *Txn) wait(w *Waiting, r *placement.Request) (*Waiting, error) {
	ticket, err := x.accounts.Wait(r)
	if err != nil {
		return nil, placeError(err)
	}
	w.ticket = ticket
	x.setWaiting(w.ticket, w.id, w)
	return w, nil
}

// replace has a request take the turn of an earlier one that is the same.
func (x *Txn) replace(earlier, w *Waiting) *Waiting {
	w.ticket = earlier.ticket
	x.setWaiting(w.ticket, w.id, w)
	x.answer(earlier, Result{Err: connect.NewError(connect.CodeAborted, "the request was repeated by another call, which waits for a place now")})
	return w
}

// setWaiting stages a request that waits, or with nil that it does no longer.
func (x *Txn) setWaiting(ticket uint64, id string, w *Waiting) {
	if x.waiting == nil {
		x.waiting, x.waitingByID = make(map[uint64]*Waiting), make(map[string]*Waiting)
	}
	x.waiting[ticket] = w
	if id != "" {
		x.waitingByID[id] = w
	}
}

func (x *Txn) answer(w *Waiting, result Result) {
	x.answers = append(x.answers, answer{caller: w.caller, result: result})
}

// endWait ends the wait of a request.
func (x *Txn) endWait(w *Waiting) {
	x.accounts.Withdraw(w.ticket)
	x.setWaiting(w.ticket, w.id, nil)
}

// StopWaiting ends the wait of a request whose caller gives it up, and returns what it lacks, as a
// sentence. It reports false if the request does not wait any more.
func (x *Txn) StopWaiting(w *Waiting) (why string, ok bool) {
	if x.waits(w.ticket) != w {
		return "", false
	}
	why = "its turn has just come"
	if err := x.accounts.Waiting(w.ticket); err != nil {
		why = x.named(err)
	}
	x.endWait(w)
	return why, true
}

// named is the text of why a request waits, with paths for nids.
func (x *Txn) named(err error) string {
	lacking, ok := errors.AsType[*placement.LackingError](err)
	if !ok {
		return err.Error()
	}
	return lacking.Named(func(nid string) string {
		if n := x.node(nid); n != nil {
			return n.rec.GetPath()
		}
		return nid
	}).Error()
}

// Serve answers the requests that can be placed now, have become impossible, or whose parent, node
// or launcher has ended. It must be called after the changes of a transaction, on the outermost
// one.
func (x *Txn) Serve() {
	if x.waitingCount() == 0 {
		return
	}
	x.endOrphans()
	for again := true; again; {
		again = false
		for served := range x.accounts.Serve() {
			again = true
			w := x.waits(served.Ticket)
			x.setWaiting(w.ticket, w.id, nil)
			if w.caller.Gone() {
				continue // what it would have got remains for others
			}
			if served.Err != nil {
				x.answer(w, Result{Err: placeError(served.Err)})
				continue
			}
			inner := x.Begin()
			nodes, err := w.run(inner, served.Places)
			if err != nil {
				x.answer(w, Result{Err: err})
				continue
			}
			inner.Merge()
			x.answer(w, Result{Nodes: nodes, Machines: x.Uses(nodes)})
		}
	}
}

// endOrphans ends the requests whose parent, node or launcher has ended in this transaction.
func (x *Txn) endOrphans() {
	if !x.someEnded {
		return
	}
	for _, w := range x.allWaiting() {
		if err := x.orphaned(w); err != nil {
			x.endWait(w)
			x.answer(w, Result{Err: err})
		}
	}
}

func (x *Txn) orphaned(w *Waiting) error {
	if cause, ok := x.endedHosts[w.launcher]; ok && w.launcher != "" {
		return connect.Errorf(connect.CodeFailedPrecondition, "the launcher %s", cause)
	}
	if _, changed := x.nodes[w.parent]; changed {
		if _, err := x.living(w.parent); err != nil {
			return err
		}
	}
	if _, changed := x.nodes[w.nid]; changed {
		_, err := x.find(w.nid)
		return err
	}
	return nil
}

// noteEnd notes that a host has ended, for the requests that wait.
func (x *Txn) noteEnd(host *nodev1.HostInfo, how string) {
	if x.endedHosts == nil {
		x.endedHosts = make(map[string]string)
	}
	x.endedHosts[host.GetId()] = fmt.Sprintf("%s %s", Describe(host), how)
	x.someEnded = true
}

// Answer passes the answers to their callers. Call it once the transaction is on disk and merged.
func (x *Txn) Answer() {
	for _, a := range x.answers {
		a.caller.Answer(a.result)
	}
}

// allWaiting returns the requests that wait, in the order of their arrival.
func (x *Txn) allWaiting() []*Waiting {
	var list []*Waiting
	x.eachWaiting(func(w *Waiting) { list = append(list, w) })
	slices.SortFunc(list, func(a, b *Waiting) int { return int(int64(a.ticket - b.ticket)) }) //nolint:gosec // tickets are near each other
	return list
}

func (t *Tree) eachWaiting(visit func(*Waiting)) {
	for _, w := range t.waiting {
		visit(w)
	}
}

func (x *Txn) eachWaiting(visit func(*Waiting)) {
	x.base.eachWaiting(func(w *Waiting) {
		if _, staged := x.waiting[w.ticket]; !staged {
			visit(w)
		}
	})
	for _, w := range x.waiting {
		if w != nil {
			visit(w)
		}
	}
}

// Waiting is how many requests wait for a place.
func (t *Tree) Waiting() int { return len(t.waiting) }

// waitingCount is at least how many requests wait: those that have ended in a transaction count.
func (t *Tree) waitingCount() int { return len(t.waiting) }
func (x *Txn) waitingCount() int  { return len(x.waiting) + x.base.waitingCount() }

// waits returns the request with a ticket that waits, or nil.
func (t *Tree) waits(ticket uint64) *Waiting { return t.waiting[ticket] }

func (x *Txn) waits(ticket uint64) *Waiting {
	if w, ok := x.waiting[ticket]; ok {
		return w
	}
	return x.base.waits(ticket)
}

// waitingFor returns the request with an id that waits, or nil.
func (t *Tree) waitingFor(id string) *Waiting { return t.waitingByID[id] }

func (x *Txn) waitingFor(id string) *Waiting {
	if w, ok := x.waitingByID[id]; ok {
		return w
	}
	return x.base.waitingFor(id)
}

// applyWaiting merges staged changes of waiting requests into the enclosing transaction.
func (x *Txn) applyWaiting(inner *Txn) {
	copyInto(&x.waiting, inner.waiting)
	copyInto(&x.waitingByID, inner.waitingByID)
	copyInto(&x.endedHosts, inner.endedHosts)
	x.someEnded = x.someEnded || inner.someEnded
	x.answers = append(x.answers, inner.answers...)
}

// applyWaiting merges staged changes of waiting requests into the tree.
func (t *Tree) applyWaiting(x *Txn) {
	for ticket, w := range x.waiting {
		if w == nil {
			delete(t.waiting, ticket)
		} else {
			t.waiting[ticket] = w
		}
	}
	for id, w := range x.waitingByID {
		if w == nil {
			delete(t.waitingByID, id)
		} else {
			t.waitingByID[id] = w
		}
	}
}
