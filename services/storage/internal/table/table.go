// Package table is the state of a storage node in memory: the entries in the order of their keys,
// the latest changes, and what is needed to undo writes that are not durable yet. It is not safe
// for concurrent use, except for what a [Snapshot] says; it does no I/O and starts no goroutines.
//
// # Writes
//
// [Table.Apply] gives each write the next id, without gaps. The writes are provisional: they are
// visible to Get and Scan at once, but Since does not return them, and until [Table.Committed] says
// that they are durable, [Table.Rollback] can undo them, newest first. The ids of undone writes are
// given again. [Table.Pending] reports whether a key's last write, or removal, is provisional.
//
// # The log and its removed records
//
// The caller keeps one record for each write ([Change.AppendProto]). Apply also returns the ids of
// records that are not needed any more: neither the current write of a key, nor in the history. The
// caller removes them together with the commit of the writes that Apply returned at the same time.
// They never depend on these writes, nor on any other that is provisional: if that commit fails,
// they may be gone or not, and the next Apply after the Rollback returns them again. Provided that
// commits become durable in their order, the state that Restore builds from the records that remain
// always equals the committed state. The record of the last committed write is never removed, so
// that ids go on after it.
//
// # Memory
//
// A record takes 48 bytes and, in one allocation, its key and its value's data; the index takes
// about 16 bytes. [Table.Usage] counts what the allocator really gives. A snapshot that is kept
// while the table is written to takes memory that is not counted.
package table

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/google/btree"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// maxRemoved bounds how many ids of removed records Apply returns with a few writes, so that a
// history that is shortened does not make a commit of any size.
const maxRemoved = 4096

// Limits bound a table. All of them must be set.
type Limits struct {
	// Keys and Bytes are the maximum number of entries, and of the memory that they take. A table
	// that exceeds them after Restore can be written to if that does not exceed them further.
	Keys, Bytes uint64
	// History and HistoryBytes are the maximum number of changes in the history, and of the memory
	// that they take beside the entries. The last change is always in the history.
	History, HistoryBytes uint64
	// MaxValue is the maximum size of an encoded storagev1.Value in bytes.
	MaxValue uint64
}

// Bound is the name of a limit.
type Bound string

// The limits that a write can exceed.
const (
	KeysBound  Bound = "keys"
	BytesBound Bound = "bytes"
	ValueBound Bound = "bytes of a value"
)

// LimitError means that writes would exceed a limit. They have changed nothing.
type LimitError struct {
	Bound Bound
	// Key is the key of the value, or of the last of the writes.
	Key string
	// Limit is the limit, and Needs what the writes would need: of a value its size, otherwise the
	// sum over all entries.
	Limit, Needs uint64
}

func (e *LimitError) Error() string {
	if e.Bound == ValueBound {
		return fmt.Sprintf("store %q: the value has %d bytes, and the limit is %d", e.Key, e.Needs, e.Limit)
	}
	return fmt.Sprintf("store %q: the storage's limit is %d %s, and it would need %d", e.Key, e.Limit, e.Bound, e.Needs)
}

// Write is one write of a key. The key must be UTF-8, with 1 to MaxKey bytes, and strings in the
// value must be UTF-8 too.
type Write struct {
	Key string
	// Value is copied. Nil removes the key.
	Value *storagev1.Value
	// Expires is the Unix time in nanoseconds when the entry is to be removed; 0 means never.
	Expires int64
	// Expired marks a removal because the entry's time is over.
	Expired bool
}

// Usage is what a table has and takes.
type Usage struct {
	Keys uint64
	// Bytes is the memory that the entries take, and HistoryBytes what the history takes beside.
	Bytes, HistoryBytes uint64
	// LastID is the id of the last write, and CommittedID that of the last committed one.
	LastID, CommittedID uint64
	// Oldest is the lowest id that Since accepts; CommittedID is the highest.
	Oldest uint64
}

// Table is the state of a storage.
type Table struct {
	limits Limits

	index *btree.BTreeG[*record]
	// expiries has the records of index that expire, by time.
	expiries *btree.BTreeG[*record]
	bytes    uint64
	history  history

	lastID, committedID uint64
	// pending are the provisional writes in the order of their ids.
	pending []pendingWrite
	// removals has the id of the last provisional removal of each key. If there is an entry, its
	// write is later.
	removals map[string]uint64

	// removed are the ids that the next Apply returns, in the order in which they became unneeded:
	// the removal of a key comes after the writes that it has removed.
	removed []uint64
	// handed are the ids that were returned together with provisional writes, oldest first.
	handed []handed

	// probe is the argument of searches. Passing the address of a field allocates nothing.
	probe record
}

// pendingWrite is a provisional write.
type pendingWrite struct {
	now *record
	// before is the record that it replaced, or nil.
	before *record
	// removal is what the table's removals had for the key, if this write is a removal.
	removal uint64
}

// handed are ids that Apply has returned with writes up to last.
type handed struct {
	last uint64
	ids  []uint64
}

// New returns an empty table.
func New(limits Limits) *Table {
	return &Table{
		limits:   limits,
		index:    newIndex(func(a, b *record) bool { return a.key() < b.key() }),
		expiries: newIndex(sooner),
		history:  history{maxLen: int(min(limits.History, 1<<40)), maxBytes: limits.HistoryBytes},
		removals: make(map[string]uint64),
	}
}

// newIndex returns an empty index. google/btree's nodes, other than tidwall/btree's, keep nothing
// alive that was replaced in the half that they lost in a split.
func newIndex(less func(a, b *record) bool) *btree.BTreeG[*record] {
	const degree = 32 // nodes of 512 bytes
	return btree.NewG(degree, less)
}

// sooner orders records by the time of expiry.
func sooner(a, b *record) bool {
	return a.expires < b.expires || a.expires == b.expires && a.id < b.id
}

// find returns the record of a key, or nil.
func (t *Table) find(key string) *record {
	if key == "" || len(key) > MaxKey {
		return nil
	}
	t.probe.data, t.probe.keyLen = key, uint16(len(key)) //nolint:gosec // at most MaxKey
	r, _ := t.index.Get(&t.probe)
	t.probe.data = "" // it belongs to the caller
	t.probe.keyLen = 0
	return r
}

// Get returns the entry of a key, whether its time is over or not.
func (t *Table) Get(key string) (Entry, bool) {
	r := t.find(key)
	if r == nil {
		return Entry{}, false
	}
	return r.entry(), true
}

// LastID returns the id of the last write; 0 if there was none.
func (t *Table) LastID() uint64 { return t.lastID }

// CommittedID returns the id of the last committed write; 0 if there was none.
func (t *Table) CommittedID() uint64 { return t.committedID }

// Pending returns the id of a key's last write or removal if it is provisional; 0 if it is not.
func (t *Table) Pending(key string) uint64 {
	if len(t.pending) == 0 {
		return 0
	}
	if r := t.find(key); r != nil {
		if r.id > t.committedID {
			return r.id
		}
		return 0
	}
	return t.removals[key]
}

// Apply makes provisional writes in order, all or none. The changes have the order of the writes;
// the removal of a missing key writes nothing, and its change has the id 0. removed are the ids of
// records that the log need not keep (see the package's documentation). It returns a LimitError if
// a limit would be exceeded after the last of the writes.
func (t *Table) Apply(writes []Write) (changes []Change, removed []uint64, err error) {
	var one [1]parsed
	values := one[:0]
	for _, w := range writes {
		v, err := t.check(w)
		if err != nil {
			return nil, nil, err
		}
		values = append(values, v)
	}
	lastID, keys, bytes := t.lastID, uint64(t.index.Len()), t.bytes //nolint:gosec // not negative
	changes = make([]Change, len(writes))
	for i, w := range writes {
		before := t.find(w.Key)
		if before == nil && w.Value == nil {
			changes[i] = Change{Entry: Entry{Key: w.Key}, Expired: w.Expired}
			continue
		}
		r := newRecord(before, w.Key, values[i], w.Expires)
		if w.Value == nil {
			r.expires, r.flags = 0, r.flags|superseded
			if w.Expired {
				r.flags |= expired
			}
		}
		t.lastID++
		r.id = t.lastID
		p := pendingWrite{before: before, now: r}
		if r.kind == None {
			p.removal = t.removals[w.Key]
			t.removals[r.key()] = r.id
		}
		t.replace(before, r)
		t.pending = append(t.pending, p)
		changes[i] = r.change()
	}
	if err := t.exceeded(keys, bytes); err != nil {
		err.Key = writes[len(writes)-1].Key
		t.Rollback(lastID)
		return nil, nil, err
	}
	if t.lastID > lastID && len(t.removed) > 0 {
		n := min(len(t.removed), max(maxRemoved, 2*len(writes)))
		removed, t.removed = t.removed[:n:n], t.removed[n:]
		if len(t.removed) == 0 {
			t.removed = nil // removed is the caller's to read
		}
		t.handed = append(t.handed, handed{last: t.lastID, ids: removed})
	}
	return changes, removed, nil
}

// check returns the value of a write.
func (t *Table) check(w Write) (parsed, error) {
	if w.Key == "" || len(w.Key) > MaxKey {
		return parsed{}, fmt.Errorf("store %.40q: a key has 1 to %d bytes, but this one %d", w.Key, MaxKey, len(w.Key))
	}
	if w.Value == nil {
		return parsed{}, nil
	}
	v, err := parse(w.Value)
	if err != nil {
		return parsed{}, fmt.Errorf("store %q: %w", w.Key, err)
	}
	if size := v.encodedSize(); size > t.limits.MaxValue {
		return parsed{}, &LimitError{Bound: ValueBound, Key: w.Key, Limit: t.limits.MaxValue, Needs: size}
	}
	return v, nil
}

// exceeded returns an error if a limit is exceeded, and further than by keys and bytes.
func (t *Table) exceeded(keys, bytes uint64) *LimitError {
	if n := uint64(t.index.Len()); n > t.limits.Keys && n > keys { //nolint:gosec // not negative
		return &LimitError{Bound: KeysBound, Limit: t.limits.Keys, Needs: n}
	}
	if t.bytes > t.limits.Bytes && t.bytes > bytes {
		return &LimitError{Bound: BytesBound, Limit: t.limits.Bytes, Needs: t.bytes}
	}
	return nil
}

// replace makes a record that of its key instead of another one. Either can be nil, and now can be
// the removal of the key.
func (t *Table) replace(before, now *record) {
	stored := now != nil && now.kind != None
	if before != nil {
		t.bytes -= before.bytes()
		if before.expires != 0 {
			t.expiries.Delete(before)
		}
		if !stored {
			t.index.Delete(before)
		}
	}
	if stored {
		t.bytes += now.bytes()
		t.index.ReplaceOrInsert(now)
		if now.expires != 0 {
			t.expiries.ReplaceOrInsert(now)
		}
	}
}

// Rollback undoes the writes with ids above an id, newest first. They must be provisional. The next
// Apply returns the ids of removed records again that were returned together with these writes.
func (t *Table) Rollback(toID uint64) {
	if toID < t.committedID {
		panic(fmt.Sprintf("table: roll back to %d, but writes up to %d are committed", toID, t.committedID))
	}
	for t.lastID > toID {
		last := len(t.pending) - 1
		w := t.pending[last]
		t.pending[last] = pendingWrite{}
		t.pending = t.pending[:last]
		if w.now.kind != None {
			t.replace(w.now, w.before)
		} else {
			t.replace(nil, w.before)
			if key := w.now.key(); w.removal > t.committedID {
				t.removals[key] = w.removal
			} else {
				delete(t.removals, key)
			}
		}
		t.lastID--
	}
	for len(t.handed) > 0 {
		last := t.handed[len(t.handed)-1]
		if last.last <= toID {
			break
		}
		t.removed = append(last.ids, t.removed...)
		t.handed = t.handed[:len(t.handed)-1]
	}
}

// Committed declares that the writes up to an id are durable: they cannot be undone any more, and
// Since returns them.
func (t *Table) Committed(id uint64) {
	if id > t.lastID {
		panic(fmt.Sprintf("table: commit up to %d, but the last write is %d", id, t.lastID))
	}
	if id <= t.committedID {
		return
	}
	n := int(id - t.committedID) //nolint:gosec // the number of writes in memory
	for i := range n {
		w := t.pending[i]
		t.committedID++
		t.settle(w.before, w.now)
		if w.now.kind == None {
			if key := w.now.key(); t.removals[key] == w.now.id {
				delete(t.removals, key)
			}
		}
	}
	t.pending = slices.Delete(t.pending, 0, n)
	if len(t.pending) == 0 && cap(t.pending) > maxIdle {
		t.pending, t.removals = nil, make(map[string]uint64)
	}
	done := 0
	for done < len(t.handed) && t.handed[done].last <= id {
		done++
	}
	t.handed = slices.Delete(t.handed, 0, done)
}

// maxIdle is the number of provisional writes whose memory is kept for the next ones.
const maxIdle = 4096

// settle adds a committed write to the history, and finds the records that are not needed any more.
func (t *Table) settle(before, now *record) {
	if before != nil {
		t.history.supersede(before, now.flags&borrows != 0)
		t.release(before)
	}
	t.history.push(now)
	for t.history.full() {
		t.release(t.history.pop())
	}
}

// release lets the log remove a record if neither the state nor the history needs it.
func (t *Table) release(r *record) {
	if r.flags&superseded != 0 && r.flags&dropped != 0 {
		t.removed = append(t.removed, r.id)
	}
}

// Restore adds a committed write from the log. They come in the order of their ids, before the
// first Apply. A gap between their ids ends the history before it. The limits of keys, bytes and
// values do not matter. An error means that the change is not one that was written, and has changed
// nothing.
func (t *Table) Restore(change *storagev1.Change) error {
	if len(t.pending) > 0 {
		panic("table: restore after a provisional write")
	}
	id, key := change.GetId(), change.GetKey()
	value, expires, err := parseChange(change)
	switch {
	case err != nil:
		return fmt.Errorf("restore change %d of %.40q: %w", id, key, err)
	case id <= t.lastID:
		return fmt.Errorf("restore change %d of %.40q: it follows change %d", id, key, t.lastID)
	}
	for id != t.lastID+1 && t.history.length > 0 {
		t.release(t.history.pop())
	}
	before := t.find(key)
	r := newRecord(before, key, value, expires)
	r.id = id
	if value.kind == None {
		r.flags |= superseded
		if change.GetExpired() {
			r.flags |= expired
		}
	}
	t.lastID, t.committedID = id, id
	t.replace(before, r)
	t.settle(before, r)
	return nil
}

// parseChange returns the parts of a change that was written.
func parseChange(change *storagev1.Change) (value parsed, expires int64, err error) {
	if n := len(change.GetKey()); n == 0 || n > MaxKey {
		return parsed{}, 0, fmt.Errorf("a key has 1 to %d bytes, but this one %d", MaxKey, n)
	}
	if change.GetValue() == nil {
		if change.GetExpires() != nil {
			return parsed{}, 0, errors.New("a removal has no time of expiry")
		}
		return parsed{}, 0, nil
	}
	if change.GetExpired() {
		return parsed{}, 0, errors.New("an expired entry has no value")
	}
	if expires, err = unixNano(change.GetExpires()); err != nil {
		return parsed{}, 0, err
	}
	value, err = parse(change.GetValue())
	return value, expires, err
}

// Scan iterates over the entries whose keys have a prefix, sorted by key, downwards if reverse is
// set. Unless after is empty, it starts behind that key, which need not exist. The table must not
// be written to meanwhile.
func (t *Table) Scan(prefix, after string, reverse bool) iter.Seq[Entry] {
	return scan(t.index, prefix, after, reverse)
}

func scan(index *btree.BTreeG[*record], prefix, after string, reverse bool) iter.Seq[Entry] {
	if reverse {
		return down(index, prefix, after)
	}
	return func(yield func(Entry) bool) {
		index.AscendGreaterOrEqual(at(max(prefix, after)), func(r *record) bool {
			if after != "" && r.key() <= after {
				return true
			}
			return strings.HasPrefix(r.key(), prefix) && yield(r.entry())
		})
	}
}

// at returns a record to search for a key, or for the end of the keys below a longer one.
func at(key string) *record {
	key = key[:min(len(key), MaxKey)]
	return &record{data: key, keyLen: uint16(len(key))} //nolint:gosec // at most MaxKey
}

func down(index *btree.BTreeG[*record], prefix, after string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		visit := func(r *record) bool {
			switch {
			case after != "" && r.key() >= after:
				return true
			case strings.HasPrefix(r.key(), prefix):
				return yield(r.entry())
			}
			return r.key() > prefix // above the keys with the prefix: the end of them
		}
		end, bounded := successor(prefix)
		switch {
		case after != "" && (!bounded || after < end):
			index.DescendLessOrEqual(at(after), visit)
		case bounded:
			index.DescendLessOrEqual(at(end), visit)
		default:
			index.Descend(visit)
		}
	}
}

// successor returns the first string above all that have a prefix; false if there is none.
func successor(prefix string) (string, bool) {
	for n := len(prefix); n > 0; n-- {
		if prefix[n-1] != 0xff {
			return prefix[:n-1] + string([]byte{prefix[n-1] + 1}), true
		}
	}
	return "", false
}

// Snapshot is the entries of one moment. It can be read from one other goroutine at a time while
// the table is written to. Later writes copy the parts of the index that it shares.
type Snapshot struct {
	index *btree.BTreeG[*record]
	id    uint64
}

// Snapshot returns the entries as they are, with the provisional writes. It takes constant time.
func (t *Table) Snapshot() *Snapshot { return &Snapshot{index: t.index.Clone(), id: t.lastID} }

// ID returns the id of the last write in the snapshot.
func (s *Snapshot) ID() uint64 { return s.id }

// Get returns the entry of a key.
func (s *Snapshot) Get(key string) (Entry, bool) {
	if key == "" || len(key) > MaxKey {
		return Entry{}, false
	}
	r, ok := s.index.Get(at(key))
	if !ok {
		return Entry{}, false
	}
	return r.entry(), true
}

// Scan is the Scan of the table at the moment of the snapshot.
func (s *Snapshot) Scan(prefix, after string, reverse bool) iter.Seq[Entry] {
	return scan(s.index, prefix, after, reverse)
}

// Since returns the committed changes with ids above an id, at most limit of the oldest. It returns
// false if some of them are not in the history any more, or if the id is above CommittedID.
func (t *Table) Since(id uint64, limit int) ([]Change, bool) {
	if id > t.committedID || id < t.oldest() {
		return nil, false
	}
	from := int(id - t.oldest()) //nolint:gosec // at most the history's length
	changes := make([]Change, max(0, min(t.history.length-from, limit)))
	for i := range changes {
		changes[i] = t.history.at(from + i).change()
	}
	return changes, true
}

// oldest returns the lowest id that Since accepts.
func (t *Table) oldest() uint64 { return t.committedID - uint64(t.history.length) } //nolint:gosec // not negative

// NextExpiry returns the earliest time at which an entry expires; false if none does.
func (t *Table) NextExpiry() (int64, bool) {
	r, ok := t.expiries.Min()
	if !ok {
		return 0, false
	}
	return r.expires, true
}

// Expired returns the keys of at most limit entries whose time is not after now, earliest first.
func (t *Table) Expired(now int64, limit int) []string {
	var keys []string
	t.expiries.Ascend(func(r *record) bool {
		if len(keys) >= limit || r.expires > now {
			return false
		}
		keys = append(keys, r.key())
		return true
	})
	return keys
}

// Usage returns what the table has and takes.
func (t *Table) Usage() Usage {
	return Usage{
		Keys: uint64(t.index.Len()), Bytes: t.bytes, HistoryBytes: t.history.bytes, //nolint:gosec // not negative
		LastID: t.lastID, CommittedID: t.committedID, Oldest: t.oldest(),
	}
}
