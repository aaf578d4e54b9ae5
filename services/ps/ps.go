// Package ps is the parameter server: a learner pushes parameters, and processes on all machines
// pull them.
//
// Its entrance is the captain. It assigns each push the next version of its tag. An officer keeps
// one machine's copy of the parameters in mapped files (see package store for their guarantees).
// The captain's process hosts the officer of its own machine. On each machine that has an agent the
// captain creates the officer, in a process of its own; on another machine the first process that
// opens a client hosts it, and the next one when that process dies.
//
// [Open] returns a client for a captain. On a machine with an officer it reads the files in place,
// detects a new version by loading one word of memory, and writes what it pushes into the officer's
// memory. Elsewhere it calls the captain. It uses the files if and only if the directory that the
// officer names contains the officer's nonce.
//
//   - A pulled version is complete, and does not change until it is released, no matter how many
//     pushes follow.
//   - A late version never replaces a newer one: not at the captain, not at its officers, and not
//     from the view of a client. No id is given twice.
//   - Once a push has returned, the pusher's client and all clients on the captain's machine see
//     it; see [WaitFor] for the others. A slow officer may skip versions in between.
//   - While the captain is away, readers continue with what their machine has. The captain's next
//     incarnation continues with the files of its machine.
//
// A running system has the captain "ps-0"; [Type] and [OfficerType] make more. The design is in
// docs/parameters.md.
package ps

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sys/unix"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps/store"
)

// Types returns the node types of a parameter server. A process that hosts captains or opens
// clients needs all of them.
func Types() []runtime.NodeType { return []runtime.NodeType{Type(), OfficerType()} }

// Type returns the node type "ps", the captain. A captain creates the officer of its own machine,
// in its own process.
func Type() runtime.NodeType {
	return psv1raylink.CaptainType(
		func(ctx context.Context, self *runtime.Node, config *psv1.CaptainConfig) (psv1raylink.CaptainNode, error) {
			machine, err := rundir.Machine()
			if err != nil {
				return nil, err
			}
			home, err := openCopy(copyDirectory(self, config, self.NID(), machine), machine, config, self.Logger())
			if err != nil {
				return nil, err
			}
			home.home = true
			// A captain that restarts leaves its files to its next incarnation.
			remove := !self.Ref().Record().GetRestarts()
			self.OnStop(func(context.Context) error { return home.close(remove) })
			if !remove {
				if err := home.keep(); err != nil {
					return nil, err
				}
			}
			release := hostedCopies.add(self.NID(), home)
			self.OnStop(func(context.Context) error { release(); return nil })
			c := newCaptain(config, machine, home, self.Logger())
			if self.Ref().NodeRef().GetIncarnation() > 1 && len(c.tags) == 0 {
				c.commitsFrom = time.Now().Add(enlistGrace)
			}
			home.find = func(ref *nodev1.NodeRef) (*psv1raylink.Officer, error) { return psv1raylink.OfficerFrom(self, ref) }
			officer, err := psv1raylink.CreateOfficer(ctx, self,
				&psv1.OfficerConfig{Captain: config, Machine: machine, CaptainRef: self.Ref().NodeRef()}, runtime.ParentProcess())
			if err != nil {
				return nil, fmt.Errorf("create the machine's officer: %w", err)
			}
			c.homeRef = officer.Ref().NodeRef()
			self.Go(home.maintain)
			self.Go(c.confirmHome)
			self.Go(func(ctx context.Context) error { return c.makeOfficers(ctx, createBelow(self, config)) })
			return c, nil
		})
}

// OfficerType returns the node type "officer". Officers are created by captains and clients.
func OfficerType() runtime.NodeType {
	return psv1raylink.OfficerType(
		func(ctx context.Context, self *runtime.Node, config *psv1.OfficerConfig) (psv1raylink.OfficerNode, error) {
			captainNID := config.GetCaptainRef().GetNid()
			o := hostedCopies.get(captainNID, config.GetMachine())
			if o != nil && o.home {
				return o, nil
			}
			captain, err := psv1raylink.CaptainFrom(self, config.GetCaptainRef())
			if err != nil {
				return nil, err
			}
			dir := config.GetDirectory()
			if config.GetOwnProcess() {
				held, err := claimForNode(ctx, self, captain.Ref(), config.GetMachine())
				if err != nil {
					return nil, err
				}
				dir = held.previous
			}
			if o == nil {
				if dir == "" {
					dir = copyDirectory(self, config.GetCaptain(), captainNID, config.GetMachine())
				}
				if err := recordDirectory(copyName(captainNID, config.GetMachine()), dir); err != nil {
					return nil, fmt.Errorf("record the officer's directory: %w", err)
				}
				if o, err = openCopy(dir, config.GetMachine(), config.GetCaptain(), self.Logger()); err != nil {
					return nil, err
				}
				hostedCopies.add(captainNID, o)
			}
			o.mu.Lock()
			o.find = func(ref *nodev1.NodeRef) (*psv1raylink.Officer, error) { return psv1raylink.OfficerFrom(self, ref) }
			o.mu.Unlock()
			self.Go(o.maintain)
			self.Go(func(ctx context.Context) error { return o.enlist(ctx, captain, self.Ref().NodeRef()) })
			return o, nil
		})
}

// options returns the store's options in a configuration.
func options(config *psv1.CaptainConfig) store.Options {
	return store.Options{
		Held: int(config.GetHeldVersions()), MaxBytes: config.GetMaxBytes(), MaxTotalBytes: config.GetMaxTotalBytes(),
		MaxTags: int(config.GetMaxTags()),
	}
}

// newToken returns an unguessable text.
func newToken() string { return rand.Text() + rand.Text() }

// withCode gives an error of the store its code.
func withCode(err error) error {
	var code connect.Code
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNoRoom), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		code = connect.CodeResourceExhausted
	case errors.Is(err, store.ErrVersion):
		code = connect.CodeInvalidArgument
	case errors.Is(err, store.ErrDamaged):
		code = connect.CodeDataLoss
	case errors.Is(err, store.ErrClosed):
		code = connect.CodeUnavailable
	default:
		return err
	}
	return connect.NewError(code, err.Error()).WithCause(err)
}

// noVersionAmong is the error for a tag without a version. It says which tags exist.
func noVersionAmong(tag string, newest []*psv1.Version) error {
	const most = 10
	tags := make([]string, 0, len(newest))
	for _, v := range newest {
		tags = append(tags, v.GetTag())
	}
	switch {
	case len(tags) == 0:
		return connect.Errorf(connect.CodeNotFound, "nothing was pushed under tag %q, nor under any other", tag)
	case len(tags) > most:
		return connect.Errorf(connect.CodeNotFound, "nothing was pushed under tag %q; there are %d tags: %q, ...", tag, len(tags), tags[:most])
	default:
		return connect.Errorf(connect.CodeNotFound, "nothing was pushed under tag %q; there are the tags %q", tag, tags)
	}
}
