// Package storage is the key-value node for global status and statistics: the progress of a run,
// its configuration, the state of its parts.
//
// Values are typed, and keep their type: a number is incremented by a number of its own type, and a
// string can't be read as a number. Values passed to or returned by a client are owned by the
// caller, which may modify them. Every write has an id, by which readers detect changes, writers
// make their writes conditional, and watchers resume. A storage has limits, and rejects writes that
// exceed them.
//
// What acknowledged writes survive is configured: nothing (the data are only in memory), the death
// of the process, or a loss of power. What is not as durable yet is not shown to any reader. If the
// disk fails or is full, writes fail and reads go on.
//
// A running system has "storage-0"; [Type] makes more. [New] returns a client for a handle, and
// [Get], [Put] and [Add] use it. The design is in docs/storage.md.
package storage

import (
	"context"
	"errors"
	"path/filepath"

	"connectrpc.com/connect/v2"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage/internal/changelog"
)

// folder is the folder of all storages in the data directory.
const folder = "storage"

// Type returns the node type "storage".
func Type() runtime.NodeType {
	return storagev1raylink.StorageType(
		func(_ context.Context, self *runtime.Node, config *storagev1.StorageConfig) (storagev1raylink.StorageNode, error) {
			n, err := newNode(config, self.MaxMessage(), self.Logger())
			if err != nil {
				return nil, err
			}
			if n.durability != storagev1.Durability_DURABILITY_MEMORY {
				if n.directory == "" {
					n.directory = filepath.Join(self.RunDirectory().Data(), folder, self.NID())
				}
				if err := n.open(); err != nil {
					return nil, withCode(err)
				}
				self.OnStop(func(context.Context) error { return n.close() })
				self.Go(n.commit)
			} else {
				n.startAfter(self.Ref().Incarnation())
			}
			self.Go(n.expire)
			return n, nil
		})
}

// open reads the data from the node's directory.
func (n *node) open() error {
	if changelog.Open == nil {
		return connect.NewError(connect.CodeFailedPrecondition,
			"this program can't host a durable storage, because it does not link the database; import github.com/raylink/raylink/services/storage/durable")
	}
	log, err := changelog.Open(changelog.Options{
		Dir: n.directory, Sync: n.durability == storagev1.Durability_DURABILITY_SYNC, Logger: n.logger,
	}, n.restore)
	if err != nil {
		return err
	}
	n.table.Skip(log.Last())
	n.log = log
	n.table.Order()
	return nil
}

// withCode gives an error of opening a directory its code.
func withCode(err error) error {
	var (
		code    connect.Code
		inUse   *changelog.InUseError
		format  *changelog.FormatError
		damaged *changelog.DamagedError
		full    *changelog.FullError
	)
	switch {
	case errors.As(err, &inUse), errors.As(err, &format):
		code = connect.CodeFailedPrecondition
	case errors.As(err, &damaged):
		code = connect.CodeDataLoss
	case errors.As(err, &full):
		code = connect.CodeResourceExhausted
	default:
		return err
	}
	return connect.NewError(code, err.Error()).WithCause(err)
}
