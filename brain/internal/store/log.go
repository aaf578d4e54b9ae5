package store

import (
	"fmt"
	"log/slog"
)

// logger takes Pebble's messages. The fatal ones fail the store rather than end the process: the
// registry may live in a user's process, and what it has in memory is still right to read.
type logger struct {
	store *Store
	log   *slog.Logger
}

// Infof implements pebble.Logger.
func (l logger) Infof(format string, args ...any) {
	l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l logger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger. Pebble expects it not to return; all that comes after it in
// Pebble's code is returning an error, or nil where a commit failed.
func (l logger) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.log.Error("pebble: " + text)
	l.store.fail(fmt.Errorf("%s", text))
}
