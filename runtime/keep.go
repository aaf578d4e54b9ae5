package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
)

// Supervised nodes are the storage and the parameter server of a Brain in a process of its own.
// They differ from all others in two ways. First, they are restarted: when one has died it is
// started again, under the same nid as the next incarnation, and calls that begin meanwhile wait
// for it. Second, they outlive their launcher if that is killed, as all nodes outlive Brain,
// because they hold the state that the system has in memory. The next Brain finds them by their
// records.

const (
	// kept is the key of the supervised children: they end after all others.
	kept = "kept"
	// lasting is how long an incarnation must have run for the next to start without backoff.
	lasting = 10 * time.Second
	// orphanLeases is how many lease durations a supervised node whose launcher is dead continues
	// to run without traffic from Brain.
	orphanLeases = 30
	// answerPatience bounds how long a supervised node's host may take to answer a restarted Brain.
	answerPatience = 3 * time.Second
)

// keeper is the supervisor of one node.
type keeper struct {
	host   *Host
	t      NodeType
	remote *remote

	mu  sync.Mutex // guards kid
	kid *kid       // the current incarnation's process, if this process launched it
}

// ProvideNode creates the first node of a system type, given by its service, below the root and in
// the host's own process. The node ends after all nodes that others create. It is for the front
// door that embeds a Brain.
func ProvideNode(ctx context.Context, h *Host, service string) error {
	t, ok := h.types.system[service]
	if !ok {
		return h.types.unknown("of " + service)
	}
	records, err := h.createOf(ctx, nil, "", t, &nodev1.CreateRequest{Placement: nodev1.Placement_PLACEMENT_PARENT_PROCESS})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kids[""] = slices.DeleteFunc(h.kids[""], func(k *kid) bool {
		if k.nid != records[0].GetNid() {
			return false
		}
		h.kids[kept] = append(h.kids[kept], k)
		return true
	})
	return nil
}

// KeepNode supervises the first node of a system type, given by its service, below the root, until
// the host is closed: it starts the node if it has never run, adopts it if it is alive, and
// restarts it whenever it dies. KeepNode returns when the node is running. It is for the host of a
// Brain in a process of its own.
func KeepNode(ctx context.Context, h *Host, service string) error {
	t, ok := h.types.system[service]
	if !ok {
		return h.types.unknown("of " + service)
	}
	rec, err := h.keptRecord(ctx, t)
	if err != nil {
		return fmt.Errorf("keeping a %s: %w", t.Name(), err)
	}
	k := &keeper{host: h, t: t, remote: h.remote(rec.GetNid())}
	k.remote.update(rec)
	k.remote.follow()
	switch {
	case rec.GetState() == nodev1.NodeState_NODE_STATE_STARTING && rec.GetHost() == nil && rec.GetIncarnation() == 1:
		err = k.launch(ctx, rec)
	case rec.GetState() != nodev1.NodeState_NODE_STATE_DEAD && k.answers(ctx, rec):
		h.log.Info("a node outlived the last Brain", slog.String("node", rec.GetPath()))
	default:
		h.reportGone(ctx, rec)
		err = k.nextLife(ctx)
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w", rec.GetPath(), err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return connect.NewError(connect.CodeUnavailable, "the runtime is closing: it keeps no more nodes")
	}
	h.keepers = append(h.keepers, k)
	h.keeping.Go(func() { k.watch(h.keepLife) })
	return nil
}

// keptRecord finds the node's record, or registers the node.
func (h *Host) keptRecord(ctx context.Context, t NodeType) (*nodev1.NodeRecord, error) {
	path := t.Name() + "-0"
	res, err := h.brain.List(ctx, &brainv1.ListRequest{Children: true})
	if err != nil {
		return nil, err
	}
	for _, rec := range res.GetNodes() {
		switch {
		case rec.GetPath() != path:
		case !rec.GetRestarts() || rec.GetService() != t.service.name:
			return nil, connect.Errorf(connect.CodeFailedPrecondition, "%s is somebody else's, a node of %s", path, rec.GetService())
		default:
			return rec, nil
		}
	}
	// It has no launcher with whose death it would end: the process that serves this Brain starts
	// it.
	registered, err := h.brain.Register(ctx, &brainv1.RegisterRequest{
		Type: t.Name(), Service: t.service.name, Restarts: true, RequestId: uuid.NewString(),
	})
	if err != nil {
		return nil, err
	}
	return registered.GetNodes()[0], nil
}

// answers reports whether a node's host is reachable.
func (k *keeper) answers(ctx context.Context, rec *nodev1.NodeRecord) bool {
	if rec.GetHost() == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	_, err := k.host.links.get(ctx, rec, "")
	return err == nil
}

// reportGone reports to Brain that the host of a node's last incarnation is dead.
func (h *Host) reportGone(ctx context.Context, rec *nodev1.NodeRecord) {
	if rec.GetHost() == nil || rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD {
		return
	}
	req := &brainv1.ReportHostRequest{HostId: rec.GetHost().GetId(), Cause: "it was gone when Brain came back"}
	if _, err := h.brain.ReportHost(ctx, req); err != nil {
		h.log.Warn("the death of a node's host could not be reported", slog.String("node", rec.GetPath()), slog.Any("error", err))
	}
}

// watch starts the next incarnation whenever one has ended.
func (k *keeper) watch(ctx context.Context) {
	born := time.Now()
	var retry backoff.Backoff
	for {
		k.remote.mu.Lock()
		rec, changed := k.remote.known, k.remote.changed
		k.remote.mu.Unlock()
		if rec.GetState() != nodev1.NodeState_NODE_STATE_DEAD {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !rec.GetRestarts() {
			return // it was stopped and removed on purpose
		}
		if time.Since(born) >= lasting {
			retry.Reset()
		} else if retry.Wait(ctx) != nil {
			return
		}
		k.host.log.Warn("a node is started again", slog.String("node", rec.GetPath()), slog.String("after", rec.GetCause()))
		if err := k.nextLife(ctx); err != nil && ctx.Err() == nil {
			k.host.log.Error("a node could not be started again; it is tried again", slog.String("node", rec.GetPath()), slog.Any("error", err))
		}
		born = time.Now()
	}
}

// nextLife starts the next incarnation and waits until it is set up. On failure the record is set
// to dead.
func (k *keeper) nextLife(ctx context.Context) error {
	now, err := k.host.brain.Lookup(ctx, &brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Nid{Nid: k.remote.nid}}})
	rec := now.GetNode()
	if err != nil {
		// A dead node's record is returned with the error; the one last received is no older.
		rec = k.remote.record()
	}
	next, err := k.change(ctx, &brainv1.Change{
		Nid: k.remote.nid, Incarnation: rec.GetIncarnation() + 1, State: nodev1.NodeState_NODE_STATE_STARTING,
	})
	if err != nil {
		return err
	}
	return k.launch(ctx, next)
}

// launch starts an incarnation that Brain has recorded.
func (k *keeper) launch(ctx context.Context, rec *nodev1.NodeRecord) error {
	h := k.host
	started, newest, err := h.launch(ctx, rec, k.t, nil)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerPatience)
		defer cancel()
		_, cerr := k.change(ctx, &brainv1.Change{
			Nid: rec.GetNid(), Incarnation: rec.GetIncarnation(), State: nodev1.NodeState_NODE_STATE_DEAD,
			Cause: causeText("was not set up: " + messageOf(err)),
		})
		if cerr != nil {
			h.log.Warn("that a node was not set up could not be told", slog.String("node", rec.GetPath()), slog.Any("error", cerr))
		}
		return err
	}
	k.remote.update(newest)
	k.mu.Lock()
	k.kid = started
	k.mu.Unlock()
	h.mu.Lock()
	h.kids[kept] = append(h.kids[kept], started)
	h.mu.Unlock()
	h.goBackground(func(context.Context) { h.watchProcess(kept, started) })
	return nil
}

// change updates the node's record in Brain.
func (k *keeper) change(ctx context.Context, c *brainv1.Change) (*nodev1.NodeRecord, error) {
	res, err := k.host.brain.Update(ctx, &brainv1.UpdateRequest{Changes: []*brainv1.Change{c}})
	if err != nil {
		return nil, fmt.Errorf("telling Brain of life number %d: %w", c.GetIncarnation(), err)
	}
	k.remote.update(res.GetNodes()[0])
	return res.GetNodes()[0], nil
}

// stopKept ends the supervised nodes. Their records stay: the next Brain restarts the nodes.
func (h *Host) stopKept(ctx context.Context) []error {
	h.keepEnd()
	h.keeping.Wait()
	errs := []error{h.stopKids(ctx, kept)}
	for _, k := range h.keepers {
		k.mu.Lock()
		launched := k.kid
		k.mu.Unlock()
		if launched != nil {
			continue
		}
		// It was adopted from an earlier Brain, so there is no pipe by which to stop it.
		ref := Ref{t: &target{service: builtins().service, host: h, nid: k.remote.nid, remote: k.remote}}
		if _, err := builtins().stop.Call(ctx, ref, nil); err != nil && k.remote.record().GetState() != nodev1.NodeState_NODE_STATE_DEAD {
			errs = append(errs, fmt.Errorf("stopping %s: %w", k.remote.path(), err))
		}
	}
	return errs
}
