package store

import (
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// writesOnly fails one write operation and all after it.
type writesOnly struct {
	mu   sync.Mutex
	at   int32 // -1: none
	seen int32
}

// MaybeError implements errorfs.Injector.
func (w *writesOnly) MaybeError(op errorfs.Op) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at < 0 || op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	w.seen++
	if w.seen > w.at {
		return errorfs.ErrInjected
	}
	return nil
}

// String implements fmt.Stringer.
func (w *writesOnly) String() string { return "writes" }
