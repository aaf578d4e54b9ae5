//go:build unguarded

package mailbox

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/invariants"
)

// The model notices a mailbox that lets a method lend the turn which it no longer has.
func TestCheckerNoticesATurnLentTwice(t *testing.T) {
	if invariants.Enabled {
		t.Skip("the books are checked at every step, and the first wrong one panics")
	}
	synctest.Test(t, func(t *testing.T) {
		err := tell(modelLimits, []step{{do: open}, {do: try}, {do: finish}, {do: suspendLate}})
		require.ErrorContains(t, err, "step 3, p0 lends a turn that it no longer has")
	})
}

// So do the books.
func TestBooksNoticeATurnLentTwice(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("needs the build tag invariants")
	}
	m := New(func() string { return "m" }, modelLimits)
	m.Open()
	var turn Turn
	require.True(t, m.TryTurn(&turn, nil))
	turn.Release()
	require.Panics(t, turn.Suspend)
}
