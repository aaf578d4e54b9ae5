// Package storage is the key-value node for global status and statistics: how far a run is, what it was configured with, how
// its parts are doing.
//
// Values are typed, and stay what they are: a number is counted up by a number of its own kind, and what was stored as a text is
// not read as a number. A value that is put or got belongs to its caller, who may change it. Every
// write has an id, so that a reader can see whether anything has changed. A storage has bounds, and
// refuses what goes beyond them.
//
// A running system has `storage-0`; [Type] makes more. [New] makes a client for a handle, and [Get], [Put] and [Add] use it.
package storage

import (
	"context"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
)

// Type is the node type `storage`.
func Type() runtime.NodeType {
	return storagev1raylink.StorageType(
		func(_ context.Context, self *runtime.Node, config *storagev1.StorageConfig) (storagev1raylink.StorageNode, error) {
			return newNode(config, self.MaxMessage()), nil
		})
}
