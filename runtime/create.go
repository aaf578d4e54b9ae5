package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/launch"
)

// maxCount bounds how many nodes one creation makes.
const maxCount = 1 << 16

// createNodes is [GeneratedService.CreateN].
func createNodes(ctx context.Context, parent Parent, service *Service, n int, config proto.Message, opts ...CreateOption) ([]Ref, error) {
	if n < 1 || n > maxCount {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "one creation makes 1 to %d nodes, not %d", maxCount, n)
	}
	p := parent.parentOf()
	if p.host == nil {
		return nil, errNoSystem()
	}
	o := createOptions{request: &nodev1.CreateRequest{Service: service.name, Count: uint32(n), RequestId: uuid.NewString()}}
	for _, opt := range opts {
		opt(&o)
	}
	if o.err != nil {
		return nil, o.err
	}
	if err := o.configure(service, config, p.host.types); err != nil {
		return nil, err
	}
	req := o.request
	mayBlock(ctx)
	if cc := callContextOf(ctx); cc != nil && cc.turn != nil {
		cc.turn.Suspend()
		defer cc.turn.Resume()
	}
	var records []*nodev1.NodeRecord
	var err error
	here := req.GetPlacement() == nodev1.Placement_PLACEMENT_HERE
	if p.node == nil && !p.ref.IsZero() && !here {
		records, err = p.host.createBelow(ctx, p.ref, req)
	} else {
		if len(p.host.types.of(service.name)) == 0 {
			return nil, p.host.types.unknown(fmt.Sprintf("%q of %s", cmp.Or(req.GetType(), service.Type()), service.name))
		}
		records, err = p.host.create(ctx, p.node, p.ref.NID(), req)
	}
	if err != nil {
		return nil, err
	}
	refs := make([]Ref, len(records))
	for i, rec := range records {
		refs[i] = p.host.refTo(service, rec)
	}
	return refs, nil
}

// configure encodes the configuration of the new nodes: one for all, or one for each.
func (o *createOptions) configure(service *Service, config proto.Message, types *typeSet) error {
	if service.config.newConfig == nil {
		if o.each != nil {
			return connect.Errorf(connect.CodeInvalidArgument, "nodes of type %q take no configuration, so EachConfig has none to set", service.Type())
		}
		return nil
	}
	if config == nil || !config.ProtoReflect().IsValid() {
		config = service.config.newConfig()
	}
	// If this process does not have the type, the parent's host finds or refuses it.
	t, _ := types.resolve(o.request.GetType(), service.name)
	if o.each == nil {
		var err error
		o.request.Config, err = t.encodeConfig(config)
		return err
	}
	o.request.Configs = make([]*anypb.Any, o.request.GetCount())
	for i := range o.request.GetConfigs() {
		own := proto.Clone(config)
		err := o.each(i, own)
		if err == nil {
			o.request.Configs[i], err = t.encodeConfig(own)
		}
		if err != nil {
			return fmt.Errorf("configuring node number %d: %w", i, err)
		}
	}
	return nil
}

// encodeConfig encodes a configuration for the process of the new node, after preparing it.
func (t NodeType) encodeConfig(config proto.Message) (*anypb.Any, error) {
	if t.prepare != nil {
		config = proto.Clone(config)
		if err := t.prepare(config); err != nil {
			return nil, fmt.Errorf("preparing the configuration: %w", err)
		}
	}
	encoded, err := anypb.New(config)
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the configuration can't be encoded: %v", err)
	}
	return encoded, nil
}

// createBelow creates nodes through the host of a parent in another process. If it returns an
// error, nothing is left of them.
func (h *Host) createBelow(ctx context.Context, parent Ref, req *nodev1.CreateRequest) ([]*nodev1.NodeRecord, error) {
	res, err := builtins().create.call(ctx, parent, req)
	if err == nil {
		return res.GetNodes(), nil
	}
	if isAnswer(err) && ctx.Err() == nil {
		return nil, err // the parent's host has returned this, and has undone the creation
	}
	undo := func(ctx context.Context) (over bool) {
		_, err := builtins().cancelCreate.call(ctx, parent, &nodev1.CancelCreateRequest{RequestId: req.GetRequestId()})
		// The children of a dead parent have died with it.
		return err == nil || parent.State() == nodev1.NodeState_NODE_STATE_DEAD || isVerdict(err)
	}
	soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.options.Drain)
	defer cancel()
	if undo(soon) {
		return nil, err
	}
	h.log.Warn("a creation that was given up could not be undone yet: the parent's host does not answer",
		slog.String("parent", parent.Path()), slog.String("type", req.GetType()))
	h.goBackground(func(ctx context.Context) {
		for retry := new(backoff.Backoff); retry.Wait(ctx) == nil; {
			if undo(ctx) {
				return
			}
		}
	})
	return nil, err
}

// create creates children of a node. parent is nil if that lives elsewhere, and for the root, whose
// id is empty.
func (h *Host) create(ctx context.Context, parent *Node, parentNID string, req *nodev1.CreateRequest) ([]*nodev1.NodeRecord, error) {
	t, err := h.types.resolve(req.GetType(), req.GetService())
	if err != nil {
		return nil, err
	}
	return h.createOf(ctx, parent, parentNID, t, req)
}

// createOf is create for a resolved type.
func (h *Host) createOf(
	ctx context.Context, parent *Node, parentNID string, t NodeType, req *nodev1.CreateRequest,
) ([]*nodev1.NodeRecord, error) {
	made, err := t.decodeConfigs(req)
	if err != nil {
		return nil, err
	}
	id := req.GetRequestId()
	if id == "" {
		id = uuid.NewString()
	}
	c, err := h.beginCreation(parent, parentNID, id)
	if err != nil {
		return nil, err
	}
	if parent != nil {
		parent.creating.Add(1)
	}
	over := func() {
		if parent != nil {
			parent.creating.Add(-1)
		}
		h.endCreation(c)
	}
	rctx, cancel := c.bound(ctx)
	defer cancel()
	placement := req.GetPlacement()
	switch {
	case placement == nodev1.Placement_PLACEMENT_HERE, placement == nodev1.Placement_PLACEMENT_UNSPECIFIED && h.options.InProcess:
		placement = nodev1.Placement_PLACEMENT_PARENT_PROCESS
	case placement == nodev1.Placement_PLACEMENT_UNSPECIFIED:
		placement = nodev1.Placement_PLACEMENT_OWN_PROCESS
	}
	place, err := h.placeOf(t, req, placement)
	if err != nil {
		over()
		return nil, err
	}
	registration := &brainv1.RegisterRequest{
		Parent: parentNID, Type: t.Name(), Service: t.service.name, Count: max(1, req.GetCount()), Alias: req.GetAlias(),
		Attributes: req.GetAttributes(), Launcher: h.info(), RequestId: id, Place: place,
	}
	var failure error // of the attempt before
	for retry := (backoff.Backoff{First: 10 * time.Millisecond, Max: time.Second}); ; {
		records, err := h.register(rctx, c, registration)
		if err != nil {
			if rctx.Err() != nil { // asked before over, which ends rctx too
				err = endOfCreation(rctx)
			}
			over()
			if failure != nil {
				return nil, fmt.Errorf("placing the new nodes again, after %s: %w", connecterr.Text(failure), err)
			}
			return nil, fmt.Errorf("naming the new nodes: %w", err)
		}
		if req.GetNoWait() {
			// The records that are returned must not change.
			h.beginLater(c, t, slices.Clone(records), made, placement, over)
			return records, nil
		}
		if failure = h.begin(rctx, c, t, records, made, placement); failure == nil {
			over()
			return records, nil
		}
		if !h.isReplaceable(rctx, c, place, failure) || retry.Wait(rctx) != nil {
			over()
			return nil, failure
		}
		// The nodes of the last registration are gone: this is another one.
		registration.RequestId = uuid.NewString()
	}
}

// beginLater is begin in the background.
func (h *Host) beginLater(c *creation, t NodeType, records []*nodev1.NodeRecord, made []configuration, placement nodev1.Placement, over func()) {
	began := h.goBackground(func(context.Context) {
		defer over()
		err := h.begin(c.life, c, t, records, made, placement)
		switch {
		case err == nil:
		case c.life.Err() != nil:
			h.log.Info("a node is not set up any more", slog.String("node", records[0].GetPath()), slog.Any("error", err))
		default:
			h.log.Error("a node was not set up", slog.String("node", records[0].GetPath()), slog.Any("error", err))
		}
	})
	if !began {
		over() // the host has ended, and Brain removes the records with it
	}
}

// begin starts registered nodes, all or none, and replaces each record by the newest. It returns
// the first error in time: those of the other nodes, which are then canceled, are its consequence.
func (h *Host) begin(
	ctx context.Context, c *creation, t NodeType, records []*nodev1.NodeRecord, made []configuration, placement nodev1.Placement,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var first firstError
	started := make([]*child, len(records))
	var all sync.WaitGroup
	for i, rec := range records {
		all.Go(func() {
			own := made[min(i, len(made)-1)]
			var err error
			at := c.machines[rec.GetAllocation().GetMachine()]
			switch {
			case placement == nodev1.Placement_PLACEMENT_OWN_PROCESS:
				started[i], records[i], err = h.launch(ctx, rec, h.launcherOn(rec, at), t, own.raw)
			case placement == nodev1.Placement_PLACEMENT_AGENT_PROCESS && !h.keeps(at):
				started[i], records[i], err = h.launch(ctx, rec, &remoteLauncher{host: h, given: rec.GetAllocation(), at: at, inProcess: true}, t, own.raw)
			default:
				started[i], records[i], err = h.setUp(ctx, rec, t, own.config)
			}
			if err != nil && first.set(err) {
				c.failedOn = rec.GetAllocation().GetMachine()
				cancel(err)
			}
		})
	}
	all.Wait()
	err := first.get()
	if err == nil {
		err = h.addChildren(c, started)
	}
	if err != nil {
		h.undo(records, started, err)
		return err
	}
	for _, k := range started {
		if k.process != nil {
			h.goBackground(func(context.Context) { h.watchProcess(c.parent, k) })
		}
	}
	return nil
}

// addChildren registers the started children with their parent, so that they end with it, unless it
// is already ending.
func (h *Host) addChildren(c *creation, started []*child) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return connect.NewError(connect.CodeUnavailable, "the runtime was closed meanwhile")
	}
	if n := h.nodes[c.parent]; n != nil && n.isStopping() {
		return connect.NewError(connect.CodeUnavailable, "the parent was stopped meanwhile")
	}
	if c.life.Err() != nil {
		return endOfCreation(c.life)
	}
	for _, k := range started {
		k.creation = c.id
	}
	h.children[c.parent] = append(h.children[c.parent], started...)
	return nil
}

// undo stops what was started, and removes the records.
func (h *Host) undo(records []*nodev1.NodeRecord, started []*child, cause error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.life), h.options.Drain)
	defer cancel()
	started = slices.DeleteFunc(started, func(k *child) bool { return k == nil })
	why := "was not set up: " + connecterr.Text(cause)
	if err := h.stopAll(ctx, started, why); err != nil {
		h.log.Warn("undoing a creation", slog.Any("error", err))
	}
	for _, k := range started {
		if k.process != nil { // else stopping the node has reported it
			h.nodeDied(k.record, k.process.PID(), k.started, why)
		}
	}
	nids := make([]string, len(records))
	for i, rec := range records {
		nids[i] = rec.GetNid()
	}
	h.removeRecords(ctx, nids, why)
}

// setUp starts a node in this process.
func (h *Host) setUp(ctx context.Context, rec *nodev1.NodeRecord, t NodeType, config proto.Message) (*child, *nodev1.NodeRecord, error) {
	n := newNode(h, t, rec)
	h.mu.Lock()
	h.nodes[n.nid] = n
	h.mu.Unlock()
	h.changes.Add(1)
	fail := func(err error) (*child, *nodev1.NodeRecord, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.options.Drain)
		defer cancel()
		cause := "was not set up: " + connecterr.Text(err)
		n.giveUp(closedError(n.path, cause))
		// What the set-up had started ends with it; the error of the creation is the reason.
		_ = h.stopNode(ctx, n, h.options.Drain, cause)
		return nil, rec, err
	}
	// From here on others can reach the node: their calls wait in its mailbox, and it can be
	// stopped.
	if err := h.announce(ctx, n, nodev1.NodeState_NODE_STATE_STARTING); err != nil {
		return fail(fmt.Errorf("reporting to Brain where %s is: %w", n.path, err))
	}
	impl, err := n.callSetup(ctx, t, config)
	if err != nil {
		return fail(err)
	}
	if err := h.announce(ctx, n, nodev1.NodeState_NODE_STATE_RUNNING); err != nil {
		return fail(fmt.Errorf("reporting to Brain that %s runs: %w", n.path, err))
	}
	if !n.serveWith(impl) {
		return fail(closedError(n.path, "was stopped while it was set up"))
	}
	h.nodeStarted(n.snapshot(), os.Getpid(), n.born)
	return &child{nid: n.nid, path: n.path, node: n}, n.snapshot(), nil
}

// announce records in Brain that a node lives here, and its state.
func (h *Host) announce(ctx context.Context, n *Node, state nodev1.NodeState) error {
	res, err := h.brain.Update(ctx, &brainv1.UpdateRequest{Changes: []*brainv1.Change{{
		Nid: n.nid, Incarnation: n.snapshot().GetIncarnation(), State: state, Host: h.info(),
	}}})
	if err != nil {
		return err
	}
	n.setRecord(res.GetNodes()[0])
	return nil
}

// callSetup calls the type's set-up function on a goroutine of its own. Its context also ends with
// the node. A function that does not return within the grace period after that is abandoned.
func (n *Node) callSetup(ctx context.Context, t NodeType, config proto.Message) (any, error) {
	// The chain makes a call that waits for this set-up, made from it, a cycle.
	cc := &callContext{node: n, nodeCtx: n.work, caller: ctx, chain: &chain{nid: n.nid, path: n.path, method: "set-up"}}
	defer cc.end()
	setUp := make(chan any, 1)
	over, err := usercode.Await(cc, grace, func() error {
		impl, err := t.setup(cc, n, config)
		if err != nil {
			if ended := n.endOfSetup(ctx); ended != nil && errors.Is(err, context.Canceled) {
				err = ended // the context ended
			}
			return setupError(n.path, err)
		}
		if isNilNode(impl) {
			return connect.Errorf(connect.CodeInternal, "setting up %s: its set-up function returned no error and a nil %T, not a node: "+
				"return the node, or an error", n.path, impl)
		}
		setUp <- impl
		return nil
	})
	ended := n.endOfSetup(ctx)
	switch f, failed := err.(*usercode.UnreturnedError); { //nolint:errorlint // Await's own type
	case failed:
		f.Log(n.logger(), "a set-up", slog.String("node", n.path))
		return nil, connect.Errorf(connect.CodeInternal, "setting up %s: the set-up function %v", n.path, f)
	case !over:
		n.logger().Error("a set-up goes on although its context has ended: it is left behind",
			slog.String("node", n.path), slog.Any("error", ended))
		return nil, setupError(n.path, connect.Errorf(connect.CodeOf(ended),
			"%s; %v later the set-up function had not returned", connecterr.Text(ended), grace).WithCause(ended))
	case ended != nil && err == nil:
		return nil, setupError(n.path, ended)
	case err != nil:
		return nil, err
	}
	return <-setUp, nil
}

// endOfSetup is why a set-up must end: because its creation or its node does. It is nil if neither
// does.
func (n *Node) endOfSetup(ctx context.Context) error {
	switch {
	case n.work.Err() != nil:
		return context.Cause(n.work)
	case ctx.Err() != nil:
		return endOfCreation(ctx)
	}
	return nil
}

// isNilNode reports whether a set-up function returned nil, or a nil pointer in the interface.
func isNilNode(impl any) bool {
	v := reflect.ValueOf(impl)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// setupError adds the node to the error of its set-up, and keeps the error's code.
func setupError(path string, err error) error {
	code := connect.CodeOf(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	text := connecterr.Text(err)
	out := connect.Errorf(code, "setting up %s: %s", path, text).WithCause(&foreign{err: err, text: text})
	if e, ok := errors.AsType[*connect.Error](err); ok {
		out = withDetailsOf(out, e)
	}
	return out
}

// launch starts a node by a launcher: in a process of its own, or in that of an agent.
func (h *Host) launch(
	ctx context.Context, rec *nodev1.NodeRecord, by launch.Launcher, t NodeType, config *anypb.Any,
) (*child, *nodev1.NodeRecord, error) {
	payload, err := h.launchPayload(rec, t, config)
	if err != nil {
		return nil, rec, err
	}
	spec := launch.Spec{Name: rec.GetPath(), Payload: payload, Output: h.output.take}
	spec.Stalled = func(stalled bool) { h.output.setStalled(spec.Name, stalled) }
	if h.run != nil {
		if spec.Log, err = h.run.Log(rec.GetPath()); err != nil {
			return nil, rec, err
		}
	}
	began := time.Now()
	p, err := by.Launch(ctx, spec)
	if err != nil {
		if ctx.Err() != nil {
			return nil, rec, setupError(rec.GetPath(), endOfCreation(ctx))
		}
		return nil, rec, connect.Errorf(connect.CodeUnavailable, "launching %s: %v", rec.GetPath(), err).WithCause(err)
	}
	ready, err := p.Ready(ctx)
	if err != nil {
		h.sweepDead()
		if failed, ok := errors.AsType[*launch.FailedError](err); ok {
			// A process that was requested to give up reports that, not why.
			if err := decodeError(failed.Payload); ctx.Err() == nil || connect.CodeOf(err) != connect.CodeCanceled {
				return nil, rec, err
			}
		}
		if ctx.Err() != nil {
			return nil, rec, setupError(rec.GetPath(), endOfCreation(ctx))
		}
		return nil, rec, connect.Errorf(connect.CodeUnavailable, "starting %s: %v", rec.GetPath(), err).WithCause(err)
	}
	newest := &nodev1.NodeRecord{}
	if err := proto.Unmarshal(ready, newest); err != nil {
		h.endProcess(p, rec.GetPath())
		h.sweepDead()
		return nil, rec, connect.Errorf(connect.CodeInternal, "%s said something unreadable when it was set up: %v", rec.GetPath(), err)
	}
	h.log.Info("a node's process is set up", slog.String("node", rec.GetPath()), slog.Int("pid", p.PID()))
	h.nodeStarted(newest, p.PID(), began)
	return &child{
		nid: rec.GetNid(), path: rec.GetPath(), process: p, host: newest.GetHost().GetId(), restarts: rec.GetRestarts(),
		record: newest, started: time.Now(), remote: h.launched(rec.GetNid()), inAgent: isInProcess(by),
	}, newest, nil
}

// configuration is a new node's configuration, as a message and encoded.
type configuration struct {
	config proto.Message
	raw    *anypb.Any
}

// decodeConfigs decodes the configurations of new nodes: one for each, or one for all.
func (t NodeType) decodeConfigs(req *nodev1.CreateRequest) ([]configuration, error) {
	raw := req.GetConfigs()
	switch {
	case len(raw) == 0:
		raw = []*anypb.Any{req.GetConfig()}
	case req.GetConfig() != nil || len(raw) != int(max(1, req.GetCount())):
		return nil, connect.Errorf(connect.CodeInvalidArgument, "%d configurations for %d nodes, and one for all: %t; give each its own or all the same",
			len(raw), max(1, req.GetCount()), req.GetConfig() != nil)
	}
	made := make([]configuration, len(raw))
	for i, one := range raw {
		config, err := t.decodeConfig(one)
		if err != nil {
			return nil, err
		}
		made[i] = configuration{config: config, raw: one}
	}
	return made, nil
}

// decodeConfig decodes the configuration of a new node to the type's message.
func (t NodeType) decodeConfig(raw *anypb.Any) (proto.Message, error) {
	fresh := t.service.config.newConfig
	if fresh == nil {
		if raw != nil {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "nodes of type %q take no configuration, and got a %s", t.Name(), raw.MessageName())
		}
		return nil, nil //nolint:nilnil // no configuration is nil
	}
	config := fresh()
	if raw == nil {
		return config, nil
	}
	if want := config.ProtoReflect().Descriptor().FullName(); raw.MessageName() != want {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "nodes of type %q are configured by %s, not %s", t.Name(), want, raw.MessageName())
	}
	if err := proto.Unmarshal(raw.GetValue(), config); err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the configuration of type %q can't be decoded: %v", t.Name(), err)
	}
	return config, nil
}

// endProcess kills a process and waits for its end, for a limited time.
func (h *Host) endProcess(p launch.Process, name string) {
	if err := p.Kill(); err != nil {
		h.log.Warn("a process could not be killed", slog.String("node", name), slog.Any("error", err))
	}
	limit := time.NewTimer(launcherLimit)
	defer limit.Stop()
	select {
	case <-p.Done():
	case <-limit.C:
		h.log.Warn("a process that was killed has not ended", slog.String("node", name), slog.Int("pid", p.PID()))
	}
}
