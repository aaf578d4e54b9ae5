package saved

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/raylink/raylink/services/internal/mapfile"
	"github.com/raylink/raylink/services/replay/internal/table"
)

// Source is a table that a [Log] saves. Config is stored with it.
type Source struct {
	Name   string
	Config []byte
	Table  *table.Table
}

// Log keeps the state of tables in a file. Its methods must not be called concurrently; the tables
// may be used meanwhile, and are locked for short times only.
//
// Each table has the state of one time. What [Log.Save] costs depends on what has changed. The file
// grows with each change. Once it has grown enough, Save also writes a new file, in parts, which
// then replaces it: first all items that there are, and meanwhile what changes. The process may be
// killed at any time: the file has the state of a commit, never parts of a later one. That does not
// protect against power loss.
type Log struct {
	path    string
	owner   []byte
	sources []Source
	// create makes an empty file.
	create func(path string) (file, error)

	out output
	// base is the size that the file had when it was made.
	base int64
	// buf is encoded and not yet written.
	buf []byte
	// begun means that something has changed since the last commit. metas are the states of tables
	// that were collected last.
	begun  bool
	metas  []table.Meta
	states []table.State
	// together is how many states are collected at once, least how many at least, and most how many
	// at most.
	together, least, most int
	// flushSize is how much is written at once, about.
	flushSize int
	// rewriteSize is the least size of a file that is written anew, and rewriteTime how long a call
	// of Save works on a new file, about.
	rewriteSize int64
	rewriteTime time.Duration
	// next is a new file that is being written, or nil.
	next *rewrite
}

// file is an [os.File].
type file interface {
	WriteAt(b []byte, offset int64) (int, error)
	Truncate(size int64) error
	Close() error
}

// output is a file, and where its next record goes.
type output struct {
	file file
	end  int64
}

// rewrite is a new file that is being written.
type rewrite struct {
	out output
	// index is that of the table whose items are next, from the slot from.
	index int
	from  uint32
	// tables are those whose items it has.
	tables []*table.Table
}

const (
	// together is how many states are collected at once at first, with the table's lock. Where a
	// table has more, twice as many are collected the next time, up to mostTogether, which takes
	// some milliseconds. So calls that change items at the same time do not change them faster than
	// they are collected, though Save has to wait for the lock each time.
	together, mostTogether = 2048, 1 << 16
	// flushSize is how much is written at once, about.
	flushSize = 1 << 20
	// collectTime is how long a call of Save collects changes of all tables, if there are always
	// more; it has some of each. Only then the items of a commit are not all as they were at one
	// time. It bounds their age: see [Log.Save].
	collectTime = 200 * time.Millisecond
)

// Create makes a file with all that the tables have, in place of the one that may be there, and
// returns its log. The owner identifies what the items' rows belong to.
func Create(path string, owner []byte, sources []Source) (*Log, error) {
	l := newLog(path, owner, sources)
	return l, l.start()
}

// Resume goes on with a file that was read, whose tables are the sources, in the same order.
func Resume(path string, content *Content, sources []Source) (*Log, error) {
	// What a killed process left of a new file.
	if err := os.Remove(temporary(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err //nolint:wrapcheck // complete
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err //nolint:wrapcheck // complete
	}
	if err := f.Truncate(content.End); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l := newLog(path, content.Owner, sources)
	// As though it had grown by half: how large it was at first is not known.
	l.out, l.base = output{file: f, end: content.End}, content.End/2
	return l, nil
}

func newLog(path string, owner []byte, sources []Source) *Log {
	for _, s := range sources {
		s.Table.Track()
	}
	return &Log{
		path: path, owner: slices.Clone(owner), sources: sources, create: createFile, rewriteSize: 4 << 20, rewriteTime: 100 * time.Millisecond,
		states: make([]table.State, together), metas: make([]table.Meta, len(sources)),
		together: together, least: together, most: mostTogether, flushSize: flushSize,
	}
}

func createFile(path string) (file, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

// temporary is the name of a new file until it is complete.
func temporary(path string) string { return path + ".new" }

func (l *Log) temporary() string { return temporary(l.path) }

// start makes the first file.
func (l *Log) start() error {
	p, err := l.Prepare(l.tables())
	if err != nil {
		return err
	}
	return p.Commit()
}

// tables are those of the sources.
func (l *Log) tables() []*table.Table {
	tables := make([]*table.Table, len(l.sources))
	for i, s := range l.sources {
		tables[i] = s.Table
	}
	return tables
}

// Replacement is a new file that is complete, but has not replaced that of its [Log]. It must be
// ended by Commit or Abort, and the log must not be used before.
type Replacement struct {
	log   *Log
	metas []table.Meta
}

// Prepare writes a new file with the state of other tables, in the order of the sources. They are
// tables that the sources are going to adopt, or the sources themselves.
func (l *Log) Prepare(tables []*table.Table) (_ *Replacement, err error) {
	if err := l.abandonRewrite(); err != nil {
		return nil, err
	}
	if err := l.beginRewrite(); err != nil {
		return nil, l.withSpace(err, tables)
	}
	defer func() {
		if err != nil {
			err = l.withSpace(errors.Join(err, l.abandonRewrite()), tables)
		}
	}()
	l.next.tables = tables
	for l.next.index < len(l.sources) {
		if err := l.listSome(); err != nil {
			return nil, err
		}
	}
	p := &Replacement{log: l, metas: make([]table.Meta, len(tables))}
	for i, t := range tables {
		p.metas[i] = t.Meta()
	}
	if err := l.next.out.write(AppendCommit(nil, p.metas)); err != nil {
		return nil, fmt.Errorf("save the items in %s: %w", l.temporary(), err)
	}
	return p, nil
}

// Commit replaces the file by the new one. After an error it has not.
func (p *Replacement) Commit() error {
	if err := p.log.finishRewrite(); err != nil {
		return errors.Join(err, p.log.abandonRewrite())
	}
	// What had changed before is in the new file, or of no table any more.
	p.log.metas, p.log.buf, p.log.begun = p.metas, p.log.buf[:0], false
	return nil
}

// Abort removes the new file. It does nothing after Commit.
func (p *Replacement) Abort() error { return p.log.abandonRewrite() }

// withSpace adds to an error that is a lack of space how large a file of the tables is.
func (l *Log) withSpace(err error, tables []*table.Table) error {
	sized := *l
	sized.create = func(string) (file, error) { return measured{}, nil }
	sized.next, sized.states = nil, make([]table.State, together)
	if sized.beginRewrite() != nil {
		return err
	}
	for sized.next.tables = tables; sized.next.index < len(l.sources); {
		if sized.listSome() != nil {
			return err
		}
	}
	return mapfile.WithSpace(err, l.path, uint64(sized.next.out.end)+maxCommit*uint64(len(tables)+1)) //nolint:gosec // not negative
}

// maxCommit bounds what a commit needs for a table.
const maxCommit = 256

// measured is a file that keeps nothing, and counts as written.
type measured struct{}

func (measured) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (measured) Truncate(int64) error                   { return nil }
func (measured) Close() error                           { return nil }

// Save writes what has changed since the last call, if anything has. After an error, what has
// changed is written by the next call that succeeds: until then the file has an earlier state.
//
// Unless the disk or the processor keeps it waiting, a call takes up to 200 ms for the changes, and
// 100 ms for a new file. So the state of a file on which Save is called four times a second is at
// most 600 ms old.
func (l *Log) Save() error {
	if err := l.flush(); err != nil {
		return err
	}
	begin := time.Now()
	l.together = max(l.together/2, l.least)
	for i := range l.sources {
		for full := true; full; full = full && time.Since(begin) < collectTime {
			var err error
			if full, err = l.collect(i); err != nil {
				return err
			}
		}
	}
	listed := l.next != nil && l.next.index == len(l.sources)
	if l.begun || listed {
		l.buf, l.begun = AppendCommit(l.buf, l.metas), false
	}
	if err := l.flush(); err != nil {
		return err
	}
	return l.rewrite(begin)
}

// collect encodes some changes of a table, and reports whether there may be more.
func (l *Log) collect(index int) (full bool, err error) {
	if l.together > len(l.states) {
		l.states = make([]table.State, l.together)
	}
	now := time.Now()
	n, meta := l.sources[index].Table.ChangesAndMeta(l.states[:l.together])
	if full = n == l.together; full {
		l.together = min(2*l.together, l.most)
	}
	l.begun = l.begun || n > 0 || meta != l.metas[index]
	l.buf, l.metas[index] = AppendItems(l.buf, index, l.states[:n], now), meta
	if len(l.buf) >= l.flushSize {
		err = l.flush()
	}
	return full, err
}

// Close closes the file.
func (l *Log) Close() error {
	err := l.abandonRewrite()
	if l.out.file == nil {
		return err // not even the first file was made
	}
	return errors.Join(err, l.out.file.Close())
}

// Size returns the size of the file.
func (l *Log) Size() int64 { return l.out.end }

// flush writes what is encoded, also to a new file that is being written.
func (l *Log) flush() error {
	if len(l.buf) == 0 {
		return nil
	}
	if err := l.out.write(l.buf); err != nil {
		return fmt.Errorf("save the items in %s: %w", l.path, err)
	}
	var err error
	if l.next != nil {
		if err = l.next.out.write(l.buf); err != nil {
			err = errors.Join(fmt.Errorf("save the items in %s: %w", l.temporary(), err), l.abandonRewrite())
		}
	}
	l.buf = l.buf[:0]
	return err
}

// write writes at the end. After an error the file has none of it, or a record that is incomplete.
func (o *output) write(b []byte) error {
	if _, err := o.file.WriteAt(b, o.end); err != nil {
		return errors.Join(err, o.file.Truncate(o.end))
	}
	o.end += int64(len(b))
	return nil
}

// rewrite begins, continues or completes a new file, after the commit of a call that began at a
// time.
func (l *Log) rewrite(called time.Time) error {
	if l.next == nil {
		if l.out.end < l.rewriteSize || l.out.end < 3*l.base {
			return nil
		}
		l.base = l.out.end // if that fails, it is tried again once the file has grown as much again
		if err := l.beginRewrite(); err != nil {
			return err
		}
	}
	if l.next.index == len(l.sources) { // the commit before has all of the items listed
		if err := l.finishRewrite(); err != nil {
			return errors.Join(err, l.abandonRewrite())
		}
		return nil
	}
	for begin := time.Now(); l.next.index < len(l.sources); {
		if err := l.listSome(); err != nil {
			return errors.Join(err, l.abandonRewrite())
		}
		if time.Since(begin) >= l.rewriteTime || time.Since(called) >= collectTime+l.rewriteTime {
			break
		}
	}
	return nil
}

func (l *Log) beginRewrite() error {
	f, err := l.create(l.temporary())
	if err != nil {
		return fmt.Errorf("save the items: %w", err)
	}
	l.next = &rewrite{out: output{file: f}, tables: l.tables()}
	b := AppendOwner(nil, l.owner)
	for i, s := range l.sources {
		b = AppendTable(b, i, s.Name, s.Config)
	}
	if err := l.next.out.write(b); err != nil {
		return errors.Join(fmt.Errorf("save the items in %s: %w", l.temporary(), err), l.abandonRewrite())
	}
	return nil
}

// listSome writes some items to the new file.
func (l *Log) listSome() error {
	next := l.next
	now := time.Now()
	n, from := next.tables[next.index].Items(next.from, l.states)
	if n > 0 {
		if err := next.out.write(AppendItems(nil, next.index, l.states[:n], now)); err != nil {
			return fmt.Errorf("save the items in %s: %w", l.temporary(), err)
		}
	}
	if next.from = from; n < len(l.states) {
		next.index, next.from = next.index+1, 0
	}
	return nil
}

// finishRewrite replaces the file by the new one.
func (l *Log) finishRewrite() error {
	if err := os.Rename(l.temporary(), l.path); err != nil {
		return fmt.Errorf("save the items: %w", err)
	}
	before := l.out
	l.out, l.next = l.next.out, nil
	l.base = l.out.end
	if before.file == nil {
		return nil
	}
	if err := before.file.Close(); err != nil {
		return fmt.Errorf("save the items: close the file before: %w", err)
	}
	return nil
}

// abandonRewrite removes a new file that is being written.
func (l *Log) abandonRewrite() error {
	if l.next == nil {
		return nil
	}
	err := l.next.out.file.Close()
	l.next = nil
	if removeErr := os.Remove(l.temporary()); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	return err
}
