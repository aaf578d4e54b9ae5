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
// A record is one allocation of 32 bytes, its key and its value's data; the index takes about 28
// bytes more. [Table.Usage] counts what the allocator really gives. A snapshot takes one pointer
// for each of its entries, and keeps their records alive: that is not counted.
//
// The index does not shrink at once when keys are removed: what it takes for each can be used by
// the next new key, and counts until then. When three quarters of it are unused, it is built anew,
// which takes about 30 ms if it had a million keys.
//
// # Time
//
// Reading a key, and writing one that exists, finds it by its hash. Only a new or a removed key
// changes the order that Scan needs. A removed key stays in the index until its removal is
// committed. [Table.Restore] leaves the keys unordered, and [Table.Order], or the first Scan or
// Snapshot, sorts all of them at once.
package table

import (
	"fmt"
	"iter"
	"math"
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

	// index has the current record of each key. The record of a provisional removal is one too,
	// until it is committed.
	index *index
	// keys is the number of entries, and bytes the memory that their records take.
	keys, bytes uint64
	// expiries has the records of entries that expire, by time.
	expiries *btree.BTreeG[*record]
	history  history

	lastID, committedID uint64
	// pending are the provisional writes in the order of their ids.
	pending []pendingWrite

	// removed are the ids of records that are not needed any more, in the order in which they
	// became unneeded: the removal of a key comes after the writes that it has removed. The first
	// given of them were returned together with provisional writes; the next Apply returns others.
	removed []uint64
	given   int
	// handed says with which writes they were returned, oldest first.
	handed []handed
}

// pendingWrite is a provisional write.
type pendingWrite struct {
	now *record
	// before is the record that it replaced, or nil. It can be that of a provisional removal.
	before *record
}

// handed is the number of ids that Apply has returned with writes up to last.
type handed struct {
	last uint64
	ids  int
}

// New returns an empty table.
func New(limits Limits) *Table {
	const degree = 32 // nodes of 512 bytes
	return &Table{
		limits:   limits,
		index:    newIndex(math.MaxUint32),
		expiries: btree.NewG(degree, sooner),
		history:  history{maxLen: int(min(limits.History, 1<<40)), maxBytes: limits.HistoryBytes},
	}
}

// sooner orders records by the time of expiry.
func sooner(a, b *record) bool {
	return a.expires < b.expires || a.expires == b.expires && a.id < b.id
}

// Get returns the entry of a key, whether its time is over or not.
func (t *Table) Get(key string) (Entry, bool) {
	_, r := t.index.find(key)
	if !r.stored() {
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
	if _, r := t.index.find(key); r != nil && r.id > t.committedID {
		return r.id
	}
	return 0
}

// Apply makes provisional writes in order, all or none. It appends their changes, in the order of
// the writes, and the ids of records that the log need not keep (see the package's documentation),
// to slices that the caller may use again; nil is possible. The removal of a missing key writes
// nothing, and its change has the id 0. It returns a LimitError if a limit would be exceeded after
// the last of the writes.
func (t *Table) Apply(changes []Change, removed []uint64, writes []Write) ([]Change, []uint64, error) {
	var one [1]parsed
	values := one[:0]
	for i := range writes {
		v, err := t.check(&writes[i])
		if err != nil {
			return changes, removed, err
		}
		values = append(values, v)
	}
	lastID, keys, bytes, length := t.lastID, t.keys, t.takes(), len(changes)
	for i := range writes {
		w := &writes[i]
		at, before := t.index.find(w.Key)
		if !before.stored() && w.Value == nil {
			changes = append(changes, Change{Entry: Entry{Key: w.Key}, Expired: w.Expired})
			continue
		}
		expires := w.Expires
		if w.Value == nil {
			expires = 0
		}
		r := newRecord(w.Key, values[i], expires)
		if w.Value == nil {
			r.flags = superseded
			if w.Expired {
				r.flags |= expired
			}
		}
		t.lastID++
		r.id = t.lastID
		t.replace(before, r)
		if before == nil {
			t.index.add(at, r)
		} else {
			t.index.set(at.slot, r)
		}
		t.pending = append(t.pending, pendingWrite{before: before, now: r})
		changes = append(changes, r.change())
	}
	if err := t.exceeded(keys, bytes); err != nil {
		err.Key = writes[len(writes)-1].Key
		t.Rollback(lastID)
		clear(changes[length:])
		return changes[:length], removed, err
	}
	if waiting := t.removed[t.given:]; t.lastID > lastID && len(waiting) > 0 {
		n := min(len(waiting), max(maxRemoved, 2*len(writes)))
		removed = append(removed, waiting[:n]...)
		t.given += n
		t.handed = append(t.handed, handed{last: t.lastID, ids: n})
	}
	return changes, removed, nil
}

// check returns the value of a write.
func (t *Table) check(w *Write) (parsed, error) {
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

// takes returns the memory that the entries take.
func (t *Table) takes() uint64 { return t.bytes + t.index.bytes() }

// exceeded returns an error if a limit is exceeded, and further than by keys and bytes.
func (t *Table) exceeded(keys, bytes uint64) *LimitError {
	if t.keys > t.limits.Keys && t.keys > keys {
		return &LimitError{Bound: KeysBound, Limit: t.limits.Keys, Needs: t.keys}
	}
	if now := t.takes(); now > t.limits.Bytes && now > bytes {
		return &LimitError{Bound: BytesBound, Limit: t.limits.Bytes, Needs: now}
	}
	return nil
}

// replace counts a key's record instead of another one. Either can be nil, or that of a removal.
func (t *Table) replace(before, now *record) {
	if before.stored() {
		t.keys--
		t.bytes -= before.bytes()
		if before.expires != 0 {
			t.expiries.Delete(before)
		}
	}
	if now.stored() {
		t.keys++
		t.bytes += now.bytes()
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
		t.replace(w.now, w.before)
		at, _ := t.index.find(w.now.key())
		if w.before.stored() || w.before != nil && w.before.id > t.committedID {
			t.index.set(at.slot, w.before)
		} else {
			t.index.remove(at.slot)
		}
		t.lastID--
	}
	for len(t.handed) > 0 {
		last := t.handed[len(t.handed)-1]
		if last.last <= toID {
			break
		}
		t.given -= last.ids
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
		if !w.now.stored() {
			if at, current := t.index.find(w.now.key()); current == w.now {
				t.index.remove(at.slot)
			}
		}
	}
	t.pending = slices.Delete(t.pending, 0, n)
	if len(t.pending) == 0 && cap(t.pending) > maxIdle {
		t.pending = nil
	}
	done, ids := 0, 0
	for done < len(t.handed) && t.handed[done].last <= id {
		ids += t.handed[done].ids
		done++
	}
	t.handed = slices.Delete(t.handed, 0, done)
	t.given -= ids
	if t.removed = slices.Delete(t.removed, 0, ids); len(t.removed) == 0 && cap(t.removed) > maxIdle {
		t.removed = nil
	}
}

// maxIdle is the number of provisional writes, and of ids, whose memory is kept for the next ones.
const maxIdle = 4096

// settle adds a committed write to the history, and finds the records that are not needed any more.
func (t *Table) settle(before, now *record) {
	if before.stored() {
		t.history.supersede(before)
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

// Restore adds a committed write from the log: its id, and what AppendProto has encoded. They come
// in the order of their ids, before the first Apply. A gap between their ids ends the history
// before it. The limits of keys, bytes and values do not matter. An error means that the change is
// not one that was written, and has changed nothing. The table keeps nothing of encoded.
//
// Restore does not keep the keys in order: see Order.
func (t *Table) Restore(id uint64, encoded []byte) error {
	if len(t.pending) > 0 {
		panic("table: restore after a provisional write")
	}
	c, err := decodeChange(encoded)
	switch {
	case err != nil:
		return fmt.Errorf("restore change %d of %.40q: %w", id, c.key, err)
	case c.id != id:
		return fmt.Errorf("restore change %d of %.40q: the record has the id %d", id, c.key, c.id)
	case id <= t.lastID:
		return fmt.Errorf("restore change %d of %.40q: it follows change %d", id, c.key, t.lastID)
	}
	for id != t.lastID+1 && t.history.length > 0 {
		t.release(t.history.pop())
	}
	r := newRecord(c.key, c.value, c.expires)
	r.id = id
	if !r.stored() {
		r.flags = superseded
		if c.expired {
			r.flags |= expired
		}
	}
	t.lastID, t.committedID = id, id
	t.index.unorder()
	at, before := t.index.find(r.key())
	t.replace(before, r)
	switch {
	case before == nil && r.stored():
		t.index.add(at, r)
	case before != nil && r.stored():
		t.index.set(at.slot, r)
	case before != nil:
		t.index.remove(at.slot)
	}
	t.settle(before, r)
	return nil
}

// Skip makes the ids of later writes start above id, if they don't already: lower ones have been
// given to writes that are lost. That ends the history, as a gap does. It follows the last Restore,
// and precedes the first Apply.
func (t *Table) Skip(id uint64) {
	if len(t.pending) > 0 {
		panic("table: skip ids after a provisional write")
	}
	if id <= t.lastID {
		return
	}
	for t.history.length > 0 {
		t.release(t.history.pop())
	}
	t.lastID, t.committedID = id, id
}

// Order sorts the keys after Restore, which takes about 0.2 s for a million of them. Otherwise the
// first Scan or Snapshot does it.
func (t *Table) Order() { t.index.order() }

// Scan iterates over the entries whose keys have a prefix, sorted by key, downwards if reverse is
// set. Unless after is empty, it starts behind that key, which need not exist. The table must not
// be written to meanwhile.
func (t *Table) Scan(prefix, after string, reverse bool) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		t.index.order()
		slots := t.index.up(max(prefix, after))
		if reverse {
			end, bounded := successor(prefix)
			if after != "" && (!bounded || after < end) {
				end = after
			}
			slots = t.index.down(end)
		}
		for slot := range slots {
			r := t.index.at(slot)
			key := r.key()
			if !strings.HasPrefix(key, prefix) {
				return
			}
			if r.stored() && key != after && !yield(r.entry()) {
				return
			}
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

// Selector selects the entry of a key, or those whose keys have a prefix.
type Selector struct {
	Text   string
	Prefix bool
}

// Snapshot is selected entries of one moment. It can be read while the table is written to, by any
// number of goroutines.
type Snapshot struct {
	records []*record
}

// Snapshot returns the selected entries as they are, with the provisional writes. It takes about
// 20 ms for a million entries.
func (t *Table) Snapshot(selectors ...Selector) *Snapshot {
	s := new(Snapshot)
	for _, selector := range selectors {
		if !selector.Prefix {
			if _, r := t.index.find(selector.Text); r != nil {
				s.records = append(s.records, r)
			}
			continue
		}
		t.index.order()
		end, bounded := successor(selector.Text)
		records := t.index.collect(selector.Text, end, bounded)
		if s.records == nil {
			s.records = records
		} else {
			s.records = append(s.records, records...)
		}
	}
	return s
}

// Entries iterates over the entries: in the order of the selectors, and those with one prefix in
// the order of their keys.
func (s *Snapshot) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, r := range s.records {
			if r.stored() && !yield(r.entry()) {
				return
			}
		}
	}
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
		Keys: t.keys, Bytes: t.takes(), HistoryBytes: t.history.bytes,
		LastID: t.lastID, CommittedID: t.committedID, Oldest: t.oldest(),
	}
}
