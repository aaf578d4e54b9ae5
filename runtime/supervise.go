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
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/connecterr"
)

// Supervised nodes are the storage and the parameter server of a Brain in a process of its own.
// They differ from all others in two ways. First, they are restarted: when one has died it is
// started again, under the same nid as the next incarnation, and calls that begin meanwhile wait
// for it. Second, they outlive their launcher if that is killed, as all nodes outlive Brain,
// because they hold the state that the system has in memory. The next Brain finds them by their
// records.

const (
	// supervised is the key of the supervised children in Host.children: they end after all others.
	supervised = "supervised"
	// stableAfter is how long an incarnation must have run for the next to start without backoff.
	stableAfter = 10 * time.Second
	// orphanLeases is how many lease durations a supervised node whose launcher is dead continues
	// to run without traffic from Brain.
	orphanLeases = 30
	// reachTimeout bounds how long a supervised node's host may take to answer a restarted Brain.
	reachTimeout = 3 * time.Second
)

// supervisor restarts the incarnations of one node.
type supervisor struct {
	host   *Host
	t      NodeType
	config *anypb.Any // of the incarnations that this process starts; nil for the type's defaults
	remote *remote

	mu    sync.Mutex // guards child
	child *child     // the current incarnation's process, if this process launched it
}

// provideNode is [hostapi.Functions].ProvideNode.
func provideNode(ctx context.Context, h *Host, service string, config proto.Message) error {
	t, raw, err := h.systemType(service, config)
	if err != nil {
		return err
	}
	records, err := h.createOf(ctx, nil, "", t, &nodev1.CreateRequest{
		Placement: nodev1.Placement_PLACEMENT_PARENT_PROCESS, Config: raw,
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.children[""] = slices.DeleteFunc(h.children[""], func(k *child) bool {
		if k.nid != records[0].GetNid() {
			return false
		}
		h.children[supervised] = append(h.children[supervised], k)
		return true
	})
	return nil
}

// superviseNode is [hostapi.Functions].SuperviseNode.
func superviseNode(ctx context.Context, h *Host, service string, config proto.Message) error {
	t, raw, err := h.systemType(service, config)
	if err != nil {
		return err
	}
	rec, err := h.supervisedRecord(ctx, t)
	if err != nil {
		return fmt.Errorf("supervising a %s: %w", t.Name(), err)
	}
	s := &supervisor{host: h, t: t, config: raw, remote: h.remote(rec.GetNid())}
	s.remote.update(rec)
	s.remote.subscribe()
	switch {
	case rec.GetState() == nodev1.NodeState_NODE_STATE_STARTING && rec.GetHost() == nil && rec.GetIncarnation() == 1:
		err = s.launch(ctx, rec)
	case rec.GetState() != nodev1.NodeState_NODE_STATE_DEAD && s.isReachable(ctx, rec):
		h.log.Info("a node outlived the last Brain", slog.String("node", rec.GetPath()))
	default:
		h.reportGone(ctx, rec)
		err = s.restart(ctx)
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w", rec.GetPath(), err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return connect.NewError(connect.CodeUnavailable, "the runtime is closing: it supervises no more nodes")
	}
	h.supervisors = append(h.supervisors, s)
	h.supervising.Go(func() { s.watch(h.supervision) })
	return nil
}

// systemType finds a system type by its service, and encodes a configuration of it.
func (h *Host) systemType(service string, config proto.Message) (NodeType, *anypb.Any, error) {
	t, ok := h.types.system[service]
	if !ok {
		return NodeType{}, nil, h.types.unknown("of " + service)
	}
	if config == nil {
		return t, nil, nil
	}
	raw, err := anypb.New(config)
	if err == nil {
		_, err = t.decodeConfig(raw)
	}
	return t, raw, err
}

// supervisedRecord finds the node's record, or registers the node.
func (h *Host) supervisedRecord(ctx context.Context, t NodeType) (*nodev1.NodeRecord, error) {
	path := t.Name() + "-0"
	res, err := h.brain.Lookup(ctx, &brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Path{Path: path}}})
	switch rec := res.GetNode(); {
	case connect.CodeOf(err) == connect.CodeNotFound:
	case err != nil:
		return nil, err
	case !rec.GetRestarts() || rec.GetService() != t.service.name:
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "%s exists already, as a node of %s that is not supervised", path, rec.GetService())
	default:
		return rec, nil
	}
	// It has no launcher with whose death it would end: the process that serves this Brain starts
	// it.
	registered, err := h.brain.Register(ctx, &brainv1.RegisterRequest{
		Type: t.Name(), Service: t.service.name, Restarts: true, RequestId: uuid.NewString(), Place: t.supervisedPlace(),
	})
	if err != nil {
		return nil, err
	}
	return registered.GetNodes()[0], nil
}

// supervisedPlace is where each incarnation of a supervised node may run: by default where Brain
// runs, since that is the parent's machine.
func (t NodeType) supervisedPlace() *nodev1.Place {
	return &nodev1.Place{Resources: t.service.config.resources}
}

// isReachable reports whether a node's host is reachable.
func (s *supervisor) isReachable(ctx context.Context, rec *nodev1.NodeRecord) bool {
	if rec.GetHost() == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	_, err := s.host.peers.Get(ctx, rec, "")
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
func (s *supervisor) watch(ctx context.Context) {
	born := time.Now()
	var retry backoff.Backoff
	for {
		s.remote.mu.Lock()
		rec, changed := s.remote.latest, s.remote.changed
		s.remote.mu.Unlock()
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
		if time.Since(born) >= stableAfter {
			retry.Reset()
		} else if retry.Wait(ctx) != nil {
			return
		}
		s.host.log.Warn("a node is started again", slog.String("node", rec.GetPath()), slog.String("after", rec.GetCause()))
		if err := s.restart(ctx); err != nil && ctx.Err() == nil {
			s.host.log.Error("a node could not be started again; it is tried again", slog.String("node", rec.GetPath()), slog.Any("error", err))
		}
		born = time.Now()
	}
}

// restart starts the next incarnation and waits until it is set up. On failure the record is set
// to dead.
func (s *supervisor) restart(ctx context.Context) error {
	now, err := s.host.brain.Lookup(ctx, &brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Nid{Nid: s.remote.nid}}})
	rec := now.GetNode()
	if err != nil {
		// A dead node's record is returned with the error; the one last received is no older.
		rec = s.remote.record()
	}
	next, err := s.change(ctx, &brainv1.Change{
		Nid: s.remote.nid, Incarnation: rec.GetIncarnation() + 1, State: nodev1.NodeState_NODE_STATE_STARTING,
		Place: s.t.supervisedPlace(), // for a node whose machine has left
	})
	if err != nil {
		return err
	}
	return s.launch(ctx, next)
}

// launch starts an incarnation that Brain has recorded.
func (s *supervisor) launch(ctx context.Context, rec *nodev1.NodeRecord) error {
	h := s.host
	var at *brainv1.MachineUse
	var err error
	if on := rec.GetAllocation().GetMachine(); on != "" {
		at, err = h.machineUse(ctx, on)
	}
	var started *child
	var newest *nodev1.NodeRecord
	if err == nil {
		started, newest, err = h.launch(ctx, rec, h.launcherOn(rec, at), s.t, s.config)
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reachTimeout)
		defer cancel()
		_, cerr := s.change(ctx, &brainv1.Change{
			Nid: rec.GetNid(), Incarnation: rec.GetIncarnation(), State: nodev1.NodeState_NODE_STATE_DEAD,
			Cause: causeText("was not set up: " + connecterr.Text(err)),
		})
		if cerr != nil && connect.CodeOf(cerr) != connect.CodeFailedPrecondition { // or else its host has reported it
			h.log.Warn("the failed set-up of a node could not be reported to Brain", slog.String("node", rec.GetPath()), slog.Any("error", cerr))
		}
		return err
	}
	s.remote.update(newest)
	s.mu.Lock()
	s.child = started
	s.mu.Unlock()
	h.mu.Lock()
	h.children[supervised] = append(h.children[supervised], started)
	h.mu.Unlock()
	h.goBackground(func(context.Context) { h.watchProcess(supervised, started) })
	return nil
}

// change updates the node's record in Brain.
func (s *supervisor) change(ctx context.Context, c *brainv1.Change) (*nodev1.NodeRecord, error) {
	res, err := s.host.brain.Update(ctx, &brainv1.UpdateRequest{Changes: []*brainv1.Change{c}})
	if err != nil {
		return nil, fmt.Errorf("reporting incarnation %d to Brain: %w", c.GetIncarnation(), err)
	}
	s.remote.update(res.GetNodes()[0])
	return res.GetNodes()[0], nil
}

// stopSupervised ends the supervised nodes. Their records stay: the next Brain restarts the nodes.
func (h *Host) stopSupervised(ctx context.Context) []error {
	h.endSupervision()
	h.supervising.Wait()
	errs := []error{h.stopChildren(ctx, supervised)}
	for _, s := range h.supervisors {
		s.mu.Lock()
		launched := s.child
		s.mu.Unlock()
		if launched != nil {
			continue
		}
		// It was adopted from an earlier Brain, so there is no pipe by which to stop it.
		ref := Ref{service: builtins().service, to: &remoteEndpoint{remote: s.remote}}
		if _, err := builtins().stop.call(ctx, ref, nil); err != nil && s.remote.record().GetState() != nodev1.NodeState_NODE_STATE_DEAD {
			errs = append(errs, fmt.Errorf("stopping %s: %w", s.remote.path(), err))
		}
	}
	return errs
}
