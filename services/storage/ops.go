package storage

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/services/storage/internal/table"
)

const (
	// defaultPage and maxPage are the default and maximum number of entries in a page of List.
	defaultPage = 1000
	maxPage     = 10000
	// maxPageBytes is the maximum size of a page. A page has at least one entry.
	maxPageBytes = 4 << 20
	// namedKeys is how many keys the error for a missing one names.
	namedKeys = 5
)

// view is the state for one method that writes, and what the method has written so far. It belongs
// to the node, so that most methods allocate nothing for it.
type view struct {
	n *node
	// next is the id of the next write.
	next   uint64
	writes []table.Write
	// written has the index in writes of each key's last write; nil until a batch has several.
	written map[string]int
	// bytes is the size of the values in writes.
	bytes int
}

// maxView is the number of writes whose memory is kept for the next method.
const maxView = 64

// reset forgets what a method has written.
func (v *view) reset() {
	clear(v.writes)
	if v.writes = v.writes[:0]; cap(v.writes) > maxView {
		v.writes = nil
	}
	v.written, v.bytes = nil, 0
}

// get returns a key's value and the id of its last write, or nil and 0 if it is missing.
func (v *view) get(key string) (*storagev1.Value, uint64) {
	if len(v.writes) > 0 {
		if i, ok := v.written[key]; ok {
			w := &v.writes[i]
			if w.Value == nil {
				return nil, 0
			}
			return w.Value, v.next - uint64(len(v.writes)) + uint64(i) //nolint:gosec // not negative
		}
	}
	e, ok := v.n.entry(key)
	if !ok {
		return nil, 0
	}
	return e.Value.Proto(), e.ID
}

// id returns the id of a key's last write, or 0 if it is missing.
func (v *view) id(key string) uint64 {
	if len(v.writes) > 0 {
		_, id := v.get(key)
		return id
	}
	e, _ := v.n.entry(key)
	return e.ID
}

// add adds a write and returns its id.
func (v *view) add(w table.Write) uint64 {
	if v.written != nil {
		v.written[w.Key] = len(v.writes)
	}
	v.writes = append(v.writes, w)
	v.next++
	return v.next - 1
}

// entry returns the entry of a key whose time is not over. The caller must hold n.mu.
func (n *node) entry(key string) (table.Entry, bool) {
	e, ok := n.table.Get(key)
	if !ok || isExpired(&e) {
		return table.Entry{}, false
	}
	return e, true
}

func isExpired(e *table.Entry) bool { return e.Expires != 0 && e.Expires <= unixNow() }

// operation is one write of a key, or several. What does not depend on the state has been checked
// when it is made.
type operation interface {
	// apply adds the writes to the view, or fails; then it has added none, or the view is not used
	// any more. It returns the id of the last write; 0 if it made none. The state is locked.
	apply(v *view) (id uint64, err error)
}

// operationFunc is an operation as a function.
type operationFunc func(v *view) (uint64, error)

func (f operationFunc) apply(v *view) (uint64, error) { return f(v) }

// put replaces a value. It is in one allocation with its response, as the other operations are.
type put struct {
	req     *storagev1.PutRequest
	expires int64
	res     storagev1.PutResponse
}

func (n *node) newPut(req *storagev1.PutRequest) (*put, error) {
	key := req.GetKey()
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if err := n.checkValue(key, req.GetValue()); err != nil {
		return nil, err
	}
	if err := checkCondition(key, req.GetCondition()); err != nil {
		return nil, err
	}
	expires, err := expiryOf(key, req.GetTtl())
	if err != nil {
		return nil, err
	}
	return &put{req: req, expires: expires}, nil
}

func (p *put) apply(v *view) (uint64, error) {
	if err := v.require(p.req.GetKey(), p.req.GetCondition()); err != nil {
		return 0, err
	}
	p.res.Id = v.add(table.Write{Key: p.req.GetKey(), Value: p.req.GetValue(), Expires: p.expires})
	return p.res.GetId(), nil
}

// remove removes a key.
type remove struct {
	req *storagev1.DeleteRequest
	res storagev1.DeleteResponse
}

func newRemove(req *storagev1.DeleteRequest) (*remove, error) {
	if err := checkKey(req.GetKey()); err != nil {
		return nil, err
	}
	if err := checkCondition(req.GetKey(), req.GetCondition()); err != nil {
		return nil, err
	}
	return &remove{req: req}, nil
}

func (r *remove) apply(v *view) (uint64, error) {
	if err := v.require(r.req.GetKey(), r.req.GetCondition()); err != nil {
		return 0, err
	}
	if v.id(r.req.GetKey()) == 0 {
		return 0, nil
	}
	r.res.Id, r.res.Deleted = v.add(table.Write{Key: r.req.GetKey()}), true
	return r.res.GetId(), nil
}

// step increments or decrements a number.
type step struct {
	key         string
	by, initial *storagev1.Value
	down        bool
	res         storagev1.IncrResponse
}

func newStep(key string, by, initial *storagev1.Value, down bool) (*step, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return &step{key: key, by: by, initial: initial, down: down}, nil
}

func (s *step) apply(v *view) (uint64, error) {
	stored, _ := v.get(s.key)
	value, err := stepped(s.key, stored, s.by, s.initial, s.down)
	if err != nil {
		return 0, err
	}
	// The table copies the value, so that it is the caller's.
	s.res.Value, s.res.Id = value, v.add(table.Write{Key: s.key, Value: value})
	return s.res.GetId(), nil
}

// extend appends to bytes or a string.
type extend struct {
	n   *node
	req *storagev1.AppendRequest
	res storagev1.AppendResponse
}

func (n *node) newExtend(req *storagev1.AppendRequest) (*extend, error) {
	if err := checkKey(req.GetKey()); err != nil {
		return nil, err
	}
	if err := n.checkValue(req.GetKey(), req.GetValue()); err != nil {
		return nil, err
	}
	return &extend{n: n, req: req}, nil
}

func (e *extend) apply(v *view) (uint64, error) {
	key := e.req.GetKey()
	stored, _ := v.get(key)
	value, err := appended(key, stored, e.req.GetValue())
	if err != nil {
		return 0, err
	}
	if err := e.n.checkSize(key, value); err != nil {
		return 0, err
	}
	e.res.Id = v.add(table.Write{Key: key, Value: value})
	e.res.Size = uint64(len(value.GetBytesValue()) + len(value.GetStringValue()))
	return e.res.GetId(), nil
}

// checkCondition rejects conditions that require nothing.
func checkCondition(key string, c *storagev1.Condition) error {
	switch k := c.GetKind().(type) {
	case nil:
		if c == nil {
			return nil
		}
		return connect.Errorf(connect.CodeInvalidArgument, "write %q: the condition requires nothing; set absent or an id, or leave it out", key)
	case *storagev1.Condition_Absent:
		if !k.Absent {
			return connect.Errorf(connect.CodeInvalidArgument, "write %q: the condition absent is false; require the id that the key has", key)
		}
	}
	return nil
}

// require fails if a key does not fulfill a condition.
func (v *view) require(key string, c *storagev1.Condition) error {
	if c == nil {
		return nil
	}
	want := c.GetId() // 0 if the key must be missing
	has := v.id(key)
	if has == want {
		return nil
	}
	var err *connect.Error
	switch {
	case want == 0:
		err = connect.Errorf(connect.CodeAborted, "write %q: it must be missing, but it exists, with the id %d", key, has)
	case has == 0:
		err = connect.Errorf(connect.CodeAborted, "write %q: it must have the id %d, but it is missing", key, want)
	default:
		err = connect.Errorf(connect.CodeAborted, "write %q: it must have the id %d, but it has the id %d", key, want, has)
	}
	return detailed(err, &storagev1.ConditionFailed{Key: key, Id: has, Want: c})
}

// expiryOf returns when an entry that is put now expires, in Unix nanoseconds; 0 means never.
func expiryOf(key string, ttl *durationpb.Duration) (int64, error) {
	if ttl == nil {
		return 0, nil
	}
	now := unixNow()
	d := ttl.AsDuration()
	switch {
	case ttl.CheckValid() != nil || int64(d) > math.MaxInt64-now:
		return 0, connect.Errorf(connect.CodeInvalidArgument, "put %q: the ttl of %d s and %d ns is too long, or invalid", key, ttl.GetSeconds(), ttl.GetNanos())
	case d <= 0:
		return 0, connect.Errorf(connect.CodeInvalidArgument, "put %q: the ttl is %s; it must be positive", key, d)
	}
	return now + int64(d), nil
}

// Put stores a value, replacing any previous one.
func (n *node) Put(ctx context.Context, req *storagev1.PutRequest) (*storagev1.PutResponse, error) {
	op, err := n.newPut(req)
	if err == nil {
		err = n.change(ctx, req.GetDurability(), op)
	}
	if err != nil {
		return nil, err
	}
	return &op.res, nil
}

// Delete removes a key.
func (n *node) Delete(ctx context.Context, req *storagev1.DeleteRequest) (*storagev1.DeleteResponse, error) {
	op, err := newRemove(req)
	if err == nil {
		err = n.change(ctx, req.GetDurability(), op)
	}
	if err != nil {
		return nil, err
	}
	return &op.res, nil
}

// Incr adds to a number.
func (n *node) Incr(ctx context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
	op, err := newStep(req.GetKey(), req.GetBy(), req.GetInitial(), false)
	if err == nil {
		err = n.change(ctx, req.GetDurability(), op)
	}
	if err != nil {
		return nil, err
	}
	return &op.res, nil
}

// Decr subtracts from a number.
func (n *node) Decr(ctx context.Context, req *storagev1.DecrRequest) (*storagev1.DecrResponse, error) {
	op, err := newStep(req.GetKey(), req.GetBy(), req.GetInitial(), true)
	if err == nil {
		err = n.change(ctx, req.GetDurability(), op)
	}
	if err != nil {
		return nil, err
	}
	return &storagev1.DecrResponse{Value: op.res.GetValue(), Id: op.res.GetId()}, nil
}

// Append appends to bytes or to a string.
func (n *node) Append(ctx context.Context, req *storagev1.AppendRequest) (*storagev1.AppendResponse, error) {
	op, err := n.newExtend(req)
	if err == nil {
		err = n.change(ctx, req.GetDurability(), op)
	}
	if err != nil {
		return nil, err
	}
	return &op.res, nil
}

// Batch makes several writes, all or none.
func (n *node) Batch(ctx context.Context, req *storagev1.BatchRequest) (*storagev1.BatchResponse, error) {
	if count := len(req.GetOps()); count > maxOps {
		return nil, overLimit(connect.CodeInvalidArgument, "", "operations", maxOps, uint64(count),
			"a batch of %d operations; at most %d are possible", count, maxOps)
	}
	durability := req.GetDurability()
	ops := make([]operation, len(req.GetOps()))
	for i, op := range req.GetOps() {
		var err error
		if ops[i], err = n.batchOperation(op, &durability); err != nil {
			return nil, failedOp(i, op, err)
		}
	}
	ids := make([]uint64, len(ops))
	err := n.change(ctx, durability, operationFunc(func(v *view) (last uint64, err error) {
		v.written = make(map[string]int, len(ops))
		for i, op := range ops {
			id, err := op.apply(v)
			if err != nil {
				return 0, failedOp(i, req.GetOps()[i], err)
			}
			if ids[i] = id; id != 0 {
				last = id
				v.bytes += proto.Size(v.writes[len(v.writes)-1].Value)
			}
			if v.bytes > n.maxMessage {
				return 0, failedOp(i, req.GetOps()[i], overLimit(connect.CodeInvalidArgument, keyOf(req.GetOps()[i]), "batch bytes",
					uint64(n.maxMessage), uint64(v.bytes), //nolint:gosec // not negative
					"the values that the batch writes exceed %d bytes together", n.maxMessage))
			}
		}
		return last, nil
	}))
	if err != nil {
		return nil, err
	}
	return &storagev1.BatchResponse{Ids: ids}, nil
}

// batchOperation returns an operation of a batch. It raises *durability to the operation's own.
func (n *node) batchOperation(op *storagev1.Op, durability *storagev1.Durability) (operation, error) {
	switch k := op.GetKind().(type) {
	case *storagev1.Op_Put:
		*durability = max(*durability, k.Put.GetDurability())
		return n.newPut(k.Put)
	case *storagev1.Op_Delete:
		*durability = max(*durability, k.Delete.GetDurability())
		return newRemove(k.Delete)
	case *storagev1.Op_Add:
		*durability = max(*durability, k.Add.GetDurability())
		return newStep(k.Add.GetKey(), k.Add.GetBy(), k.Add.GetInitial(), false)
	case *storagev1.Op_Append:
		*durability = max(*durability, k.Append.GetDurability())
		return n.newExtend(k.Append)
	}
	return nil, connect.NewError(connect.CodeInvalidArgument, "it has no kind: set put, delete, add or append")
}

func keyOf(op *storagev1.Op) string {
	return op.GetPut().GetKey() + op.GetDelete().GetKey() + op.GetAdd().GetKey() + op.GetAppend().GetKey()
}

// failedOp adds to an error which operation of a batch failed. It keeps code and details.
func failedOp(index int, op *storagev1.Op, err error) error {
	key := keyOf(op)
	var cause *connect.Error
	if !errors.As(err, &cause) {
		cause = connect.NewError(connect.CodeInternal, err.Error())
	}
	out := connect.Errorf(cause.Code(), "operation %d of the batch, on %.40q: %s", index, key, cause.Message()).WithCause(err)
	for _, d := range cause.Details() {
		out = out.WithDetail(d)
	}
	return detailed(out, &storagev1.FailedOp{Index: uint32(index), Key: key}) //nolint:gosec // bounded by maxOps
}

// Get returns a value.
func (n *node) Get(ctx context.Context, req *storagev1.GetRequest) (*storagev1.GetResponse, error) {
	var (
		e       table.Entry
		ok      bool
		asOf    uint64
		missing error
	)
	err := n.read(ctx, func() uint64 {
		provisional := n.table.Pending(req.GetKey())
		e, ok = n.entry(req.GetKey())
		asOf = n.asOf(provisional)
		if missing = nil; !ok && req.GetDefault() == nil {
			missing = n.noKey(req.GetKey(), asOf)
		}
		return provisional
	})
	switch {
	case err != nil:
		return nil, err
	case ok:
		return &storagev1.GetResponse{Value: e.Value.Proto(), Id: e.ID, Expires: timestampOf(e.Expires), AsOf: asOf}, nil
	case missing != nil:
		return nil, missing
	}
	return &storagev1.GetResponse{Value: proto.CloneOf(req.GetDefault()), AsOf: asOf}, nil
}

// asOf returns the id up to which a read has all writes of its keys, and after which it has none.
// provisional is the id of the latest provisional write on which the read depends, or 0. Ids above
// both that and the last committed one may still be given to other writes. The caller must hold
// n.mu.
func (n *node) asOf(provisional uint64) uint64 { return max(n.table.CommittedID(), provisional) }

// noKey is the error for a key that is missing. It names keys that exist, those nearest to it. The
// caller must hold n.mu.
func (n *node) noKey(key string, asOf uint64) error {
	// Keys with the longest prefix, up to a slash, that some key has.
	var names []string
	for prefix := key; len(names) == 0; {
		prefix = strings.TrimRight(prefix, "/")
		prefix = prefix[:strings.LastIndexByte(prefix, '/')+1]
		seen := 0
		for e := range n.table.Scan(prefix, "", false) {
			if seen++; len(names) == namedKeys || seen > 2*namedKeys {
				break
			}
			if !isExpired(&e) && n.table.Pending(e.Key) == 0 {
				names = append(names, fmt.Sprintf("%.60q", e.Key))
			}
		}
		if prefix == "" {
			break
		}
	}
	text := "the storage is empty"
	if len(names) > 0 {
		text = "there are " + strings.Join(names, ", ")
		if n.table.Usage().Keys > uint64(len(names)) {
			text += " and others"
		}
	}
	return detailed(connect.Errorf(connect.CodeNotFound, "no key %.100q; %s", key, text), &storagev1.KeyMissing{Key: key, AsOf: asOf})
}

// GetMany returns the entries of several keys.
func (n *node) GetMany(ctx context.Context, req *storagev1.GetManyRequest) (*storagev1.GetManyResponse, error) {
	if count := len(req.GetKeys()); count > maxOps {
		return nil, overLimit(connect.CodeInvalidArgument, "", "operations", maxOps, uint64(count),
			"get %d keys; at most %d are possible at once", count, maxOps)
	}
	var entries []table.Entry
	var asOf uint64
	err := n.read(ctx, func() uint64 {
		entries = entries[:0]
		provisional := uint64(0)
		for _, key := range req.GetKeys() {
			if e, ok := n.entry(key); ok {
				entries = append(entries, e)
			}
			provisional = max(provisional, n.table.Pending(key))
		}
		asOf = n.asOf(provisional)
		return provisional
	})
	if err != nil {
		return nil, err
	}
	res := &storagev1.GetManyResponse{Entries: make([]*storagev1.Entry, 0, len(entries)), AsOf: asOf}
	size := 0
	for i := range entries {
		e := entries[i].Proto()
		if size += framed(proto.Size(e)); size > n.maxMessage {
			return nil, overLimit(connect.CodeResourceExhausted, "", "response bytes", uint64(n.maxMessage), 0, //nolint:gosec // not negative
				"get %d keys: their entries would not fit into a message of %d bytes; get fewer at once", len(req.GetKeys()), n.maxMessage)
		}
		res.Entries = append(res.Entries, e)
	}
	return res, nil
}

// framed returns the size of a message inside of another one.
func framed(size int) int { return size + 6 }

// timestampOf returns a time in Unix nanoseconds; nil if it is 0.
func timestampOf(ns int64) *timestamppb.Timestamp {
	if ns == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(0, ns))
}

// Has reports whether a key exists.
func (n *node) Has(ctx context.Context, req *storagev1.HasRequest) (*storagev1.HasResponse, error) {
	id, err := n.idOf(ctx, req.GetKey())
	if err != nil {
		return nil, err
	}
	return &storagev1.HasResponse{Has: id != 0}, nil
}

// GetID returns the id of a key's last write.
func (n *node) GetID(ctx context.Context, req *storagev1.GetIDRequest) (*storagev1.GetIDResponse, error) {
	id, err := n.idOf(ctx, req.GetKey())
	if err != nil {
		return nil, err
	}
	return &storagev1.GetIDResponse{Id: id}, nil
}

func (n *node) idOf(ctx context.Context, key string) (id uint64, err error) {
	err = n.read(ctx, func() uint64 {
		e, _ := n.entry(key)
		id = e.ID
		return n.table.Pending(key)
	})
	return id, err
}

// List returns the entries under a prefix, one page at a time.
func (n *node) List(ctx context.Context, req *storagev1.ListRequest) (*storagev1.ListResponse, error) {
	limit := int(req.GetPageSize())
	switch {
	case limit < 0:
		return nil, connect.Errorf(connect.CodeInvalidArgument, "invalid page size %d: it must not be negative; 0 means %d", limit, defaultPage)
	case limit == 0:
		limit = defaultPage
	}
	limit = min(limit, maxPage)
	after, err := afterToken(req.GetPrefix(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	var entries []table.Entry
	var asOf uint64
	err = n.read(ctx, func() uint64 {
		entries = entries[:0]
		for e := range n.table.Scan(req.GetPrefix(), after, req.GetReverse()) {
			if isExpired(&e) {
				continue
			}
			if entries = append(entries, e); len(entries) > limit {
				break
			}
		}
		asOf = n.table.LastID()
		return n.provisional()
	})
	if err != nil {
		return nil, err
	}
	res := &storagev1.ListResponse{AsOf: asOf}
	size := 0
	for i := range entries {
		e := entries[i].Proto()
		size += framed(proto.Size(e))
		if i == limit || size > maxPageBytes && i > 0 {
			res.NextPageToken = tokenAfter(entries[i-1].Key)
			break
		}
		res.Entries = append(res.Entries, e)
	}
	return res, nil
}

// provisional returns the id of the last write if it is provisional, or 0. The caller must hold
// n.mu.
func (n *node) provisional() uint64 {
	if last := n.table.LastID(); last != n.table.CommittedID() {
		return last
	}
	return 0
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

// Status describes the storage.
func (n *node) Status(context.Context, *storagev1.StatusRequest) (*storagev1.StatusResponse, error) {
	n.mu.Lock()
	u, failure := n.table.Usage(), n.failure
	n.mu.Unlock()
	res := &storagev1.StatusResponse{
		Durability: n.durability, Directory: n.directory,
		Keys: u.Keys, MaxKeys: n.limits.Keys, Bytes: u.Bytes, MaxBytes: n.limits.Bytes,
		LastId: u.LastID, DurableId: u.CommittedID, OldestId: u.Oldest,
	}
	if failure != nil {
		res.Failure = failure.Error()
	}
	return res, nil
}

// checkPrefix rejects prefixes that no key can have.
func checkPrefix(prefix string) error {
	if len(prefix) > maxKey {
		return overLimit(connect.CodeInvalidArgument, "", "key bytes", maxKey, uint64(len(prefix)),
			"invalid prefix: a key has at most %d bytes, but %.40q... has %d", maxKey, prefix, len(prefix))
	}
	if !utf8.ValidString(prefix) {
		return connect.Errorf(connect.CodeInvalidArgument, "invalid prefix: %.40q is not UTF-8", prefix)
	}
	return nil
}
