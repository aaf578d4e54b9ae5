package ring

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// A participant is a mapping of the ring that writes rows or holds areas. Its index is part of the
// words of the rows that it is writing and of its areas' marks. While it lives, its open file
// description holds a lock on one byte of the file. A process that finds a mark of the participant
// queries that lock. If it is free, the participant is dead and can't write any more: the kernel
// releases the lock only after the last thread has ended and the last mapping is gone. Unlike a
// process id, the lock can't be confused with that of a later process, and it works across
// containers with separate process id namespaces.
//
// An index is reused after its holder died. The next holder first cleans up what is left of it.

const (
	// maxParticipants follows from the bits that a row's word has for an index.
	maxParticipants = noParticipant
	// ownerIndex is reserved for the ring's creator, so that others can see whether it is alive.
	ownerIndex = 0
)

// A participant's entry has its process id and seven counts of the rows that the participants with
// this index have written; their sum counts. They are theirs alone to change, so that writers of
// several processes do not compete for a cache line. The first count is shared by the heads of a
// process, each other one belongs to one of them: see seat.go.

// participantState holds the participant's process id, or 0 if the index is free or was released by
// a regular close.
func (r *Ring) participantState(index int) *atomic.Uint64 {
	return at(r.control, r.participantOffset(index))
}

// participantWritten counts the rows written. Count 0 is the shared one.
func (r *Ring) participantWritten(index, count int) *atomic.Uint64 {
	return at(r.control, r.participantOffset(index)+8+uint64(count)*8) //nolint:gosec // 0 to 6
}

// processID returns the id of a participant's process, or 0 if it has left the ring.
func (r *Ring) processID(index int) int {
	if index >= maxParticipants {
		return 0
	}
	return int(r.participantState(index).Load()) //nolint:gosec // a process id, for a message
}

// writtenRows returns the number of rows written by all participants.
func (r *Ring) writtenRows() uint64 {
	var n uint64
	for index := range min(r.counter(counterParticipants).Load(), maxParticipants) {
		for count := range 1 + seats {
			n += r.participantWritten(int(index), count).Load()
		}
	}
	return n
}

func (r *Ring) participantOffset(index int) uint64 {
	return r.head.geometry.participants + uint64(index)*participantSize //nolint:gosec // 0 to 4094
}

// register makes the ring a participant, if it is not one yet.
func (r *Ring) register() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return ErrClosed
	}
	if r.self != noParticipant {
		return nil
	}
	// Indices that look unused first: trying one costs a system call. The others are those of
	// participants that are alive, or that died.
	for _, unused := range []bool{true, false} {
		for index := ownerIndex + 1; index < maxParticipants; index++ {
			if unused != (r.participantState(index).Load() == 0) {
				continue
			}
			switch err := r.claimIndex(index); {
			case err == nil:
				return nil
			case !errors.Is(err, mapfile.ErrLocked):
				return err
			}
		}
	}
	return fmt.Errorf("%w: %d write or hold areas", ErrTooManyParticipants, maxParticipants-1)
}

// claimIndex locks an index, and cleans up after its last holder.
func (r *Ring) claimIndex(index int) error {
	if err := mapfile.Lock(r.file, r.participantOffset(index)); err != nil {
		return err
	}
	state := r.participantState(index)
	if state.Load() != 0 {
		if err := r.cleanUp(index); err != nil {
			return errors.Join(err, mapfile.Unlock(r.file, r.participantOffset(index)))
		}
	}
	raise(r.counter(counterParticipants), uint64(index)+1) //nolint:gosec // not negative
	state.Store(uint64(os.Getpid()))                       //nolint:gosec // positive
	r.self = index
	return nil
}

// unregister releases the index. The participant must not be writing a row or holding an area.
func (r *Ring) unregister() error {
	if r.self == noParticipant {
		return nil
	}
	r.participantState(r.self).Store(0)
	index := r.self
	r.self = noParticipant
	return mapfile.Unlock(r.file, r.participantOffset(index))
}

// alive reports whether a participant is alive.
func (r *Ring) alive(index int) (bool, error) {
	if index == noParticipant {
		return false, nil // also where this ring is no participant
	}
	if index == r.self {
		return true, nil
	}
	r.checks.Add(1)
	return mapfile.Locked(r.file, r.participantOffset(index))
}

// knownDead reports whether a participant is certainly dead: false if that can't be determined.
func (r *Ring) knownDead(index int) bool {
	alive, err := r.alive(index)
	return err == nil && !alive
}

// cleanUp releases the areas and disowns the rows of a dead participant. The caller holds its lock.
func (r *Ring) cleanUp(index int) error {
	for i := range maxAreas {
		if mark := areaMark(r.areaOwner(i).Load()); mark != 0 && mark.participant() == index {
			r.reclaim(i, mark)
		}
	}
	for slot := range r.head.layout.Capacity {
		w := word(r.wordAt(r.all, slot).Load())
		if w&writing == 0 || w.participant() != index {
			continue
		}
		if err := r.mapRows(); err != nil {
			return err
		}
		if r.wordAt(r.rows, slot).CompareAndSwap(uint64(w), uint64(w.disowned())) {
			r.blockFilled(slot >> blockShift).Add(^uint64(0))
		}
	}
	return nil
}
