// Package logs filters log records by level: one for all records, and one for each part of the
// runtime, in the syntax of RAYLINK_LOG. Start with [Parse].
package logs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// PartKey is the key of the attribute that names the part which logged a record.
const PartKey = "part"

// The parts that have levels of their own.
const (
	Brain   = "brain"   // the registry, its leases and the gateway
	Host    = "host"    // nodes, creation, the listener
	Session = "session" // a host's session with Brain
	Tunnel  = "tunnel"  // connections between hosts
)

func parts() []string { return []string{Brain, Host, Session, Tunnel} }

// Levels are the lowest levels at which records are written.
type Levels struct {
	all   slog.Level
	parts map[string]slog.Level
}

// Parse parses levels, such as `info` or `warn,tunnel=debug`. If text has no level for all parts,
// theirs is standard.
func Parse(text string, standard slog.Level) (Levels, error) {
	l := Levels{all: standard, parts: make(map[string]slog.Level)}
	for entry := range strings.SplitSeq(text, ",") {
		part, word, named := strings.Cut(strings.TrimSpace(entry), "=")
		if !named {
			part, word = "", part
		}
		if part == "" && !named && word == "" && strings.TrimSpace(text) == "" {
			continue
		}
		level, ok := levelOf(word)
		switch {
		case !ok:
			return l, fmt.Errorf("%q is no level: there are debug, info, warn and error", word)
		case !named:
			l.all = level
		case !slices.Contains(parts(), part):
			return l, fmt.Errorf("%q is no part: there are %s", part, strings.Join(parts(), ", "))
		default:
			l.parts[part] = level
		}
	}
	return l, nil
}

func levelOf(word string) (slog.Level, bool) {
	switch strings.ToLower(word) {
	case "debug":
		return slog.LevelDebug, true
	case "info":
		return slog.LevelInfo, true
	case "warn":
		return slog.LevelWarn, true
	case "error":
		return slog.LevelError, true
	}
	return 0, false
}

func (l Levels) of(part string) slog.Level {
	if level, ok := l.parts[part]; ok {
		return level
	}
	return l.all
}

// NewHandler returns a handler that writes records of the levels as text.
func NewHandler(w io.Writer, levels Levels) slog.Handler {
	return &handler{
		Handler: slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}),
		levels:  levels, level: levels.all,
	}
}

type handler struct {
	slog.Handler

	levels  Levels
	level   slog.Level
	grouped bool
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.Handler = h.Handler.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key == PartKey && !h.grouped {
			next.level = h.levels.of(a.Value.String())
		}
	}
	return &next
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	next := *h
	next.Handler, next.grouped = h.Handler.WithGroup(name), h.grouped || name != ""
	return &next
}

// maxHeld bounds the records that a [Late] buffers, in bytes.
const maxHeld = 64 << 10

// Late is a writer to a file that is opened after the first records: it buffers up to 64 KiB of
// them.
type Late struct {
	mu   sync.Mutex // guards all below
	held []byte
	to   io.Writer
	over bool
}

// Write implements io.Writer.
func (l *Late) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.over:
	case l.to != nil:
		return l.to.Write(p)
	case len(l.held)+len(p) <= maxHeld:
		l.held = append(l.held, p...)
	}
	return len(p), nil
}

// Open writes the buffered records, and all further ones, to w.
func (l *Late) Open(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = w.Write(l.held) // there is no other place to report it
	l.to, l.held = w, nil
}

// Close discards all further records.
func (l *Late) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over, l.to, l.held = true, nil, nil
}
