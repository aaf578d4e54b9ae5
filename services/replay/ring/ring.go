// Package ring is the memory-mapped ring of rows that a replay is made of.
//
// A ring is one file: named columns, each with a dtype and a shape, and room for a fixed number of rows. Any number of
// processes of one machine map it and write and read at the same time, without a lock that could be left behind:
//
//   - A row never comes out torn. Each row has a word that is odd while somebody writes it and that names the row's sequence
//     number once it is whole; a reader copies the row and then looks whether the word is still the same.
//   - A writer that dies in the middle of a row locks nothing. The row can't be read, and the next writer that comes around
//     takes it over, once the kernel says that the first one is gone. A writer that is merely slow is passed by.
//   - A range of rows can be read in place: while an [Area] is held, writers go around its rows. The area of a process that
//     died is nobody's, and writers take its rows back.
//   - A write that can't be done is refused at once, and leaves everything as it was.
//
// Create makes a ring; Open joins one. [Ring.Writer] and [Ring.Reader] give the heads that write and read it.
// The protocol between the processes is described in word.go (rows), area.go (safe areas) and participant.go (who is alive).
package ring

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"unsafe" //nolint:depguard // words of mapped memory, aligned by the geometry, are used atomically: see at

	"github.com/raylink/raylink/services/internal/mapfile"
)

// ID is a ring's own id. It stands in the file's header, so that whoever was told of a ring can see that he mapped that one.
type ID [16]byte

// String is the id in hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads what String wrote.
func ParseID(text string) (ID, error) {
	var id ID
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("%w: %q is not a ring's id", ErrFormat, text)
	}
	copy(id[:], raw)
	return id, nil
}

// Ring is a mapped ring. Its methods may be called from any goroutine.
type Ring struct {
	path string
	head header
	file *os.File

	// life is held for reading while the mappings are used, and for writing while they are made or given back.
	life   sync.RWMutex
	closed bool
	// all is the whole file, read-only; control is its first part (header, counters, areas, participants), writable.
	all, control []byte
	// rows is the whole file, writable; nil until the first write head needs it.
	rows []byte
	// self is this ring's participant, or none; see participant.go.
	self int
	// held counts the areas that are still to be released; they keep the mappings beyond Close.
	held atomic.Int64
}

// Create makes a ring in a new file and opens it. The file's space is reserved; where there is not enough, the error says how
// much there is. The file is the user's alone. It stays when the ring is closed: see [Ring.Remove].
func Create(path string, layout Layout) (*Ring, error) {
	head, err := newHeader(layout)
	if err != nil {
		return nil, fmt.Errorf("create ring %s: %w", path, err)
	}
	if _, err := rand.Read(head.id[:]); err != nil {
		return nil, fmt.Errorf("create ring %s: %w", path, err)
	}
	if head.boot, err = mapfile.BootID(); err != nil {
		return nil, fmt.Errorf("create ring %s: %w", path, err)
	}
	file, err := mapfile.Create(path, head.geometry.size)
	if err != nil {
		return nil, fmt.Errorf("create ring %s: %w", path, err)
	}
	r := &Ring{path: path, head: head, file: file, self: none}
	if err := r.found(); err != nil {
		return nil, fmt.Errorf("create ring %s: %w", path, errors.Join(err, r.unmapFile(), os.Remove(path)))
	}
	return r, nil
}

// found fills in a new file. The header comes last: who opens the file before that finds no ring.
func (r *Ring) found() error {
	if err := r.mapFile(); err != nil {
		return err
	}
	if err := r.enrol(ownerIndex); err != nil {
		return err
	}
	if _, err := r.file.WriteAt(r.head.encode(), 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	return nil
}

// Open joins the ring in a file. The file is checked before a byte of it is used, and refused with [ErrFormat] where it is
// not a whole ring; with [ErrWrongRing] where it is another one than the caller was told of; and with [ErrOtherMachine] where
// its memory can't be shared.
func Open(path string, id ID) (*Ring, error) {
	file, size, err := mapfile.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open ring %s: %w", path, err)
	}
	r := &Ring{path: path, file: file, self: none}
	if err := r.join(id, size); err != nil {
		return nil, fmt.Errorf("open ring %s: %w", path, errors.Join(err, r.unmapFile()))
	}
	return r, nil
}

func (r *Ring) join(id ID, size int64) error {
	start := make([]byte, min(size, maxHeader))
	if _, err := r.file.ReadAt(start, 0); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	head, err := parseHeader(start, size)
	if err != nil {
		return err
	}
	if head.id != id {
		return fmt.Errorf("%w: it holds %v, not %v", ErrWrongRing, head.id, id)
	}
	boot, err := mapfile.BootID()
	if err != nil {
		return err
	}
	if head.boot != boot {
		return ErrOtherMachine
	}
	r.head = head
	return r.mapFile()
}

// Path is the ring's file.
func (r *Ring) Path() string { return r.path }

// ID is the ring's id.
func (r *Ring) ID() ID { return r.head.id }

// Layout is what a row is, and how many there are. It must not be changed.
func (r *Ring) Layout() Layout { return r.head.layout }

// Close gives the ring back. Areas that are still held stay readable, and in the writers' way, until they are released;
// everything else that was made from this ring answers [ErrClosed].
func (r *Ring) Close() error {
	r.life.Lock()
	defer r.life.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.held.Load() > 0 {
		return nil
	}
	return r.unmapFile()
}

// End tells all processes that the ring is over: their heads answer [ErrEnded] from now on. It is for whoever created the ring.
func (r *Ring) End() error {
	if err := r.use(); err != nil {
		return err
	}
	defer r.done()
	r.counter(counterEnded).Store(1)
	return nil
}

// Remove deletes the ring's file. Who has it mapped keeps it.
func (r *Ring) Remove() error {
	if err := os.Remove(r.path); err != nil {
		return fmt.Errorf("remove ring: %w", err)
	}
	return nil
}

// Orphaned says whether the process that created the ring is gone, or has closed it.
func (r *Ring) Orphaned() (bool, error) {
	if err := r.use(); err != nil {
		return false, err
	}
	defer r.done()
	alive, err := r.alive(ownerIndex)
	return !alive, err
}

// Stats counts what happened to a ring, in all processes.
type Stats struct {
	// Capacity is how many rows there is room for.
	Capacity uint64
	// Written is how many rows were written since the beginning.
	Written uint64
	// Readable is how many rows can be read now: no more than the capacity, less those that are being written.
	Readable uint64
	// Held is how many rows writers go around now because areas are held.
	Held uint64
	// Areas is how many areas are held.
	Areas int
	// Skipped is how often a writer went around a row: it was held, or somebody else was writing it.
	Skipped uint64
	// Refused is how many writes were refused.
	Refused uint64
	// TakenOver is how many rows were taken over from writers that had died.
	TakenOver uint64
}

// Stats looks at every row; it is for people and tests, not for each step of a loop.
func (r *Ring) Stats() (Stats, error) {
	if err := r.use(); err != nil {
		return Stats{}, err
	}
	defer r.done()
	head, skipped := r.counter(counterHead).Load(), r.counter(counterSkipped).Load()
	s := Stats{
		Capacity:  r.head.layout.Capacity,
		Written:   head - min(skipped, head),
		Skipped:   skipped,
		Refused:   r.counter(counterRefused).Load(),
		TakenOver: r.counter(counterTakenOver).Load(),
	}
	for slot := range r.head.layout.Capacity {
		if word(r.wordAt(r.all, slot).Load()).readable() {
			s.Readable++
		}
	}
	s.Areas = bits.OnesCount64(r.counter(counterActive).Load())
	s.Held = r.heldRows()
	return s, nil
}

// use begins a use of the mappings; done ends it.
func (r *Ring) use() error {
	r.life.RLock()
	if r.closed {
		r.life.RUnlock()
		return ErrClosed
	}
	return nil
}

func (r *Ring) done() { r.life.RUnlock() }

// useAsParticipant is use for those who leave traces.
func (r *Ring) useAsParticipant() error {
	if err := r.use(); err != nil {
		return err
	}
	if r.self != none {
		return nil
	}
	r.done()
	if err := r.participate(); err != nil {
		return err
	}
	return r.use() // closed again, perhaps; but never again without a participant
}

// ended says whether the ring's creator called End.
func (r *Ring) ended() bool { return r.counter(counterEnded).Load() != 0 }

// counter is one of the ring's counters; each has a cache line of its own.
func (r *Ring) counter(c counter) *atomic.Uint64 {
	return at(r.control, r.head.geometry.counters+uint64(c)*cacheLine)
}

// at is the 64-bit word at an offset of a mapping. Offsets come from the geometry, which keeps them aligned and inside.
func at(mapping []byte, offset uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&mapping[offset])) //nolint:gosec // see above
}
