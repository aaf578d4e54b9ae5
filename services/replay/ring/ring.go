// Package ring implements the memory-mapped ring of rows that a replay consists of.
//
// A ring is one file: named columns, each with a dtype and a shape, and room for a fixed number of
// rows. Any number of processes of one machine map the file and read and write it concurrently.
// They share no lock that a crashed process could leave behind:
//
//   - Reads are never torn. Each row has a word that is odd while the row is being written, and
//     that holds the row's sequence number once the row is complete. A reader copies the row, then
//     checks that the word has not changed.
//   - A writer that dies mid-row blocks no other. Its row is unreadable until the next writer that
//     reaches it takes it over, after the kernel confirmed the death. A writer that is merely slow
//     is skipped.
//   - A range of rows can be read in place: writers skip the rows of an [Area] while it is held.
//     When the holder dies, other processes reclaim its rows.
//   - A write for which there is no room waits until there is, and its error says which processes
//     are in the way; or it fails immediately, as the caller chooses.
//
// [Create] makes a ring and [Open] maps an existing one. [Ring.Writer] and [Ring.Reader] return the
// heads that write and read it. The protocol between processes is documented in word.go (rows),
// area.go (safe areas), participant.go (liveness) and block.go (summaries).
//
// # Costs
//
// A write allocates positions in runs of up to 256 rows or 1 MiB, and makes no system call. Held
// areas cost it nothing per row. Whether a holder is alive is asked only where it matters; see
// area.go.
//
// [ReadHead.Hold], [ReadHead.Newest] and [ReadHead.Sample] visit as many words as they return rows,
// in the usual case. Where few rows are readable, or where writers skipped many, they read two
// numbers for each block of 4096 rows, and visit the words of the blocks that can have the rows
// wanted. The distance of sequence numbers does not matter. [Ring.Stats] visits no words at all.
//
// # Counts
//
// Each participant counts the rows that it has published, a run at a time. [Stats.Written] is the
// sum, so it has no positions that a writer allocated and did not fill.
//
// # The file
//
// This is format version 2. It has room for 4,095 participants and 256 entries of areas: words have
// 12 bits for a participant instead of version 1's 8, there are summaries of blocks, entries of
// areas have the time when they were allocated, and those of participants the rows written. Files
// of version 1 are refused: a ring never outlives the boot that it was made in, so there is no need
// to convert them.
package ring

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe" //nolint:depguard // atomic access to aligned words of mapped memory: see at

	"github.com/raylink/raylink/services/internal/mapfile"
)

// ID identifies a ring. It is part of the file's header, so that a process can verify that the file
// it opened holds the ring it was referred to.
type ID [16]byte

// String returns the id in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID parses the result of [ID.String].
func ParseID(text string) (ID, error) {
	var id ID
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("%w: %q is not a ring id", ErrFormat, text)
	}
	copy(id[:], raw)
	return id, nil
}

// Ring is a mapped ring. It is safe for concurrent use.
type Ring struct {
	path string
	head header
	file *os.File

	// mu is held for reading while the mappings are in use, and for writing while they are created
	// or removed.
	mu sync.RWMutex
	// closed is set, under mu, before held is looked at: see use. unmapped is set under mu.
	closed   atomic.Bool
	unmapped bool
	// all maps the whole file read-only; control maps its first part (header, counters, areas,
	// participants) for writing.
	all, control []byte
	// rows maps the whole file for writing; nil until the first write head is created.
	rows []byte
	// self is the index of this ring's participant, or noParticipant; see participant.go.
	self int
	// sweepChecked is when this process last read the shared clock for a sweep, in Unix time.
	sweepChecked atomic.Int64
	// checks counts how often the kernel was asked whether a participant is alive.
	checks atomic.Uint64
	// run is the maximum number of positions that a writer allocates at once.
	run uint64
	// held counts the areas not yet released, and the heads that write in place and have no seat.
	// The mappings outlive Close until it drops to zero and no seat is busy.
	held  atomic.Int64
	seats [seats]seat
}

// Create makes a ring in a new file and opens it. The file is accessible to this user only, and all
// of its space is reserved up front: where space is short, the error says how much is available.
// Closing the ring keeps the file: see [Ring.Remove].
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
	r := &Ring{path: path, head: head, file: file, self: noParticipant, run: head.run()}
	if err := r.initialize(); err != nil {
		return nil, fmt.Errorf("create ring %s: %w", path, errors.Join(err, r.unmapFile(), os.Remove(path)))
	}
	return r, nil
}

// initialize fills in a new file. It writes the header last, so that a process that opens the file
// earlier finds no ring.
func (r *Ring) initialize() error {
	if err := r.mapFile(); err != nil {
		return err
	}
	if err := r.claimIndex(ownerIndex); err != nil {
		return err
	}
	if _, err := r.file.WriteAt(r.head.encode(), 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	return nil
}

// Open maps the ring in a file. It validates the file before using any of its contents: it returns
// [ErrFormat] if the file is not a complete ring, [ErrWrongRing] if it holds a ring with another
// id, and [ErrOtherMachine] if its memory can't be shared.
func Open(path string, id ID) (*Ring, error) {
	file, size, err := mapfile.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open ring %s: %w", path, err)
	}
	r := &Ring{path: path, file: file, self: noParticipant}
	if err := r.attach(id, size); err != nil {
		return nil, fmt.Errorf("open ring %s: %w", path, errors.Join(err, r.unmapFile()))
	}
	return r, nil
}

func (r *Ring) attach(id ID, size int64) error {
	if err := r.load(size); err != nil {
		return err
	}
	if r.head.id != id {
		return fmt.Errorf("%w: it holds %v, not %v", ErrWrongRing, r.head.id, id)
	}
	return r.mapFile()
}

// load reads the file's header, and checks that its memory can be shared.
func (r *Ring) load(size int64) error {
	start := make([]byte, min(size, maxHeader))
	if _, err := r.file.ReadAt(start, 0); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	head, err := parseHeader(start, size)
	if err != nil {
		return err
	}
	boot, err := mapfile.BootID()
	if err != nil {
		return err
	}
	if head.boot != boot {
		return ErrOtherMachine
	}
	r.head, r.run = head, head.run()
	return nil
}

// Path returns the name of the ring's file.
func (r *Ring) Path() string { return r.path }

// ID returns the ring's id.
func (r *Ring) ID() ID { return r.head.id }

// Size returns the size of the ring's file in bytes.
func (r *Ring) Size() uint64 { return r.head.geometry.size }

// Layout returns the columns and the capacity. It must not be modified.
func (r *Ring) Layout() Layout { return r.head.layout }

// Close unmaps the ring. Areas that are still held stay readable, and block writers, until they are
// released, and rows that are being written in place stay valid until they are written. Everything
// else that was made from this ring returns [ErrClosed] from then on. Further calls do nothing.
func (r *Ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Swap(true) {
		return nil
	}
	if err := r.orderSeats(); err != nil {
		return fmt.Errorf("close ring %s, which stays mapped: %w", r.path, err)
	}
	return r.unmapUnused()
}

// End marks the ring as ended for all processes: their heads return [ErrEnded] from then on. Only
// the ring's creator should call it.
func (r *Ring) End() error {
	if err := r.pin(); err != nil {
		return err
	}
	defer r.unpin()
	r.counter(counterEnded).Store(1)
	return nil
}

// Remove deletes the ring's file. Processes that have mapped it keep their mapping.
func (r *Ring) Remove() error {
	if err := os.Remove(r.path); err != nil {
		return fmt.Errorf("remove ring: %w", err)
	}
	return nil
}

// Orphaned reports whether the process that created the ring has exited or closed it.
func (r *Ring) Orphaned() (bool, error) {
	if err := r.pin(); err != nil {
		return false, err
	}
	defer r.unpin()
	alive, err := r.alive(ownerIndex)
	return !alive, err
}

// Stats counts events of a ring across all processes.
type Stats struct {
	// Capacity is the number of rows that the ring has room for.
	Capacity uint64
	// Written is the number of rows written since the ring was created. It does not have up to 256
	// of the last rows of a writer that was killed while it wrote.
	Written uint64
	// Readable is the number of rows that can be read now. It includes rows that are being
	// overwritten, and may include one row for each writer that was killed.
	Readable uint64
	// Held is the number of rows that writers skip now because areas hold them.
	Held uint64
	// Areas is the number of entries of the table of areas that are in use.
	Areas int
	// Skipped is how often a writer skipped a row because it was held or another writer was writing
	// it.
	Skipped uint64
	// Refused is the number of writes that failed for lack of room.
	Refused uint64
	// TakenOver is the number of rows taken over from writers that died.
	TakenOver uint64
}

// Stats collects statistics. It visits one number for each 4096 rows, and asks the kernel whether
// the holders of areas are alive.
func (r *Ring) Stats() (Stats, error) {
	if err := r.pin(); err != nil {
		return Stats{}, err
	}
	defer r.unpin()
	s := Stats{
		Capacity:  r.head.layout.Capacity,
		Written:   r.writtenRows(),
		Readable:  r.filledRows(),
		Skipped:   r.counter(counterSkipped).Load(),
		Refused:   r.counter(counterRefused).Load(),
		TakenOver: r.counter(counterTakenOver).Load(),
	}
	live := r.reclaimDead()
	for range live.all {
		s.Areas++
	}
	s.Held = r.heldBy(live)
	return s, nil
}

// pin keeps the mappings alive until unpin is called, or returns [ErrClosed].
func (r *Ring) pin() error {
	r.mu.RLock()
	if r.closed.Load() {
		r.mu.RUnlock()
		return ErrClosed
	}
	return nil
}

func (r *Ring) unpin() { r.mu.RUnlock() }

// pinAsParticipant is pin for operations that leave marks in the file: it registers the ring as a
// participant first.
func (r *Ring) pinAsParticipant() error {
	if err := r.pin(); err != nil {
		return err
	}
	if r.self != noParticipant {
		return nil
	}
	r.unpin()
	if err := r.register(); err != nil {
		return err
	}
	return r.pin() // may have been closed meanwhile, but stays a participant
}

// use keeps the mappings alive until letGo is called, or returns [ErrClosed]. Unlike pin it does
// not make Close wait. Only those call it that have a write head, so that neither the mappings nor
// the participant change meanwhile.
func (r *Ring) use() error {
	r.held.Add(1)
	if r.closed.Load() { // otherwise Close comes later, and sees the new number
		return errors.Join(ErrClosed, r.letGo())
	}
	return nil
}

// letGo ends what counts as held. It unmaps a closed ring if nothing else is.
func (r *Ring) letGo() error {
	if r.held.Add(-1) > 0 || !r.closed.Load() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unmapUnused()
}

// ended reports whether the ring's creator called End.
func (r *Ring) ended() bool { return r.counter(counterEnded).Load() != 0 }

// counter returns one of the ring's counters. Each has a cache line of its own.
func (r *Ring) counter(c counter) *atomic.Uint64 {
	return at(r.control, r.head.geometry.counters+uint64(c)*cacheLine)
}

// at returns the 64-bit word at an offset of a mapping. Offsets come from the geometry, which keeps
// them aligned and in bounds.
func at(mapping []byte, offset uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&mapping[offset])) //nolint:gosec // aligned and in bounds
}
