package runtime

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
)

// brainTimeout bounds one request that undoes something, so that an absent Brain delays nothing
// else. After that the request is repeated in the background.
const brainTimeout = 2 * time.Second

// creation is a creation in progress on this host, from before its nodes are registered until they
// are the parent's children or nothing of them is left. It is canceled by the end of the parent, of
// the host, and of the caller's context; the first two wait for it.
type creation struct {
	// id is its request id, for Brain and for a caller in another process.
	id string
	// parent is the parent's nid.
	parent string
	// machines are those that its nodes were placed on, by id.
	machines map[string]*brainv1.MachineUse
	// failedOn is the id of the machine of the node that was the first to fail; empty if it had
	// none. The goroutine of that node sets it.
	failedOn string
	// life ends when the creation is canceled, by cancel.
	life   context.Context //nolint:containedctx // the creation's life is this context
	cancel context.CancelCauseFunc
	// done is closed when the creation has ended.
	done chan struct{}
}

// beginCreation begins a creation, unless its parent or the host is ending. It must be ended with
// endCreation.
func (h *Host) beginCreation(parent *Node, parentNID, id string) (*creation, error) {
	c := &creation{id: id, parent: parentNID, done: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return nil, connect.NewError(connect.CodeUnavailable, "the runtime is closing: it creates no more nodes")
	}
	if parent != nil && parent.isStopping() {
		return nil, closedError(parent.path, "is stopping: it gets no more children")
	}
	c.life, c.cancel = context.WithCancelCause(h.life)
	h.creations[c] = struct{}{}
	return c, nil
}

func (h *Host) endCreation(c *creation) {
	h.mu.Lock()
	delete(h.creations, c)
	h.mu.Unlock()
	c.cancel(nil)
	close(c.done)
}

// bound derives a context from ctx that also ends with the creation.
func (c *creation) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.life, func() { cancel(context.Cause(c.life)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// endOfCreation is the error of a creation whose context has ended: the cause with which it was
// canceled if that is a connect error, or else that of its context.
func endOfCreation(ctx context.Context) error {
	if e, ok := errors.AsType[*connect.Error](context.Cause(ctx)); ok {
		return e
	}
	return causeOf(ctx)
}

// cancelCreations cancels the matching creations, and blocks until nothing of them is left or ctx
// ends.
func (h *Host) cancelCreations(ctx context.Context, match func(*creation) bool, cause error) {
	var matching []*creation
	h.mu.Lock()
	for c := range h.creations {
		if match(c) {
			matching = append(matching, c)
		}
	}
	h.mu.Unlock()
	for _, c := range matching {
		c.cancel(cause)
	}
	for _, c := range matching {
		select {
		case <-c.done:
		case <-ctx.Done():
			return
		}
	}
}

// undoCreation undoes the creation with a request id, whether it is in progress, done or has not
// arrived yet.
func (h *Host) undoCreation(ctx context.Context, id string) error {
	undo := func() error {
		h.cancelCreations(ctx, func(c *creation) bool { return c.id == id },
			connect.NewError(connect.CodeCanceled, "its caller gave it up"))
		return h.stopMatching(ctx, func(k *child) bool { return k.creation == id })
	}
	if err := undo(); err != nil {
		return err
	}
	// From here on Brain refuses to register that creation if it has not arrived yet. One that was
	// registered in between is canceled by the second undo.
	_, err := h.brain.Remove(ctx, &brainv1.RemoveRequest{RequestIds: []string{id}, Cause: "its creation was canceled"})
	if err != nil {
		return err
	}
	return undo()
}

// stopMatching stops the matching children of this host.
func (h *Host) stopMatching(ctx context.Context, match func(*child) bool) error {
	var matching []*child
	h.mu.Lock()
	for _, children := range h.children {
		for _, k := range children {
			if match(k) {
				matching = append(matching, k)
			}
		}
	}
	h.mu.Unlock()
	return h.stopAll(ctx, matching, "its creation was canceled")
}

// firstError records the first of several errors.
type firstError struct {
	mu  sync.Mutex
	err error
}

// set records err unless there is one already, and reports whether it did.
func (f *firstError) set(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return false
	}
	f.err = err
	return true
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// register registers the new nodes of a creation with Brain. After an error nothing is registered,
// even if Brain did register them and its response was lost.
func (h *Host) register(ctx context.Context, c *creation, req *brainv1.RegisterRequest) ([]*nodev1.NodeRecord, error) {
	res, err := h.brain.Register(ctx, req)
	if err == nil {
		c.machines = make(map[string]*brainv1.MachineUse, len(res.GetMachines()))
		for _, use := range res.GetMachines() {
			c.machines[use.GetMachine().GetId()] = use
		}
		return res.GetNodes(), nil
	}
	if !isVerdict(err) {
		h.remove(ctx, &brainv1.RemoveRequest{RequestIds: []string{req.GetRequestId()}, Cause: "its creation was given up"})
	}
	return nil, err
}

// isVerdict reports whether an error is definitely Brain's refusal of the request, as opposed to
// the loss of its response.
func isVerdict(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeFailedPrecondition,
		connect.CodePermissionDenied, connect.CodeUnauthenticated, connect.CodeUnimplemented, connect.CodeOutOfRange:
		return true
	default:
		return false
	}
}

// remove removes records from Brain, or withdraws registrations, even after ctx has ended. Records
// that are already gone are no error. If Brain does not respond within brainTimeout, the request is
// repeated in the background until it succeeds or the host has ended; then Brain removes the
// records with the host.
func (h *Host) remove(ctx context.Context, req *brainv1.RemoveRequest) {
	err := h.tryRemove(context.WithoutCancel(ctx), req)
	if err == nil {
		return
	}
	if isVerdict(err) {
		h.log.Warn("a record could not be removed", slog.Any("nids", req.GetNids()), slog.String("cause", req.GetCause()), slog.Any("error", err))
		return
	}
	h.removals.begin(h.log, req.GetCause(), err)
	retrying := h.goBackground(func(ctx context.Context) {
		removed := false
		defer func() { h.removals.end(h.log, removed) }()
		for retry := new(backoff.Backoff); !removed && retry.Wait(ctx) == nil; {
			err := h.tryRemove(ctx, req)
			removed = err == nil || isVerdict(err)
		}
	})
	if !retrying {
		h.removals.end(h.log, false)
	}
}

func (h *Host) tryRemove(ctx context.Context, req *brainv1.RemoveRequest) error {
	ctx, cancel := context.WithTimeout(ctx, brainTimeout)
	defer cancel()
	_, err := h.brain.Remove(ctx, req)
	if connect.CodeOf(err) == connect.CodeNotFound {
		if len(req.GetNids()) < 2 {
			return nil
		}
		// One of them has been gone for so long that Brain no longer knows it, and refuses the
		// request.
		var errs []error
		for _, nid := range req.GetNids() {
			errs = append(errs, h.tryRemove(ctx, &brainv1.RemoveRequest{Nids: []string{nid}, Cause: req.GetCause()}))
		}
		return errors.Join(errs...)
	}
	return err
}

// maxRemoved bounds the nodes of one request.
const maxRemoved = 1000

// removeRecords removes nodes from Brain's tree, see [Host.remove].
func (h *Host) removeRecords(ctx context.Context, nids []string, cause string) {
	for some := range slices.Chunk(nids, maxRemoved) {
		h.remove(ctx, &brainv1.RemoveRequest{Nids: some, Cause: causeText(cause)})
	}
}
