package storage

import (
	"context"
	"fmt"
	"iter"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
)

// Client provides access to a storage with Go's types. It is safe for concurrent use.
type Client struct {
	handle *storagev1raylink.Storage
}

// New returns a client for a handle.
func New(handle *storagev1raylink.Storage) *Client { return &Client{handle: handle} }

// Handle returns the storage's handle.
func (c *Client) Handle() *storagev1raylink.Storage { return c.handle }

// Value is a type that can be stored. Messages can be stored too: see [PutMessage].
type Value interface {
	int64 | int | float64 | bool | string | []byte
}

// Number is a type that can be incremented.
type Number interface {
	int64 | int | float64
}

// Put stores a value, replacing any previous one, and returns the id of the write. Bytes are
// copied. It fails with InvalidArgument if the value can't be sent to readers in other processes: a
// string that is not UTF-8, or a value that exceeds the size of a message.
func Put[T Value](ctx context.Context, c *Client, key string, value T) (uint64, error) {
	return c.put(ctx, key, valueOf(value))
}

// PutMessage stores a message.
func PutMessage(ctx context.Context, c *Client, key string, message proto.Message) (uint64, error) {
	packed, err := anypb.New(message)
	if err != nil {
		return 0, fmt.Errorf("store %q: %w", key, err)
	}
	return c.put(ctx, key, &storagev1.Value{Kind: &storagev1.Value_MessageValue{MessageValue: packed}})
}

func (c *Client) put(ctx context.Context, key string, value *storagev1.Value) (uint64, error) {
	res, err := c.handle.Put(ctx, &storagev1.PutRequest{Key: key, Value: value})
	return res.GetId(), err
}

// Get returns a value. It fails with NotFound if the key is missing, and with a [TypeError] if the
// value has another type.
func Get[T Value](ctx context.Context, c *Client, key string) (T, error) {
	res, err := c.handle.Get(ctx, &storagev1.GetRequest{Key: key})
	if err != nil {
		var zero T
		return zero, err
	}
	return as[T](key, res.GetValue())
}

// GetOr returns a value, or the default missing if the key does not exist.
func GetOr[T Value](ctx context.Context, c *Client, key string, missing T) (T, error) {
	res, err := c.handle.Get(ctx, &storagev1.GetRequest{Key: key, Default: valueOf(missing)})
	if err != nil {
		return missing, err
	}
	return as[T](key, res.GetValue())
}

// GetMessage reads a message, which must have the type that was stored.
func GetMessage(ctx context.Context, c *Client, key string, into proto.Message) error {
	res, err := c.handle.Get(ctx, &storagev1.GetRequest{Key: key})
	if err != nil {
		return err
	}
	want := string(into.ProtoReflect().Descriptor().FullName())
	packed := res.GetValue().GetMessageValue()
	if packed == nil {
		return &TypeError{Key: key, Has: string(kindOf(res.GetValue())), Want: want}
	}
	if !packed.MessageIs(into) {
		return &TypeError{Key: key, Has: string(packed.MessageName()), Want: want}
	}
	if err := packed.UnmarshalTo(into); err != nil {
		return fmt.Errorf("read %q: %w", key, err)
	}
	return nil
}

// Add atomically adds to a number and returns the sum. A missing key counts as zero. It fails with
// OutOfRange if the sum exceeds the type's range, and with FailedPrecondition if the value has
// another type.
func Add[T Number](ctx context.Context, c *Client, key string, by T) (T, error) {
	res, err := c.handle.Incr(ctx, &storagev1.IncrRequest{Key: key, By: valueOf(by)})
	if err != nil {
		return 0, err
	}
	return as[T](key, res.GetValue())
}

// AddFrom is [Add] with another initial value for a missing key.
func AddFrom[T Number](ctx context.Context, c *Client, key string, initial, by T) (T, error) {
	res, err := c.handle.Incr(ctx, &storagev1.IncrRequest{Key: key, By: valueOf(by), Initial: valueOf(initial)})
	if err != nil {
		return 0, err
	}
	return as[T](key, res.GetValue())
}

// Has reports whether a key exists.
func (c *Client) Has(ctx context.Context, key string) (bool, error) {
	res, err := c.handle.Has(ctx, &storagev1.HasRequest{Key: key})
	return res.GetHas(), err
}

// ID returns the id of a key's last write, or 0 if the key is missing.
func (c *Client) ID(ctx context.Context, key string) (uint64, error) {
	res, err := c.handle.GetID(ctx, &storagev1.GetIDRequest{Key: key})
	return res.GetId(), err
}

// Delete removes a key, and reports whether it existed.
func (c *Client) Delete(ctx context.Context, key string) (bool, error) {
	res, err := c.handle.Delete(ctx, &storagev1.DeleteRequest{Key: key})
	return res.GetDeleted(), err
}

// All iterates over the entries under a prefix, sorted by key. It fetches one page at a time:
// entries stored or deleted meanwhile may be missing or included, all others are yielded exactly
// once. An error ends the iteration. Entries are owned by the caller.
func (c *Client) All(ctx context.Context, prefix string) iter.Seq2[*storagev1.Entry, error] {
	return func(yield func(*storagev1.Entry, error) bool) {
		token := ""
		for {
			res, err := c.handle.List(ctx, &storagev1.ListRequest{Prefix: prefix, PageToken: token})
			if err != nil {
				yield(nil, err)
				return
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
		return &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: v}}
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
		*p, want = v.GetBytesValue(), bytesKind
	}
	if has := kindOf(v); has != want {
		return out, &TypeError{Key: key, Has: string(has), Want: string(want)}
	}
	return out, nil
}
