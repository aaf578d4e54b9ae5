// Package changelog is what a storage knows of the log that keeps its writes on disk. The log is in
// package writelog, which links Pebble; programs that only join a system do not. Package durable
// sets [Open].
package changelog

import "log/slog"

// Record is one write.
type Record struct {
	// ID is one higher than that of the record before.
	ID uint64
	// Change is the marshalled raylink.storage.v1.Change.
	Change []byte
}

// Log is an open log, as writelog.Log documents it.
type Log interface {
	Commit(records []Record, remove []uint64) error
	Sync() error
	Reopen(last uint64) error
	Last() uint64
	Close() error
}

// Options configures a log, as writelog.Options documents them.
type Options struct {
	Dir    string
	Sync   bool
	Logger *slog.Logger
}

// Open opens a log, and passes its records to restore. It is nil in programs that do not import
// package durable. It is set before main begins.
var Open func(o Options, restore func(Record) error) (Log, error) //nolint:gochecknoglobals // set by an import
