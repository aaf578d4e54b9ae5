package storage

import (
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// ErrNotFound matches the errors for a key that is missing, by errors.Is.
var ErrNotFound = errors.New("no such key")

// ConditionError means that a key does not fulfill a write's condition. Nothing has changed.
type ConditionError struct {
	Key string
	// ID is that of the key's last write; 0 if the key is missing.
	ID uint64
	// Want is the id that was required; 0 if the key had to be missing.
	Want uint64

	cause error
}

// Error returns the storage's text.
func (e *ConditionError) Error() string { return e.cause.Error() }

// Unwrap returns the storage's error.
func (e *ConditionError) Unwrap() error { return e.cause }

// LimitError means that a write would exceed a bound. Nothing has changed.
type LimitError struct {
	// Key is the key that was written; "" if the bound is not about one.
	Key string
	// Limit is what is bounded: "keys", "bytes" (of all entries), "key bytes", "value bytes",
	// "response bytes", "operations", "batch bytes" or "disk".
	Limit string
	// Max is the bound, and Need what the write needs; 0 if it is not known.
	Max, Need uint64

	cause error
}

// Error returns the storage's text.
func (e *LimitError) Error() string { return e.cause.Error() }

// Unwrap returns the storage's error.
func (e *LimitError) Unwrap() error { return e.cause }

// HistoryLostError means that a watcher can't resume from an id: the storage does not know all
// changes since then any more, or it does not know the id.
type HistoryLostError struct {
	// Since is the id from which the watcher wanted to resume, Oldest and Newest are the ids from
	// which it can.
	Since, Oldest, Newest uint64

	cause error
}

// Error returns the storage's text.
func (e *HistoryLostError) Error() string { return e.cause.Error() }

// Unwrap returns the storage's error.
func (e *HistoryLostError) Unwrap() error { return e.cause }

// WritesFailError means that the storage's disk has failed or is full. Reads go on, and writes fail
// until the disk can be used again. Whether the write is stored is not known if the storage is
// restarted before.
type WritesFailError struct {
	// Reason is the disk's error.
	Reason string

	cause error
}

// Error returns the storage's text.
func (e *WritesFailError) Error() string { return e.cause.Error() }

// Unwrap returns the storage's error.
func (e *WritesFailError) Unwrap() error { return e.cause }

// notFoundError gives the error for a missing key an identity.
type notFoundError struct {
	asOf  uint64
	cause error
}

func (e *notFoundError) Error() string        { return e.cause.Error() }
func (e *notFoundError) Unwrap() error        { return e.cause }
func (e *notFoundError) Is(target error) bool { return target == ErrNotFound }

// detailed returns an error with details.
func detailed(err *connect.Error, details ...proto.Message) *connect.Error {
	for _, d := range details {
		if raw, merr := proto.Marshal(d); merr == nil {
			err = err.WithDetail(&connect.ErrorDetail{Type: string(d.ProtoReflect().Descriptor().FullName()), Value: raw})
		}
	}
	return err
}

// detail decodes the first detail that has the type of into, and reports whether there is one.
func detail(err *connect.Error, into proto.Message) bool {
	name := string(into.ProtoReflect().Descriptor().FullName())
	for _, d := range err.Details() {
		if d.Type == name {
			return proto.Unmarshal(d.Value, into) == nil
		}
	}
	return false
}

// typed returns the error of a call to a storage as one of this package's types, which wraps it; or
// unchanged if it is none of them.
func typed(err error) error {
	var remote *connect.Error
	if !errors.As(err, &remote) || remote == nil {
		return err
	}
	var (
		condition storagev1.ConditionFailed
		wrong     storagev1.WrongType
		limit     storagev1.LimitExceeded
		lost      storagev1.HistoryLost
		failing   storagev1.WritesFail
		missing   storagev1.KeyMissing
	)
	switch {
	case detail(remote, &condition):
		return &ConditionError{Key: condition.GetKey(), ID: condition.GetId(), Want: condition.GetWant().GetId(), cause: err}
	case detail(remote, &wrong):
		return &TypeError{Key: wrong.GetKey(), Has: wrong.GetHas(), Want: wrong.GetWant(), cause: err}
	case detail(remote, &limit):
		return &LimitError{Key: limit.GetKey(), Limit: limit.GetLimit(), Max: limit.GetMax(), Need: limit.GetNeed(), cause: err}
	case detail(remote, &lost):
		return &HistoryLostError{Since: lost.GetSince(), Oldest: lost.GetOldest(), Newest: lost.GetNewest(), cause: err}
	case detail(remote, &failing):
		return &WritesFailError{Reason: failing.GetCause(), cause: err}
	case detail(remote, &missing):
		return &notFoundError{asOf: missing.GetAsOf(), cause: err}
	}
	return err
}

// TypeError means that a value was read or changed as another type than it has.
type TypeError struct {
	Key string
	// Has is the type of the stored value, Want the requested one: "int64", "double", "string", ...
	Has, Want string

	cause error // the storage's error; nil if the client noticed
}

// Error names the key and both types.
func (e *TypeError) Error() string {
	if e.cause != nil {
		return e.cause.Error()
	}
	return fmt.Sprintf("%q has type %s, not %s", e.Key, e.Has, e.Want)
}

// Unwrap returns the storage's error; nil if the client noticed.
func (e *TypeError) Unwrap() error { return e.cause }

// RangeError means that a sum would not be an int64, or not a finite float64. Nothing has changed.
type RangeError struct {
	Key string

	cause error
}

// Error returns the storage's text.
func (e *RangeError) Error() string { return e.cause.Error() }

// Unwrap returns the storage's error, which has the code OutOfRange.
func (e *RangeError) Unwrap() error { return e.cause }

// BatchError means that an operation of a batch has failed, and that the batch has changed nothing.
// It wraps the operation's error: a [ConditionError], a [TypeError], ...
type BatchError struct {
	// Index is the operation's, counted from 0; [Sync] is not one. Key is the operation's key.
	Index int
	Key   string

	cause error
}

// Error returns the storage's text.
func (e *BatchError) Error() string { return e.cause.Error() }

// Unwrap returns the operation's error.
func (e *BatchError) Unwrap() error { return e.cause }

// typedSum is typed for the error of an addition to a key.
func typedSum(key string, err error) error {
	if connect.CodeOf(err) == connect.CodeOutOfRange {
		return &RangeError{Key: key, cause: err}
	}
	return typed(err)
}

// typedBatch is typed for the error of a batch.
func typedBatch(err error) error {
	var (
		remote *connect.Error
		failed storagev1.FailedOp
	)
	if !errors.As(err, &remote) || remote == nil || !detail(remote, &failed) {
		return typed(err)
	}
	return &BatchError{Index: int(failed.GetIndex()), Key: failed.GetKey(), cause: typedSum(failed.GetKey(), err)}
}
