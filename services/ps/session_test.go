package ps

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// counting is a log handler that counts warnings.
type counting struct {
	slog.Handler

	warnings atomic.Int64
}

func (h *counting) Enabled(context.Context, slog.Level) bool { return true }

func (h *counting) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		h.warnings.Add(1)
	}
	return nil
}

func TestRepeatedOfficerFailureIsLoggedOnce(t *testing.T) {
	s := newServer(t, nil)
	log := &counting{Handler: slog.DiscardHandler}
	s.captain.log = slog.New(log)
	o := &slowOfficer{officer: s.officer(filepath.Join(t.TempDir(), "remote"), "remote"), release: make(chan struct{})}
	close(o.release)
	o.fails.Store(4)
	s.enlist("remote", o, o.officer)
	pushed(t, s.client(""), "w", "one")
	eventually(t, func() bool { return o.store.Last("w") == 1 })
	require.Equal(t, int64(5), o.stores.Load())
	require.Equal(t, int64(1), log.warnings.Load())
}
