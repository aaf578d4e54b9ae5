package runtime

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRemovalsAreLoggedOncePerAbsence has two absences of Brain, and a host that ends in a third.
func TestRemovalsAreLoggedOncePerAbsence(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	var p pendingRemovals
	const waiting, removed = "level=WARN msg=\"records can't be removed now", "level=INFO msg=\"the records have been removed"
	for absence := range 2 {
		for range 50 {
			p.begin(log, "stopped", errors.New("no Brain"))
		}
		require.Equal(t, absence+1, strings.Count(text.String(), waiting))
		require.Equal(t, absence, strings.Count(text.String(), removed))
		for range 50 {
			p.end(log, true)
		}
		require.Equal(t, absence+1, strings.Count(text.String(), removed))
	}
	require.Equal(t, 2, strings.Count(text.String(), "requests=50"))
	p.begin(log, "stopped", errors.New("no Brain"))
	p.end(log, false)
	require.Equal(t, 3, strings.Count(text.String(), waiting))
	require.Equal(t, 2, strings.Count(text.String(), removed))
}
