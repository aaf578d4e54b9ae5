package storage

import (
	"bytes"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// PutOption configures a put: [IfAbsent], [IfID], [TTL] or [Sync].
type PutOption interface {
	applyToPut(req *storagev1.PutRequest)
}

// DeleteOption configures a delete: [IfID] or [Sync].
type DeleteOption interface {
	applyToDelete(req *storagev1.DeleteRequest)
}

// UpdateOption configures [Update]: [TTL] or [Sync].
type UpdateOption interface {
	PutOption
	appliesToUpdate()
}

// WriteOption configures any write: [Sync].
type WriteOption interface {
	UpdateOption
	DeleteOption
	LoadOption
	Op
	durability() storagev1.Durability
}

type absentOption struct{}

// IfAbsent has a put fail with a [ConditionError] unless the key is missing.
func IfAbsent() PutOption { return absentOption{} }

func (absentOption) applyToPut(req *storagev1.PutRequest) {
	req.Condition = &storagev1.Condition{Kind: &storagev1.Condition_Absent{Absent: true}}
}

// IDOption is the result of [IfID].
type IDOption struct{ id uint64 }

// IfID has a put or a delete fail with a [ConditionError] unless the key's last write has an id.
func IfID(id uint64) IDOption { return IDOption{id} }

func (o IDOption) condition() *storagev1.Condition {
	return &storagev1.Condition{Kind: &storagev1.Condition_Id{Id: o.id}}
}

func (o IDOption) applyToPut(req *storagev1.PutRequest)       { req.Condition = o.condition() }
func (o IDOption) applyToDelete(req *storagev1.DeleteRequest) { req.Condition = o.condition() }

type ttlOption time.Duration

// TTL has the storage remove the key after a time, which must be positive, unless there is a later
// write.
func TTL(d time.Duration) UpdateOption { return ttlOption(d) }

func (o ttlOption) applyToPut(req *storagev1.PutRequest) {
	req.Ttl = durationpb.New(time.Duration(o))
}
func (ttlOption) appliesToUpdate() {}

type syncOption struct{}

// Sync has a write return when it is on the disk, whatever the durability of the storage. Among the
// operations of a batch it applies to the batch. A storage in memory refuses it.
func Sync() WriteOption { return syncOption{} }

func (o syncOption) applyToPut(req *storagev1.PutRequest)       { req.Durability = o.durability() }
func (o syncOption) applyToDelete(req *storagev1.DeleteRequest) { req.Durability = o.durability() }
func (o syncOption) applyToBatch(req *storagev1.BatchRequest) error {
	req.Durability = o.durability()
	return nil
}
func (o syncOption) applyToLoad(l *loading)         { l.durability = o.durability() }
func (syncOption) durability() storagev1.Durability { return storagev1.Durability_DURABILITY_SYNC }
func (syncOption) appliesToUpdate()                 {}

// durabilityOf returns the strongest durability of options.
func durabilityOf(opts []WriteOption) storagev1.Durability {
	durability := storagev1.Durability_DURABILITY_UNSPECIFIED
	for _, o := range opts {
		durability = max(durability, o.durability())
	}
	return durability
}

// Op is an operation of a batch: [PutOp], [PutMessageOp], [DeleteOp], [AddOp] or [AppendOp]; or
// [Sync].
type Op interface {
	applyToBatch(req *storagev1.BatchRequest) error
}

type opFunc func() (*storagev1.Op, error)

func (f opFunc) applyToBatch(req *storagev1.BatchRequest) error {
	op, err := f()
	if err == nil {
		req.Ops = append(req.Ops, op)
	}
	return err
}

// PutOp stores a value, as [Put] does.
func PutOp[T Value](key string, value T, opts ...PutOption) Op {
	req := &storagev1.PutRequest{Key: key, Value: valueOf(value)}
	return putOp(req, nil, opts)
}

// PutMessageOp stores a message, as [PutMessage] does.
func PutMessageOp(key string, message proto.Message, opts ...PutOption) Op {
	value, err := messageValue(key, message)
	return putOp(&storagev1.PutRequest{Key: key, Value: value}, err, opts)
}

func putOp(req *storagev1.PutRequest, err error, opts []PutOption) Op {
	for _, o := range opts {
		o.applyToPut(req)
	}
	return opFunc(func() (*storagev1.Op, error) {
		return &storagev1.Op{Kind: &storagev1.Op_Put{Put: req}}, err
	})
}

// DeleteOp removes a key, if it exists.
func DeleteOp(key string, opts ...DeleteOption) Op {
	req := &storagev1.DeleteRequest{Key: key}
	for _, o := range opts {
		o.applyToDelete(req)
	}
	return opFunc(func() (*storagev1.Op, error) {
		return &storagev1.Op{Kind: &storagev1.Op_Delete{Delete: req}}, nil
	})
}

// AddOp adds to a number, as [Add] does.
func AddOp[T Number](key string, by T) Op {
	req := &storagev1.IncrRequest{Key: key, By: valueOf(by)}
	return opFunc(func() (*storagev1.Op, error) {
		return &storagev1.Op{Kind: &storagev1.Op_Add{Add: req}}, nil
	})
}

// AppendOp appends to a string or to bytes, as [Append] does.
func AppendOp[T Text](key string, value T) Op {
	req := &storagev1.AppendRequest{Key: key, Value: textValue(value)}
	return opFunc(func() (*storagev1.Op, error) {
		return &storagev1.Op{Kind: &storagev1.Op_Append{Append: req}}, nil
	})
}

func textValue[T Text](value T) *storagev1.Value {
	switch v := any(value).(type) {
	case string:
		return &storagev1.Value{Kind: &storagev1.Value_StringValue{StringValue: v}}
	case []byte:
		return &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: bytes.Clone(v)}}
	}
	return nil
}

func messageValue(key string, message proto.Message) (*storagev1.Value, error) {
	packed, err := anypb.New(message)
	if err != nil {
		return nil, fmt.Errorf("store %q: %w", key, err)
	}
	return &storagev1.Value{Kind: &storagev1.Value_MessageValue{MessageValue: packed}}, nil
}

// ReadOption configures [Get] and its relatives: [AsOf].
type ReadOption interface {
	applyToRead(asOf uint64)
}

// ScanOption configures [Client.Scan]: [Reverse] or [AsOf].
type ScanOption interface {
	applyToList(req *storagev1.ListRequest)
}

type reverseOption struct{}

// Reverse has a scan begin with the highest key.
func Reverse() ScanOption { return reverseOption{} }

func (reverseOption) applyToList(req *storagev1.ListRequest) { req.Reverse = true }

// WatchOption configures [Client.Watch]: [Since], [Exact] or [AsOf].
type WatchOption interface {
	applyToWatch(req *storagev1.WatchRequest)
}

type watchFunc func(req *storagev1.WatchRequest)

func (f watchFunc) applyToWatch(req *storagev1.WatchRequest) { f(req) }

// Since has a watch begin with the first change whose id is above id: of a write, of [AsOf] or of
// [Client.LastID].
func Since(id uint64) WatchOption {
	return watchFunc(func(req *storagev1.WatchRequest) { req.Since = &id })
}

// Exact has a watch yield the changes of one key, that which equals the prefix.
func Exact() WatchOption {
	return watchFunc(func(req *storagev1.WatchRequest) { req.Exact = true })
}

// AsOfOption is the result of [AsOf].
type AsOfOption struct{ id *uint64 }

// AsOf has a read or a watch set *id to the id up to which it has seen all writes of its keys, so
// that a watch [Since] this id misses nothing. This differs from the id of an entry's write, which
// the storage may no longer know: a key may have been written long ago, or be missing.
//
//   - A read, and one that fails because the key is missing, sets it before it returns. It has seen
//     no later write.
//   - A scan sets it with its first page. A watch since then may also yield changes that later
//     pages have.
//   - A watch sets it before each change that it yields, to the id of the change, and also while it
//     yields none. Only the iteration's body may read it meanwhile. After the iteration another
//     watch goes on from it.
//
// An operation that has seen nothing leaves it as it is.
func AsOf(id *uint64) AsOfOption { return AsOfOption{id} }

func (o AsOfOption) applyToRead(asOf uint64)            { *o.id = asOf }
func (AsOfOption) applyToList(*storagev1.ListRequest)   {}
func (AsOfOption) applyToWatch(*storagev1.WatchRequest) {}

func setAsOf(opts []ReadOption, asOf uint64) {
	for _, o := range opts {
		o.applyToRead(asOf)
	}
}
