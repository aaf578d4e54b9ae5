package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/launch"
)

// maxCount bounds one creation.
const maxCount = 1 << 16

// Create creates a node under parent and waits until it is set up. While a node's method waits here, its mailbox goes on serving, so that the
// child may call its parent. If the set-up fails or ctx ends, nothing is left of the node when Create returns. It is for generated code.
func Create(ctx context.Context, parent Parent, service *Service, config proto.Message, opts ...CreateOption) (Ref, error) {
	refs, err := CreateN(ctx, parent, service, 1, config, opts...)
	if err != nil {
		return Ref{}, err
	}
	return refs[0], nil
}

// CreateN creates n nodes at once, all or none; otherwise it is as [Create]. It is for generated code.
func CreateN(ctx context.Context, parent Parent, service *Service, n int, config proto.Message, opts ...CreateOption) ([]Ref, error) {
	if n < 1 || n > maxCount {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "one creation makes 1 to %d nodes, not %d", maxCount, n)
	}
	p := parent.parentOf()
	if p.host == nil {
		return nil, errNoSystem()
	}
	req := &nodev1.CreateRequest{Type: service.Type(), Count: uint32(n)}
	for _, opt := range opts {
		opt(req)
	}
	if service.config.NewConfig != nil {
		if config == nil || !config.ProtoReflect().IsValid() {
			config = service.config.NewConfig()
		}
		var err error
		if req.Config, err = anypb.New(config); err != nil {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "the configuration can't be encoded: %v", err)
		}
	}
	waits(ctx)
	if cc := callContextOf(ctx); cc != nil && cc.turn != nil {
		cc.turn.Suspend()
		defer cc.turn.Resume()
	}
	var records []*nodev1.NodeRecord
	here := req.GetPlacement() == nodev1.Placement_PLACEMENT_HERE
	if p.node == nil && !p.ref.IsZero() && !here {
		res, err := builtins().create.Call(ctx, p.ref, req)
		if err != nil {
			return nil, err
		}
		records = res.GetNodes()
	} else {
		if t, ok := p.host.types[service.Type()]; ok && t.service != service {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "type %q is %s in this process, not %s", service.Type(), t.service.name, service.name)
		}
		var err error
		if records, err = p.host.create(ctx, p.node, p.ref.NID(), req); err != nil {
			return nil, err
		}
	}
	refs := make([]Ref, len(records))
	for i, rec := range records {
		refs[i] = p.host.refTo(service, rec)
	}
	return refs, nil
}

// create makes children of a node: parent where it lives here; nil for one that lives elsewhere, and for the root, whose id is empty.
func (h *Host) create(ctx context.Context, parent *Node, parentNID string, req *nodev1.CreateRequest) ([]*nodev1.NodeRecord, error) {
	t, ok := h.types[req.GetType()]
	if !ok {
		return nil, connect.Errorf(connect.CodeNotFound, "this binary has no node type %q; it has %s", req.GetType(), h.typeNames())
	}
	config, err := t.decodeConfig(req.GetConfig())
	if err != nil {
		return nil, err
	}
	if h.isClosing() {
		return nil, connect.NewError(connect.CodeUnavailable, "the runtime is closing: it creates no more nodes")
	}
	if parent != nil {
		if parent.isStopping() {
			return nil, closedError(parent.path, "is stopping: it gets no more children")
		}
		parent.creating.Add(1)
		defer parent.creating.Add(-1)
	}
	res, err := h.brain.Register(ctx, &brainv1.RegisterRequest{
		Parent: parentNID, Type: req.GetType(), Service: t.service.name, Count: max(1, req.GetCount()), Alias: req.GetAlias(),
		Attributes: req.GetAttributes(), Launcher: h.Info(), RequestId: uuid.NewString(),
	})
	if err != nil {
		return nil, fmt.Errorf("naming the new nodes: %w", err)
	}
	records := res.GetNodes()
	ownProcess := !h.options.InProcess
	switch req.GetPlacement() {
	case nodev1.Placement_PLACEMENT_OWN_PROCESS:
		ownProcess = true
	case nodev1.Placement_PLACEMENT_PARENT_PROCESS, nodev1.Placement_PLACEMENT_HERE:
		ownProcess = false
	case nodev1.Placement_PLACEMENT_UNSPECIFIED:
	}
	begin := func(ctx context.Context) error {
		return h.begin(ctx, parentNID, t, records, config, req.GetConfig(), ownProcess)
	}
	if req.GetNoWait() {
		h.goBackground(func(ctx context.Context) {
			if err := begin(ctx); err != nil {
				h.log.Error("a node was not set up", slog.String("node", records[0].GetPath()), slog.Any("error", err))
			}
		})
		return records, nil
	}
	if err := begin(ctx); err != nil {
		return nil, err
	}
	return records, nil
}

// begin brings registered nodes to life, all or none, and replaces each record by the newest.
func (h *Host) begin(
	ctx context.Context, parent string, t NodeType, records []*nodev1.NodeRecord, config proto.Message, raw *anypb.Any, ownProcess bool,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make([]error, len(records))
	started := make([]*kid, len(records))
	var all sync.WaitGroup
	for i, rec := range records {
		all.Go(func() {
			if ownProcess {
				started[i], records[i], errs[i] = h.launch(ctx, rec, t, raw)
			} else {
				started[i], records[i], errs[i] = h.setUp(ctx, rec, t, config)
			}
			if errs[i] != nil {
				// None without the others.
				cancel(errs[i])
			}
		})
	}
	all.Wait()
	if first := firstCause(errs); first != nil {
		h.undo(records, started, first)
		return first
	}
	if err := h.addKids(parent, started); err != nil {
		h.undo(records, started, err)
		return err
	}
	for _, k := range started {
		if k.process != nil {
			h.goBackground(func(context.Context) { h.watchProcess(parent, k) })
		}
	}
	return nil
}

// addKids makes started children ones that end with their parent, unless that is ending already.
func (h *Host) addKids(parent string, started []*kid) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return connect.NewError(connect.CodeUnavailable, "the runtime was closed meanwhile")
	}
	if n := h.nodes[parent]; n != nil && n.isStopping() {
		return connect.NewError(connect.CodeUnavailable, "the parent was stopped meanwhile")
	}
	h.kids[parent] = append(h.kids[parent], started...)
	return nil
}

// firstCause is the error that made the others fail, where one did.
func firstCause(errs []error) error {
	var first error
	for _, err := range errs {
		if err != nil && (first == nil || errors.Is(first, context.Canceled) && !errors.Is(err, context.Canceled)) {
			first = err
		}
	}
	return first
}

// undo removes what was begun.
func (h *Host) undo(records []*nodev1.NodeRecord, started []*kid, cause error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.life), h.options.Drain)
	defer cancel()
	var all sync.WaitGroup
	for _, k := range started {
		if k == nil {
			continue
		}
		all.Go(func() {
			if err := h.stopKid(ctx, k); err != nil {
				h.log.Warn("undoing a creation", slog.String("node", k.path), slog.Any("error", err))
			}
		})
	}
	all.Wait()
	nids := make([]string, len(records))
	for i, rec := range records {
		nids[i] = rec.GetNid()
	}
	h.removeRecords(ctx, nids, "was not set up: "+messageOf(cause))
}

// removeRecords takes nodes out of Brain's tree; that some are gone already is no error.
func (h *Host) removeRecords(ctx context.Context, nids []string, cause string) {
	for _, nid := range nids {
		_, err := h.brain.Remove(ctx, &brainv1.RemoveRequest{Nids: []string{nid}, Cause: cause})
		if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
			h.log.Warn("a node's record could not be removed", slog.String("nid", nid), slog.Any("error", err))
		}
	}
}

// setUp brings a node to life in this process.
func (h *Host) setUp(ctx context.Context, rec *nodev1.NodeRecord, t NodeType, config proto.Message) (*kid, *nodev1.NodeRecord, error) {
	n := newNode(h, t.service, rec)
	n.copies = t.copies
	h.mu.Lock()
	h.nodes[n.nid] = n
	h.mu.Unlock()
	h.changes.Add(1)
	fail := func(err error) (*kid, *nodev1.NodeRecord, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.options.Drain)
		defer cancel()
		cause := closedError(rec.GetPath(), "was not set up: "+messageOf(err))
		n.giveUp(cause)
		_ = h.stopKids(ctx, n.nid) // they are undone with their parent
		_ = n.drain(ctx, cause)    // as above
		h.drop(n)
		return nil, rec, err
	}
	impl, err := n.callSetup(ctx, t, config)
	if err != nil {
		return fail(err)
	}
	res, err := h.brain.Update(ctx, &brainv1.UpdateRequest{Changes: []*brainv1.Change{{
		Nid: n.nid, Incarnation: rec.GetIncarnation(), State: nodev1.NodeState_NODE_STATE_RUNNING, Host: h.Info(),
	}}})
	if err != nil {
		return fail(fmt.Errorf("telling Brain that %s runs: %w", n.path, err))
	}
	n.setRecord(res.GetNodes()[0])
	n.serveWith(impl)
	return &kid{nid: n.nid, path: n.path, node: n}, n.snapshot(), nil
}

// callSetup calls the type's set-up function. Its ctx ends with the node too.
func (n *Node) callSetup(ctx context.Context, t NodeType, config proto.Message) (impl any, err error) {
	// A call that waits for the set-up must not be waited for by it.
	cc := &callContext{node: n, life: n.work, caller: ctx, chain: &chain{nid: n.nid, path: n.path, method: "set-up"}}
	defer func() {
		cc.end()
		if r := recover(); r != nil {
			n.logger().Error("a set-up panicked", slog.String("node", n.path), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			err = connect.Errorf(connect.CodeInternal, "setting up %s panicked: %v", n.path, r)
		}
	}()
	if impl, err = t.setup(cc, n, config); err != nil {
		return nil, setupError(n.path, err)
	}
	if ctx.Err() != nil {
		return nil, causeOf(ctx)
	}
	return impl, nil
}

// setupError says whose set-up failed; the code is the set-up's own.
func setupError(path string, err error) error {
	code := connect.CodeOf(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	out := connect.Errorf(code, "setting up %s: %s", path, messageOf(err)).WithCause(err)
	if e, ok := errors.AsType[*connect.Error](err); ok {
		out = withDetailsOf(out, e)
	}
	return out
}

// launch brings a node to life in a process of its own.
func (h *Host) launch(ctx context.Context, rec *nodev1.NodeRecord, t NodeType, config *anypb.Any) (*kid, *nodev1.NodeRecord, error) {
	payload, err := h.launchPayload(rec, t, config)
	if err != nil {
		return nil, rec, err
	}
	spec := launch.Spec{Name: rec.GetPath(), Payload: payload, Output: h.output}
	if h.run != nil {
		if spec.Log, err = h.run.Log(rec.GetPath()); err != nil {
			return nil, rec, err
		}
	}
	p, err := h.launcher.Launch(ctx, spec)
	if err != nil {
		return nil, rec, connect.Errorf(connect.CodeUnavailable, "launching %s: %v", rec.GetPath(), err).WithCause(err)
	}
	ready, err := p.Ready(ctx)
	if err != nil {
		if failed, ok := errors.AsType[*launch.FailedError](err); ok {
			return nil, rec, decodeError(failed.Payload)
		}
		if ctx.Err() != nil {
			return nil, rec, connect.Errorf(connect.CodeOf(causeOf(ctx)), "setting up %s: %s", rec.GetPath(), messageOf(causeOf(ctx))).WithCause(context.Cause(ctx))
		}
		return nil, rec, connect.Errorf(connect.CodeUnavailable, "starting %s: %v", rec.GetPath(), err).WithCause(err)
	}
	newest := &nodev1.NodeRecord{}
	if err := proto.Unmarshal(ready, newest); err != nil {
		_ = p.Kill()
		return nil, rec, connect.Errorf(connect.CodeInternal, "%s said something unreadable when it was set up: %v", rec.GetPath(), err)
	}
	return &kid{nid: rec.GetNid(), path: rec.GetPath(), process: p, host: newest.GetHost().GetId(), restarts: rec.GetRestarts()}, newest, nil
}

// decodeConfig is the configuration of a new node, of the type's own message.
func (t NodeType) decodeConfig(raw *anypb.Any) (proto.Message, error) {
	fresh := t.service.config.NewConfig
	if fresh == nil {
		if raw != nil {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "nodes of type %q take no configuration, and got a %s", t.service.Type(), raw.MessageName())
		}
		return nil, nil //nolint:nilnil // no configuration is nil
	}
	config := fresh()
	if raw == nil {
		return config, nil
	}
	if want := config.ProtoReflect().Descriptor().FullName(); raw.MessageName() != want {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "nodes of type %q are configured by %s, not %s", t.service.Type(), want, raw.MessageName())
	}
	if err := proto.Unmarshal(raw.GetValue(), config); err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the configuration of type %q can't be decoded: %v", t.service.Type(), err)
	}
	return config, nil
}

// typeNames lists what the process can host, for errors.
func (h *Host) typeNames() string {
	if len(h.types) == 0 {
		return "none"
	}
	names := make([]string, 0, len(h.types))
	for _, t := range h.options.Types {
		names = append(names, t.service.Type())
	}
	return strings.Join(names, ", ")
}

func (h *Host) isClosing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closing
}
