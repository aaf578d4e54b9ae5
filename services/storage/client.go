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

// Client is a storage's handle with Go's types. It may be used from any goroutine.
type Client struct {
	handle *storagev1raylink.Storage
}

// New makes a client of a handle.
func New(handle *storagev1raylink.Storage) *Client { return &Client{handle: handle} }

// Handle is the storage's handle.
func (c *Client) Handle() *storagev1raylink.Storage { return c.handle }

// Value is what can be stored; and any message: see [PutMessage].
type Value interface {
	int64 | int | float64 | bool | string | []byte
}

// Number is what can be counted.
type Number interface {
	int64 | int | float64
}

// TypeError is the reading of a value as something that it is not.
type TypeError struct {
	Key string
	// Has is the type of what is stored, Want what it was to be read as: `int64`, `double`, `string`, ...
	Has, Want string
}

// Error names both types.
func (e *TypeError) Error() string {
	return fmt.Sprintf("%q holds a value of the type %s, not %s", e.Key, e.Has, e.Want)
}

// Put stores a value, whatever was there before, and gives the id of the write. Bytes are copied. The error has the code
// InvalidArgument where readers in other processes could not be sent the value: text that is not UTF-8, or more than fits into a
// message.
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

// Get reads a value. The error has the code NotFound where the key is missing, and is a [TypeError] where it holds something else.
func Get[T Value](ctx context.Context, c *Client, key string) (T, error) {
	res, err := c.handle.Get(ctx, &storagev1.GetRequest{Key: key})
	if err != nil {
		var none T
		return none, err
	}
	return as[T](key, res.GetValue())
}

// GetOr reads a value, and gives another where the key is missing.
func GetOr[T Value](ctx context.Context, c *Client, key string, missing T) (T, error) {
	res, err := c.handle.Get(ctx, &storagev1.GetRequest{Key: key, Default: valueOf(missing)})
	if err != nil {
		return missing, err
	}
	return as[T](key, res.GetValue())
}

// GetMessage reads a message. Its type must be the one that was stored.
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

// Add adds to a number, or subtracts where it is negative, atomically; a missing key counts as zero. It gives the sum. The
// error has the code OutOfRange where there is none, and FailedPrecondition where the key holds something else.
func Add[T Number](ctx context.Context, c *Client, key string, by T) (T, error) {
	res, err := c.handle.Incr(ctx, &storagev1.IncrRequest{Key: key, By: valueOf(by)})
	if err != nil {
		return 0, err
	}
	return as[T](key, res.GetValue())
}

// AddFrom is [Add], with another number for a missing key.
func AddFrom[T Number](ctx context.Context, c *Client, key string, initial, by T) (T, error) {
	res, err := c.handle.Incr(ctx, &storagev1.IncrRequest{Key: key, By: valueOf(by), Initial: valueOf(initial)})
	if err != nil {
		return 0, err
	}
	return as[T](key, res.GetValue())
}

// Has says whether a key is there.
func (c *Client) Has(ctx context.Context, key string) (bool, error) {
	res, err := c.handle.Has(ctx, &storagev1.HasRequest{Key: key})
	return res.GetHas(), err
}

// ID is the id of a key's last write, or 0 where it is missing.
func (c *Client) ID(ctx context.Context, key string) (uint64, error) {
	res, err := c.handle.GetID(ctx, &storagev1.GetIDRequest{Key: key})
	return res.GetId(), err
}

// Delete removes a key, and says whether it was there.
func (c *Client) Delete(ctx context.Context, key string) (bool, error) {
	res, err := c.handle.Delete(ctx, &storagev1.DeleteRequest{Key: key})
	return res.GetDeleted(), err
}

// All gives what is stored under a prefix, sorted by key. It asks for a page at a time: what is stored or deleted meanwhile may
// come or not, and all else comes once. An error is the last thing that it gives. The entries belong to the caller.
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

// as reads a value as one of Go's types.
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
