package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
)

// Client provides access to a storage with Go's types. It is safe for concurrent use. A value that
// was put or got belongs to the caller: the client copies slices, messages and JSON.
type Client struct {
	handle *storagev1raylink.Storage
}

// New returns a client for a handle.
func New(handle *storagev1raylink.Storage) *Client { return &Client{handle: handle} }

// Handle returns the storage's handle, which also has async calls. The messages of its calls must
// not be modified once they are sent or returned, like those of any node; values of this package's
// functions may be.
func (c *Client) Handle() *storagev1raylink.Storage { return c.handle }

// Value is a type that can be stored. A [structpb.Value] is a value of JSON; nil is its null.
// Messages can be stored too: see [PutMessage].
type Value interface {
	int64 | int | float64 | bool | string | []byte | *structpb.Value
}

// Number is a type that can be incremented.
type Number interface {
	int64 | int | float64
}

// Text is a type that can be appended to.
type Text interface {
	string | []byte
}

// Put stores a value, replacing any previous one, and returns the id of the write. A condition that
// is not fulfilled is a [ConditionError], a limit that would be exceeded a [LimitError]. It fails
// with InvalidArgument if the value can't be sent to readers in other processes: a string that is
// not UTF-8. If it fails with Unavailable, the write may have happened.
func Put[T Value](ctx context.Context, c *Client, key string, value T, opts ...PutOption) (uint64, error) {
	return c.put(ctx, key, valueOf(value), opts)
}

// PutMessage stores a message.
func PutMessage(ctx context.Context, c *Client, key string, message proto.Message, opts ...PutOption) (uint64, error) {
	value, err := messageValue(key, message)
	if err != nil {
		return 0, err
	}
	return c.put(ctx, key, value, opts)
}

// PutValue stores a value of any type, which belongs to the caller when it returns.
func (c *Client) PutValue(ctx context.Context, key string, value *storagev1.Value, opts ...PutOption) (uint64, error) {
	return c.put(ctx, key, proto.CloneOf(value), opts)
}

func (c *Client) put(ctx context.Context, key string, value *storagev1.Value, opts []PutOption) (uint64, error) {
	req := &storagev1.PutRequest{Key: key, Value: value}
	for _, o := range opts {
		o.applyToPut(req)
	}
	res, err := c.handle.Put(ctx, req)
	return res.GetId(), typed(err)
}

// Get returns a value. If the key is missing, the error is [ErrNotFound]; if the value has another
// type, a [TypeError].
func Get[T Value](ctx context.Context, c *Client, key string, opts ...ReadOption) (T, error) {
	e, err := c.Entry(ctx, key, opts...)
	if err != nil {
		var zero T
		return zero, err
	}
	return As[T](e)
}

// GetOr returns a value, or the default missing if the key does not exist.
func GetOr[T Value](ctx context.Context, c *Client, key string, missing T, opts ...ReadOption) (T, error) {
	res, err := c.handle.Get(ctx, &storagev1.GetRequest{Key: key, Default: valueOf(missing)})
	if err != nil {
		return missing, typed(err)
	}
	setAsOf(opts, res.GetAsOf())
	return as[T](key, res.GetValue())
}

// GetMany returns the values of several keys, at most 10000, of one moment. Keys that are missing
// are left out. If a value has another type, the error is a [TypeError]: see [Client.Entries].
func GetMany[T Value](ctx context.Context, c *Client, keys ...string) (map[string]T, error) {
	entries, err := c.Entries(ctx, keys...)
	if err != nil {
		return nil, err
	}
	values := make(map[string]T, len(entries))
	for _, e := range entries {
		if values[e.GetKey()], err = As[T](e); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// Entries returns the entries of several keys, at most 10000, in the order of the keys and of one
// moment. Those that are missing are left out. The entries must not be modified; the values that
// [As] returns may.
func (c *Client) Entries(ctx context.Context, keys ...string) ([]*storagev1.Entry, error) {
	res, err := c.handle.GetMany(ctx, &storagev1.GetManyRequest{Keys: slices.Clone(keys)})
	return res.GetEntries(), typed(err)
}

// Entry returns a key's value with the id of its last write, and when it is removed. If the key is
// missing, the error is [ErrNotFound]. The entry must not be modified; the value that [As] returns
// may.
func (c *Client) Entry(ctx context.Context, key string, opts ...ReadOption) (*storagev1.Entry, error) {
	res, err := c.handle.Get(ctx, &storagev1.GetRequest{Key: key})
	if err != nil {
		err = typed(err)
		if missing := new(notFoundError); errors.As(err, &missing) {
			setAsOf(opts, missing.asOf)
		}
		return nil, err
	}
	setAsOf(opts, res.GetAsOf())
	return &storagev1.Entry{Key: key, Value: res.GetValue(), Id: res.GetId(), Expires: res.GetExpires()}, nil
}

// GetMessage reads a message, which must have the type that was stored.
func GetMessage(ctx context.Context, c *Client, key string, into proto.Message, opts ...ReadOption) error {
	e, err := c.Entry(ctx, key, opts...)
	if err != nil {
		return err
	}
	want := string(into.ProtoReflect().Descriptor().FullName())
	packed := e.GetValue().GetMessageValue()
	if packed == nil {
		return &TypeError{Key: key, Has: string(kindOf(e.GetValue())), Want: want}
	}
	if !packed.MessageIs(into) {
		return &TypeError{Key: key, Has: string(packed.MessageName()), Want: want}
	}
	if err := packed.UnmarshalTo(into); err != nil {
		return fmt.Errorf("read %q: %w", key, err)
	}
	return nil
}

// Add atomically adds to a number and returns the sum. A missing key counts as zero. A sum outside
// the range of the type is a [RangeError], a value of another type a [TypeError].
func Add[T Number](ctx context.Context, c *Client, key string, by T, opts ...WriteOption) (T, error) {
	return add[T](ctx, c, &storagev1.IncrRequest{Key: key, By: valueOf(by), Durability: durabilityOf(opts)})
}

// AddFrom is [Add] with another initial value for a missing key.
func AddFrom[T Number](ctx context.Context, c *Client, key string, initial, by T, opts ...WriteOption) (T, error) {
	return add[T](ctx, c, &storagev1.IncrRequest{
		Key: key, By: valueOf(by), Initial: valueOf(initial), Durability: durabilityOf(opts),
	})
}

func add[T Number](ctx context.Context, c *Client, req *storagev1.IncrRequest) (T, error) {
	key := req.GetKey()
	res, err := c.handle.Incr(ctx, req)
	if err != nil {
		return 0, typedSum(key, err)
	}
	return as[T](key, res.GetValue())
}

// Append atomically appends to a string or to bytes, and returns the new size in bytes. A missing
// key counts as empty. A value of another type is a [TypeError].
func Append[T Text](ctx context.Context, c *Client, key string, value T, opts ...WriteOption) (uint64, error) {
	res, err := c.handle.Append(ctx, &storagev1.AppendRequest{Key: key, Value: textValue(value), Durability: durabilityOf(opts)})
	return res.GetSize(), typed(err)
}

// Batch makes several writes, all or none, in the order of ops: each sees what those before it have
// changed. If one fails, the error is a [BatchError]. There may be at most 10000.
func (c *Client) Batch(ctx context.Context, ops ...Op) error {
	_, err := c.BatchIDs(ctx, ops...)
	return err
}

// BatchIDs is [Client.Batch], and returns the ids of the writes: one for each operation, 0 for a
// delete of a missing key.
func (c *Client) BatchIDs(ctx context.Context, ops ...Op) ([]uint64, error) {
	req := &storagev1.BatchRequest{}
	for _, op := range ops {
		if err := op.applyToBatch(req); err != nil {
			return nil, err
		}
	}
	if len(req.GetOps()) == 0 {
		return nil, nil
	}
	res, err := c.handle.Batch(ctx, req)
	return res.GetIds(), typedBatch(err)
}

// Has reports whether a key exists.
func (c *Client) Has(ctx context.Context, key string) (bool, error) {
	res, err := c.handle.Has(ctx, &storagev1.HasRequest{Key: key})
	return res.GetHas(), typed(err)
}

// ID returns the id of a key's last write, or 0 if the key is missing.
func (c *Client) ID(ctx context.Context, key string) (uint64, error) {
	res, err := c.handle.GetID(ctx, &storagev1.GetIDRequest{Key: key})
	return res.GetId(), typed(err)
}

// LastID returns the id of the storage's last write. What is read after that contains all writes up
// to it, so that a [Client.Watch] since this id yields all later ones. For one read or scan, [AsOf]
// needs no further call.
func (c *Client) LastID(ctx context.Context) (uint64, error) {
	res, err := c.handle.Status(ctx, &storagev1.StatusRequest{})
	return res.GetDurableId(), typed(err)
}

// Delete removes a key, and reports whether it existed.
func (c *Client) Delete(ctx context.Context, key string, opts ...DeleteOption) (bool, error) {
	req := &storagev1.DeleteRequest{Key: key}
	for _, o := range opts {
		o.applyToDelete(req)
	}
	res, err := c.handle.Delete(ctx, req)
	return res.GetDeleted(), typed(err)
}

// All is [Client.Scan] without options.
func (c *Client) All(ctx context.Context, prefix string) iter.Seq2[*storagev1.Entry, error] {
	return c.Scan(ctx, prefix)
}

// Scan iterates over the entries under a prefix, sorted by key. It fetches one page at a time:
// entries stored or deleted meanwhile may be missing or included, all others are yielded exactly
// once. An error ends the iteration. Entries must not be modified; the values that [As] returns
// may.
func (c *Client) Scan(ctx context.Context, prefix string, opts ...ScanOption) iter.Seq2[*storagev1.Entry, error] {
	return func(yield func(*storagev1.Entry, error) bool) {
		token := ""
		for {
			req := &storagev1.ListRequest{Prefix: prefix, PageToken: token}
			for _, o := range opts {
				o.applyToList(req)
			}
			res, err := c.handle.List(ctx, req)
			if err != nil {
				yield(nil, typed(err))
				return
			}
			if token == "" {
				for _, o := range opts {
					if o, ok := o.(ReadOption); ok {
						o.applyToRead(res.GetAsOf())
					}
				}
			}
			for _, e := range res.GetEntries() {
				if !yield(e, nil) {
					return
				}
			}
			if token = res.GetNextPageToken(); token == "" {
				return
			}
		}
	}
}

// As returns the value of a [storagev1.Entry] or [storagev1.Change] as one of Go's types, which
// belongs to the caller. If it has another type, or is a removal, the error is a [TypeError].
func As[T Value](item interface {
	GetKey() string
	GetValue() *storagev1.Value
},
) (T, error) {
	return as[T](item.GetKey(), item.GetValue())
}

func valueOf[T Value](value T) *storagev1.Value {
	switch v := any(value).(type) {
	case int64:
		return int64Value(v)
	case int:
		return int64Value(int64(v))
	case float64:
		return doubleValue(v)
	case bool:
		return &storagev1.Value{Kind: &storagev1.Value_BoolValue{BoolValue: v}}
	case string:
		return &storagev1.Value{Kind: &storagev1.Value_StringValue{StringValue: v}}
	case []byte:
		// Within a process the message is passed as it is. The call may return before it was
		// handled, if ctx ends, and then the caller may reuse its buffer.
		return &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: bytes.Clone(v)}}
	case *structpb.Value:
		if v == nil {
			v = structpb.NewNullValue()
		}
		return &storagev1.Value{Kind: &storagev1.Value_JsonValue{JsonValue: proto.CloneOf(v)}}
	}
	return nil
}

// as returns a value as one of Go's types.
func as[T Value](key string, v *storagev1.Value) (T, error) {
	var out T
	var want kind
	switch p := any(&out).(type) {
	case *int64:
		*p, want = v.GetInt64Value(), int64Kind
	case *int:
		*p, want = int(v.GetInt64Value()), int64Kind
	case *float64:
		*p, want = v.GetDoubleValue(), doubleKind
	case *bool:
		*p, want = v.GetBoolValue(), boolKind
	case *string:
		*p, want = v.GetStringValue(), stringKind
	case *[]byte:
		*p, want = bytes.Clone(v.GetBytesValue()), bytesKind // see Handle
	case **structpb.Value:
		*p, want = proto.CloneOf(v.GetJsonValue()), jsonKind
	}
	if has := kindOf(v); has != want {
		var zero T
		return zero, &TypeError{Key: key, Has: string(has), Want: string(want)}
	}
	return out, nil
}

// TypeName returns the name of a value's type: "int64", "double", "bool", "string", "bytes",
// "message" or "json"; "nothing" for a removal.
func TypeName(v *storagev1.Value) string { return string(kindOf(v)) }

// cloned returns a copy of a value that shares no memory with it.
func cloned[T Value](value T) T {
	switch p := any(&value).(type) {
	case *[]byte:
		*p = bytes.Clone(*p)
	case **structpb.Value:
		*p = proto.CloneOf(*p)
	}
	return value
}
