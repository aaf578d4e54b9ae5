package tunnel

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/invariants"
)

// possibleEvents are the events that the code can apply to an owner. They follow from where events
// are applied: only the read loop yields, only a caller that reads answers or leaves, and calls and
// ticks come at any time.
var possibleEvents = map[readOwner][]ownerEvent{
	ownerLoop:        {eventYielded, eventBegunAlone, eventBegun, eventStalled},
	ownerNone:        {eventBegunAlone, eventBegun, eventStalled},
	ownerCaller:      {eventBegunAlone, eventBegun, eventStalled, eventAnswered, eventLeft},
	ownerInterrupted: {eventBegunAlone, eventBegun, eventStalled, eventAnswered, eventLeft},
}

// checkOwnerTable checks that a table has a transition for every possible event and for no other,
// and that each keeps the promises of reading.
func checkOwnerTable(table *ownerTable) error {
	reads := func(o readOwner) bool { return o == ownerCaller || o == ownerInterrupted }
	for o := ownerLoop; o <= ownerInterrupted; o++ {
		possible := map[ownerEvent]bool{}
		for _, e := range possibleEvents[o] {
			possible[e] = true
		}
		for e := range ownerEvents {
			after := table[o][e]
			var wrong string
			switch {
			case possible[e] != (after != ownerInvalid):
				wrong = "a transition is there if and only if the event is possible"
			case after == ownerInvalid:
			case o == ownerLoop && e != eventYielded && after != ownerLoop, o == ownerLoop && e == eventYielded && after != ownerNone:
				wrong = "the loop reads until it yields"
			case o == ownerNone && e != eventBegunAlone && after != ownerLoop:
				wrong = "a connection that is not read gets its loop back"
			case o == ownerNone && e == eventBegunAlone && after != ownerCaller:
				wrong = "a caller reads if it is alone and the loop is parked"
			case reads(o) && e == eventLeft && after != ownerLoop, reads(o) && e == eventAnswered && after != ownerNone:
				wrong = "a caller that stops leaves the reading to the loop, or to none if no call is open"
			case reads(o) && e == eventStalled && after != ownerInterrupted:
				wrong = "a caller that keeps reading is interrupted"
			case reads(o) && e <= eventBegun && after != o:
				wrong = "a caller that reads is not replaced by a call that begins"
			}
			if wrong != "" {
				return fmt.Errorf("owner %v, event %v, then %v: %w", o, e, after, errors.New(wrong)) //nolint:err113 // for the test's output
			}
		}
	}
	return nil
}

func TestOwnerTable(t *testing.T) {
	require.NoError(t, checkOwnerTable(&nextOwner))
}

// TestOwnerTableMissesNothing shows that the check notices each transition that is removed, added
// or changed.
func TestOwnerTableMissesNothing(t *testing.T) {
	for o := ownerLoop; o <= ownerInterrupted; o++ {
		for e := range ownerEvents {
			for after := ownerInvalid; after <= ownerInterrupted; after++ {
				table := nextOwner
				if table[o][e] == after {
					continue
				}
				table[o][e] = after
				require.Error(t, checkOwnerTable(&table), "owner %v, event %v, changed to %v", o, e, after)
			}
		}
	}
}

// TestImpossibleEventPanics: under invariants, an event that is not in the table is a bug.
func TestImpossibleEventPanics(t *testing.T) {
	l := &readLoop{}
	l.owner = ownerNone
	if !invariants.Enabled {
		require.False(t, l.applyOwnerEvent(eventLeft))
		require.Equal(t, ownerNone, l.owner)
		return
	}
	require.PanicsWithValue(t, "tunnel: left, but the owner of the reading is none", func() { l.applyOwnerEvent(eventLeft) })
	require.Panics(t, l.auditOwner, "no goroutine may read")
	l.owner, l.readingFor = ownerLoop, &Call{}
	require.Panics(t, l.auditOwner, "the loop is the owner, but a caller reads")
	l.owner = ownerCaller
	require.NotPanics(t, l.auditOwner)
}
