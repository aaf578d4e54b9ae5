// Package storage is the key-value node for global status and statistics: the progress of a run,
// its configuration, the state of its parts.
//
// Values are typed, and keep their type: a number is incremented by a number of its own type, and a
// string can't be read as a number. Values passed to or returned by a client are owned by the
// caller, which may modify them. Every write has an id, so that a reader can detect changes. A
// storage has limits, and rejects writes that exceed them.
//
// A running system has "storage-0"; [Type] makes more. [New] returns a client for a handle, and
// [Get], [Put] and [Add] use it.
package storage

import (
	"context"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
)

// Type returns the node type "storage".
func Type() runtime.NodeType {
	return storagev1raylink.StorageType(
		func(_ context.Context, self *runtime.Node, config *storagev1.StorageConfig) (storagev1raylink.StorageNode, error) {
			return newNode(config, self.MaxMessage()), nil
		})
}
