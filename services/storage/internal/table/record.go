package table

import (
	"math"
	"slices"
	"sync"
	"unsafe" //nolint:depguard // a record of several parts is one allocation: see record
)

// MaxKey is the maximum length of a key in bytes.
const MaxKey = math.MaxUint16

// record is the head of one write in memory. The key's bytes and those of the value's data follow
// it in the same allocation, which has no pointers: the garbage collector does not scan it, and a
// lookup reads one place. Only newRecord makes records, and they must not be copied.
//
// But for its flags a record is immutable, so that snapshots, the history and the index can share
// it. Strings of it share its memory, and keep it alive.
type record struct {
	id uint64
	// bits is the number or truth value, or the length of the data.
	bits    uint64
	expires int64
	// words is the size of the allocation in units of eight bytes.
	words  uint32
	keyLen uint16
	kind   Kind
	flags  flags
}

// flags say what a record is needed for. Snapshots do not read them.
type flags uint8

const (
	// expired: the key was removed because its time was over.
	expired flags = 1 << iota
	// superseded: a later write of the key is committed, or this one removed it. The state does not
	// need the record.
	superseded
	// dropped: the history has dropped the record.
	dropped
)

const (
	wordBytes   = 8
	headerBytes = int(unsafe.Sizeof(record{}))
	// expiryBytes is the memory that the index of expiries takes for a record: a pointer, in nodes
	// that are half full after ascending inserts and two thirds full after random ones.
	expiryBytes = 16
	// ringBytes is the memory that the ring takes for a change: between one and two pointers.
	ringBytes = 12
)

// newRecord copies the key and the value. The record's id and flags are the caller's to set before
// it is shared.
func newRecord[K string | []byte](key K, v parsed, expires int64) *record {
	size := v.size()
	words := (headerBytes + len(key) + size + wordBytes - 1) / wordBytes
	memory := make([]uint64, words)                                // words, because that aligns it
	r := (*record)(unsafe.Pointer(unsafe.SliceData(memory)))       //nolint:gosec // the head fits, and has no pointers
	r.words, r.keyLen = uint32(allocated(words)), uint16(len(key)) //nolint:gosec // far below 32 GiB, and at most MaxKey
	r.kind, r.bits, r.expires = v.kind, v.bits, expires
	if v.kind.hasData() {
		r.bits = uint64(size) //nolint:gosec // not negative
	}
	tail := unsafe.Slice(r.tail(), len(key)+size) //nolint:gosec // what words has room for
	n := copy(tail, key)
	n += copy(tail[n:], v.data)
	copy(tail[n:], v.raw)
	return r
}

// hasData reports whether values of a kind have data instead of bits.
func (k Kind) hasData() bool { return k >= String }

// stored reports whether there is a record, and not that of a removal.
func (r *record) stored() bool { return r != nil && r.kind != None }

// tail returns the address of the key, which has at least one byte.
func (r *record) tail() *byte {
	return (*byte)(unsafe.Add(unsafe.Pointer(r), headerBytes)) //nolint:gosec // it is in the allocation
}

func (r *record) key() string {
	return unsafe.String(r.tail(), int(r.keyLen)) //nolint:gosec // newRecord has written it, and it is immutable
}

func (r *record) value() Value {
	if !r.kind.hasData() {
		return Value{bits: r.bits, kind: r.kind}
	}
	all := unsafe.String(r.tail(), int(r.keyLen)+int(r.bits)) //nolint:gosec // newRecord has written it, and it is immutable
	return Value{data: all[r.keyLen:], kind: r.kind}
}

func (r *record) entry() Entry {
	return Entry{Key: r.key(), Value: r.value(), ID: r.id, Expires: r.expires}
}

func (r *record) change() Change { return Change{Entry: r.entry(), Expired: r.flags&expired != 0} }

// bytes is the memory that the record takes as a current entry, beside its slot.
func (r *record) bytes() uint64 {
	size := wordBytes * uint64(r.words)
	if r.expires != 0 {
		size += expiryBytes
	}
	return size
}

// historyBytes is the memory that the record takes beside the entries while it is in the history.
func (r *record) historyBytes() uint64 {
	if r.flags&superseded == 0 {
		return ringBytes
	}
	return ringBytes + wordBytes*uint64(r.words)
}

const (
	// smallWords is the size up to which the allocator has classes of sizes. Above, it allocates
	// whole pages.
	smallWords = 32 << 10 / wordBytes
	pageWords  = 8 << 10 / wordBytes
)

// classes returns the sizes of the allocator's classes in words, ascending.
var classes = sync.OnceValue(func() []int { //nolint:gochecknoglobals // they do not change
	var all []int
	for words := 1; words <= smallWords; words = all[len(all)-1] + 1 {
		all = append(all, cap(slices.Grow([]uint64(nil), words)))
	}
	return all
})

// allocated returns how many words the allocator gives for some.
func allocated(words int) int {
	if words > smallWords {
		return (words + pageWords - 1) / pageWords * pageWords
	}
	all := classes()
	i, _ := slices.BinarySearch(all, words)
	return all[i]
}
