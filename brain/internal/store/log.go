package store

import (
	"fmt"
	"log/slog"
)

// logger receives Pebble's messages. Fatal ones fail the store instead of ending the process: the
// registry may be embedded in a user's process, and what it has in memory can still be read.
type logger struct {
	store *Store
	log   *slog.Logger
}

// Infof implements [pebble.Logger].
func (l logger) Infof(format string, args ...any) {
	l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

// Errorf implements [pebble.Logger].
func (l logger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf implements [pebble.Logger]. Pebble expects it not to return; the code after it in Pebble
// only returns an error, or nil if a commit has failed.
func (l logger) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.log.Error("pebble: " + text)
	l.store.fail(fmt.Errorf("%s", text))
}
