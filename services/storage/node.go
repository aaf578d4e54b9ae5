package storage

import (
	"context"
	"encoding/base64"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
)

const (
	defaultMaxKeys  = 1 << 20
	defaultMaxBytes = 1 << 30
	// maxKey is the maximum length of a key in bytes.
	maxKey = 4096
	// entryOverhead is the size of an entry that is counted in addition to key and value.
	entryOverhead = 64

	// defaultPage and maxPage are the default and maximum number of entries in a page of List.
	defaultPage = 1000
	maxPage     = 10000
	// maxPageBytes is the maximum size of a page. A page has at least one entry.
	maxPageBytes = 4 << 20
)

// node is a storage node. Its methods take turns, so it needs no lock. Stored values are immutable;
// writes replace them. Within a process messages are passed without a copy, and callers may reuse
// their buffers, so values are copied when they are stored and returned.
type node struct {
	storagev1raylink.UnimplementedStorageNode

	maxKeys, maxBytes uint64
	// maxValue is the maximum size of a value: with its key it must fit into List's response.
	maxValue int

	entries map[string]*storagev1.Entry
	keys    *keyList
	bytes   uint64
	lastID  uint64
}

// listingBytes is the space in a response for one entry's key, the page token with that key, and
// their framing.
const listingBytes = 4 * maxKey

// newNode returns a storage on a host that receives messages of up to maxMessage bytes.
func newNode(config *storagev1.StorageConfig, maxMessage int) *node {
	n := &node{
		maxKeys: config.GetMaxKeys(), maxBytes: config.GetMaxBytes(), maxValue: max(maxMessage-listingBytes, 1),
		entries: make(map[string]*storagev1.Entry), keys: newKeyList(),
	}
	if n.maxKeys == 0 {
		n.maxKeys = defaultMaxKeys
	}
	if n.maxBytes == 0 {
		n.maxBytes = defaultMaxBytes
	}
	return n
}

func sizeOf(key string, value *storagev1.Value) uint64 {
	return uint64(len(key)) + uint64(proto.Size(value)) + entryOverhead //nolint:gosec // not negative
}

// store stores a value under a key, or fails and changes nothing.
func (n *node) store(key string, value *storagev1.Value) (uint64, error) {
	before, replaces := n.entries[key]
	bytes := n.bytes + sizeOf(key, value)
	if replaces {
		bytes -= sizeOf(key, before.GetValue())
	}
	if bytes > n.maxBytes && bytes > n.bytes {
		return 0, connect.Errorf(connect.CodeResourceExhausted,
			"store %q: the storage's limit is %d bytes, and it would need %d", key, n.maxBytes, bytes)
	}
	if !replaces {
		if uint64(len(n.entries)) >= n.maxKeys {
			return 0, connect.Errorf(connect.CodeResourceExhausted, "store %q: the storage's limit of %d keys is reached", key, n.maxKeys)
		}
		n.keys.insert(key)
	}
	n.lastID++
	n.bytes = bytes
	n.entries[key] = &storagev1.Entry{Key: key, Value: value, Id: n.lastID}
	return n.lastID, nil
}

func checkKey(key string) error {
	switch {
	case key == "" || len(key) > maxKey:
		return connect.Errorf(connect.CodeInvalidArgument, "invalid key: a key has 1 to %d bytes, but %.40q has %d", maxKey, key, len(key))
	case !utf8.ValidString(key):
		return connect.Errorf(connect.CodeInvalidArgument, "invalid key: %.40q is not UTF-8", key)
	}
	return nil
}

// checkValue rejects values that can't be sent to readers in other processes.
func (n *node) checkValue(key string, value *storagev1.Value) error {
	text := value.GetStringValue() + value.GetMessageValue().GetTypeUrl()
	switch size := proto.Size(value); {
	case kindOf(value) == noKind:
		return connect.Errorf(connect.CodeInvalidArgument, "store %q: no value", key)
	case size > n.maxValue:
		return connect.Errorf(connect.CodeInvalidArgument,
			"store %q: the value of %d bytes would not fit into a message; the limit is %d", key, size, n.maxValue)
	case !utf8.ValidString(text):
		return connect.Errorf(connect.CodeInvalidArgument, "store %q: the text %.40q is not UTF-8; store it as bytes", key, text)
	}
	return nil
}

// Put stores a value, replacing any previous one.
func (n *node) Put(_ context.Context, req *storagev1.PutRequest) (*storagev1.PutResponse, error) {
	if err := checkKey(req.GetKey()); err != nil {
		return nil, err
	}
	if err := n.checkValue(req.GetKey(), req.GetValue()); err != nil {
		return nil, err
	}
	id, err := n.store(req.GetKey(), proto.CloneOf(req.GetValue()))
	return &storagev1.PutResponse{Id: id}, err
}

// Get returns a value.
func (n *node) Get(_ context.Context, req *storagev1.GetRequest) (*storagev1.GetResponse, error) {
	if e, ok := n.entries[req.GetKey()]; ok {
		return &storagev1.GetResponse{Value: proto.CloneOf(e.GetValue()), Id: e.GetId()}, nil
	}
	if req.GetDefault() == nil {
		return nil, connect.Errorf(connect.CodeNotFound, "no key %q", req.GetKey())
	}
	return &storagev1.GetResponse{Value: proto.CloneOf(req.GetDefault())}, nil
}

// Has reports whether a key exists.
func (n *node) Has(_ context.Context, req *storagev1.HasRequest) (*storagev1.HasResponse, error) {
	_, ok := n.entries[req.GetKey()]
	return &storagev1.HasResponse{Has: ok}, nil
}

// GetID returns the id of a key's last write.
func (n *node) GetID(_ context.Context, req *storagev1.GetIDRequest) (*storagev1.GetIDResponse, error) {
	return &storagev1.GetIDResponse{Id: n.entries[req.GetKey()].GetId()}, nil
}

// Incr adds to a number.
func (n *node) Incr(_ context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
	value, id, err := n.step(req.GetKey(), req.GetBy(), req.GetInitial(), false)
	return &storagev1.IncrResponse{Value: value, Id: id}, err
}

// Decr subtracts from a number.
func (n *node) Decr(_ context.Context, req *storagev1.DecrRequest) (*storagev1.DecrResponse, error) {
	value, id, err := n.step(req.GetKey(), req.GetBy(), req.GetInitial(), true)
	return &storagev1.DecrResponse{Value: value, Id: id}, err
}

// step increments or decrements a number.
func (n *node) step(key string, by, initial *storagev1.Value, down bool) (*storagev1.Value, uint64, error) {
	if err := checkKey(key); err != nil {
		return nil, 0, err
	}
	value, err := stepped(key, n.entries[key].GetValue(), by, initial, down)
	if err != nil {
		return nil, 0, err
	}
	id, err := n.store(key, value)
	return proto.CloneOf(value), id, err
}

// Delete removes a key.
func (n *node) Delete(_ context.Context, req *storagev1.DeleteRequest) (*storagev1.DeleteResponse, error) {
	e, ok := n.entries[req.GetKey()]
	if ok {
		delete(n.entries, req.GetKey())
		n.keys.remove(req.GetKey())
		n.bytes -= sizeOf(req.GetKey(), e.GetValue())
	}
	return &storagev1.DeleteResponse{Deleted: ok}, nil
}

// List returns the entries under a prefix, one page at a time.
func (n *node) List(_ context.Context, req *storagev1.ListRequest) (*storagev1.ListResponse, error) {
	limit := int(req.GetPageSize())
	switch {
	case limit < 0:
		return nil, connect.Errorf(connect.CodeInvalidArgument, "invalid page size %d", limit)
	case limit == 0:
		limit = defaultPage
	}
	limit = min(limit, maxPage)
	after, err := afterToken(req.GetPrefix(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	res := new(storagev1.ListResponse)
	size, last := uint64(0), ""
	for key := range n.keys.from(req.GetPrefix(), after) {
		e := n.entries[key]
		size += sizeOf(key, e.GetValue())
		if len(res.GetEntries()) == limit || size > maxPageBytes && last != "" {
			res.NextPageToken = tokenAfter(last)
			break
		}
		res.Entries, last = append(res.Entries, proto.CloneOf(e)), key
	}
	return res, nil
}

// tokenAfter returns the token of the page after a key. The key need not exist when the token is
// used.
func tokenAfter(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

// afterToken returns the key that a page follows; "" for the first page.
func afterToken(prefix, token string) (string, error) {
	key, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || token != "" && !strings.HasPrefix(string(key), prefix) {
		return "", connect.Errorf(connect.CodeInvalidArgument, "invalid page token %.40q for the prefix %.40q", token, prefix)
	}
	return string(key), nil
}
