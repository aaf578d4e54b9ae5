package ps

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/runtime"
)

// hosts has how a node follows the machines of its system.
var hosts = hostapi.Get[*runtime.Host, runtime.Options, runtime.Option, runtime.NodeType]() //nolint:gochecknoglobals // never changes

// making is how the captain makes the officer of another machine, as long as that has an agent.
type making struct {
	// keeper is the id of the agent's host.
	keeper string
	end    context.CancelFunc
	// active is set while an officer is being created or lives: processes of the machine then host
	// none. After a creation that has failed they may, until the next attempt. The captain's mu
	// guards it.
	active bool
}

// createFunc creates the officer of a machine, in a process of its own there, and returns when it
// serves.
type createFunc func(ctx context.Context, machine string) (officerNode, error)

// officerNode is a node that was created.
type officerNode interface {
	// Ended waits for the node's end.
	Ended(ctx context.Context) error
	// Record has the cause of the end.
	Record() *nodev1.NodeRecord
}

// makeOfficers creates an officer on each other machine that has an agent, and another one when it
// has ended, until ctx ends. The officers end with their machines, and with this captain.
func (c *captain) makeOfficers(ctx context.Context, create createFunc) error {
	var running sync.WaitGroup
	defer running.Wait()
	err := hosts.WatchMachines(ctx, func(machines []*brainv1.MachineUse) { c.follow(ctx, &running, machines, create) })
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return nil // an older Brain, without machines
	}
	return err
}

// follow begins to make officers for the machines that have joined, and ends it for those that have
// left.
func (c *captain) follow(ctx context.Context, running *sync.WaitGroup, machines []*brainv1.MachineUse, create createFunc) {
	keepers := make(map[string]string)
	for _, use := range machines {
		// A machine without an agent launches nothing for others: its processes host the officer.
		if id := use.GetMachine().GetId(); use.GetMachine().GetAgent() && id != c.machine {
			keepers[id] = use.GetKeeper().GetId()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for machine, m := range c.making {
		if keepers[machine] != m.keeper { // it has left, and may have joined again
			m.end()
			delete(c.making, machine)
		}
	}
	for machine, keeper := range keepers {
		if c.making[machine] != nil {
			continue
		}
		life, end := context.WithCancel(ctx)
		m := &making{keeper: keeper, end: end}
		// So that a process of the machine that asks now does not host an officer.
		m.active = c.sessionOf(machine) == nil && c.hasRoom()
		c.making[machine] = m
		running.Go(func() {
			defer end()
			c.keepOfficer(life, machine, m, create)
		})
	}
	c.broadcast()
}

// maxMakingPause bounds the pauses between attempts to create a machine's officer.
const maxMakingPause = 10 * time.Second

// keepOfficer has a machine have an officer, until ctx ends.
func (c *captain) keepOfficer(ctx context.Context, machine string, m *making, create createFunc) {
	log := c.log.With(slog.String("machine", machine))
	pause := backoff.Backoff{First: 50 * time.Millisecond, Max: maxMakingPause}
	failing := false
	for c.awaitTurn(ctx, machine, m) == nil {
		began := time.Now()
		node, err := create(ctx, machine)
		if err != nil {
			c.mu.Lock()
			m.active = false
			c.broadcast() // others may have room
			c.mu.Unlock()
		} else if err = node.Ended(ctx); err == nil {
			err = errors.New(node.Record().GetCause())
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxMakingPause {
			pause.Reset()
			failing = false
		}
		if pause.Wait(ctx) != nil {
			return // the machine has left, which is why its officer ended
		}
		// If a process of the machine hosts the officer, its session shows when that ends.
		if hosted := connect.CodeOf(err) == connect.CodeAlreadyExists; !failing && !hosted {
			failing = true
			log.Warn("the machine has no officer at present; it is tried again", slog.Any("error", err))
		}
	}
}

// awaitTurn waits until a machine has no officer, and there is room for one. Then the officer is
// coming.
func (c *captain) awaitTurn(ctx context.Context, machine string, m *making) error {
	for {
		c.mu.Lock()
		if ctx.Err() == nil && (m.active || c.sessionOf(machine) == nil && c.hasRoom()) {
			m.active = true
			c.mu.Unlock()
			return nil
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sessionOf returns the session of a machine's officer, or nil. The caller holds mu.
func (c *captain) sessionOf(machine string) *session {
	for _, s := range c.sessions {
		if s.hello.GetMachine() == machine {
			return s
		}
	}
	return nil
}

// hasRoom reports whether a machine that has no officer may get one, those that are coming counted.
// The caller holds mu.
func (c *captain) hasRoom() bool {
	n := len(c.sessions)
	for machine, m := range c.making {
		if m.active && c.sessionOf(machine) == nil {
			n++
		}
	}
	return n < c.maxOfficers
}

// createBelow is the [createFunc] of a captain's node.
func createBelow(self *runtime.Node, config *psv1.CaptainConfig) createFunc {
	return func(ctx context.Context, machine string) (officerNode, error) {
		node, err := psv1raylink.CreateOfficer(ctx, self, &psv1.OfficerConfig{
			Captain: config, Machine: machine, CaptainRef: self.Ref().NodeRef(), OwnProcess: true,
		}, runtime.OwnProcess(), runtime.On(machine), runtime.Requires(runtime.Resources{}, nil))
		if err != nil {
			return nil, err
		}
		return node.Ref(), nil
	}
}
