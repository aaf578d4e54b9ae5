package ring

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// A participant is a mapping of the ring that writes or holds areas. It has an index, which stands in the words of the rows
// that it is writing and in its areas, and for as long as it lives the kernel keeps a lock for it: on one byte of the file, by
// its open file description. Whoever finds its traces asks for that lock. If nobody has it, the participant is gone, and can't
// write any more: the kernel gives the lock back only after the last thread has ended and the last mapping is gone. Unlike a
// process id, this can't be mistaken for a later process, and holds across containers with process ids of their own.
//
// An index is given out again after its holder has died. Its next holder first puts its traces away.

const (
	// maxParticipants is bounded by the byte that a row's word has for them.
	maxParticipants = none
	// ownerIndex is kept for the ring's creator, so that others can see whether he is there.
	ownerIndex = 0
)

// participantState is a participant's process id, or 0 where the index was given back in good order.
func (r *Ring) participantState(index int) *atomic.Uint64 {
	return at(r.control, r.participantOffset(index))
}

func (r *Ring) participantOffset(index int) uint64 {
	return r.head.geometry.participants + uint64(index)*participantSize //nolint:gosec // 0 to 254
}

// participate makes the ring a participant, if it is none yet.
func (r *Ring) participate() error {
	r.life.Lock()
	defer r.life.Unlock()
	if r.closed {
		return ErrClosed
	}
	if r.self != none {
		return nil
	}
	for index := ownerIndex + 1; index < maxParticipants; index++ {
		switch err := r.enrol(index); {
		case err == nil:
			return nil
		case !errors.Is(err, mapfile.ErrLocked):
			return err
		}
	}
	return fmt.Errorf("%w: %d write or hold areas", ErrTooManyParticipants, maxParticipants-1)
}

// enrol takes an index, and puts away what its last holder may have left.
func (r *Ring) enrol(index int) error {
	if err := mapfile.Lock(r.file, r.participantOffset(index)); err != nil {
		return err
	}
	state := r.participantState(index)
	if state.Load() != 0 {
		if err := r.putAway(index); err != nil {
			return errors.Join(err, mapfile.Unlock(r.file, r.participantOffset(index)))
		}
	}
	state.Store(uint64(os.Getpid())) //nolint:gosec // positive
	r.self = index
	return nil
}

// leave gives the index back. Nothing is being written by it, and it holds no areas.
func (r *Ring) leave() error {
	if r.self == none {
		return nil
	}
	r.participantState(r.self).Store(0)
	index := r.self
	r.self = none
	return mapfile.Unlock(r.file, r.participantOffset(index))
}

// alive says whether a participant is there.
func (r *Ring) alive(index int) (bool, error) {
	if index == r.self {
		return true, nil
	}
	if index == none {
		return false, nil
	}
	return mapfile.Locked(r.file, r.participantOffset(index))
}

// dead is alive for those who must not go on where it is not certain.
func (r *Ring) dead(index int) bool {
	alive, err := r.alive(index)
	return err == nil && !alive
}

// putAway gives to nobody what a dead participant owned. The caller has its lock.
func (r *Ring) putAway(index int) error {
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
		r.wordAt(r.rows, slot).CompareAndSwap(uint64(w), uint64(writingWord(w.sequence(), none)))
	}
	return nil
}
