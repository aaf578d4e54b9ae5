// Package ps is the parameter server: what a learner pushes, everybody else pulls, wherever they are.
//
// Its entrance is the captain, who takes pushes, gives each a version and sends it to his officers. An officer keeps the
// parameters of one machine in mapped files (package store, which has the promises). [Open] makes a client for a captain's
// handle: on a machine with an officer it reads the files in place, and learns of a new version by looking at a word of
// memory; elsewhere it asks the captain. Which way it is, is proven by finding the officer's nonce in the directory that it
// names.
//
//   - What is pulled is one whole version, and stays so until it is released, however many pushes come after it.
//   - A version that arrives late never replaces a newer one: at the captain, at his officers, or in the eyes of a client.
//   - When a push has returned, clients on the captain's machine see it; others do as soon as their officer has it, and where an
//     officer is slow, versions between may never come there.
//
// A running system has the captain `ps-0`; [Type] and [OfficerType] make more.
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

// Types are the node types of a parameter server: a process that hosts captains needs both.
func Types() []runtime.NodeType { return []runtime.NodeType{Type(), OfficerType()} }

// Type is the node type `ps`, the captain. He creates the officer of his own machine, in his own process.
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
			return c, c.enlistHome(ctx, officer)
		})
}

// OfficerType is the node type `officer`. One that is told whose officer it is enlists with him when it is set up.
func OfficerType() runtime.NodeType {
	return psv1raylink.OfficerType(
		func(_ context.Context, self *runtime.Node, config *psv1.OfficerConfig) (psv1raylink.OfficerNode, error) {
			directory := config.GetCaptain().GetDirectory()
			if directory == "" {
				directory = self.RunDirectory().Mapped()
			}
			// The officer's next life has the same id, and takes over what this one kept.
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

// options are a configuration's, for a store.
func options(config *psv1.CaptainConfig) store.Options {
	return store.Options{
		Held: int(config.GetHeldVersions()), MaxBytes: config.GetMaxBytes(), MaxTags: int(config.GetMaxTags()),
	}
}

// newNonce is a text that nobody else knows.
func newNonce() string { return rand.Text() + rand.Text() }

// noVersion is the error of a tag under which nothing was pushed.
func noVersion(tag string) error {
	return connect.Errorf(connect.CodeNotFound, "nothing was pushed under the tag %q", tag)
}
