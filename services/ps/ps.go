// Package ps is the parameter server: a learner pushes parameters, and processes on all machines
// pull them.
//
// Its entrance is the captain. It accepts pushes, assigns each a version and sends it to its
// officers. An officer keeps one machine's copy of the parameters in mapped files (see package
// store for their guarantees). [Open] returns a client for a captain. On a machine with an officer
// it reads the files in place, and detects a new version by loading one word of memory; elsewhere
// it calls the captain. It uses the files if and only if the directory that the officer names
// contains the officer's nonce.
//
//   - A pulled version is complete, and does not change until it is released, no matter how many
//     pushes follow.
//   - A late version never replaces a newer one: not at the captain, not at its officers, and not
//     from the view of a client.
//   - Once a push has returned, clients on the captain's machine see it. Others see it as soon as
//     their officer has it; a slow officer may skip versions in between.
//
// A running system has the captain "ps-0"; [Type] and [OfficerType] make more.
package ps

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"

	"connectrpc.com/connect/v2"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps/store"
)

// Types returns the node types of a parameter server. A process that hosts captains needs all of
// them.
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
			c := newCaptain(config, machine, self.Logger(), self.Go)
			c.find = func(req *psv1.EnlistRequest) (*psv1raylink.Officer, error) {
				return psv1raylink.OfficerFrom(self, req.GetOfficer())
			}
			officer, err := psv1raylink.CreateOfficer(ctx, self,
				&psv1.OfficerConfig{Captain: config, Machine: machine}, runtime.ParentProcess())
			if err != nil {
				return nil, fmt.Errorf("create the machine's officer: %w", err)
			}
			return c, c.enlistLocal(ctx, officer)
		})
}

// OfficerType returns the node type "officer". An officer whose configuration names a captain
// enlists with it.
func OfficerType() runtime.NodeType {
	return psv1raylink.OfficerType(
		func(_ context.Context, self *runtime.Node, config *psv1.OfficerConfig) (psv1raylink.OfficerNode, error) {
			directory := config.GetCaptain().GetDirectory()
			if directory == "" {
				directory = self.RunDirectory().Mapped()
			}
			// The officer's next incarnation has the same nid, and takes over this one's files.
			o, err := newOfficer(filepath.Join(directory, "parameters-"+self.NID()), config)
			if err != nil {
				return nil, err
			}
			self.OnStop(func(context.Context) error { return o.close() })
			if config.GetCaptainRef() == nil {
				return o, nil
			}
			captain, err := psv1raylink.CaptainFrom(self, config.GetCaptainRef())
			if err != nil {
				return nil, err
			}
			self.Go(func(ctx context.Context) error {
				return o.enlist(ctx, captain, self.Ref().NodeRef())
			})
			return o, nil
		})
}

// options returns the store's options in a configuration.
func options(config *psv1.CaptainConfig) store.Options {
	return store.Options{
		Held: int(config.GetHeldVersions()), MaxBytes: config.GetMaxBytes(), MaxTags: int(config.GetMaxTags()),
	}
}

// newNonce returns an unguessable text.
func newNonce() string { return rand.Text() + rand.Text() }

// noVersion is the error for a tag without a version.
func noVersion(tag string) error {
	return connect.Errorf(connect.CodeNotFound, "nothing was pushed under tag %q", tag)
}
