// Package writelog keeps a storage's writes on disk: a log of records in the order of their ids, in
// Pebble.
//
// A record stays until it is removed, because it is neither the current write of a key nor within
// the history. [Log.Commit] appends records and removes others, all or nothing. What it has
// acknowledged survives the end of the process; a loss of power it survives at once if
// [Options.Sync] is set, and otherwise when [Log.Sync] has returned, which the log calls by itself
// within 100 ms.
//
// [Open] returns exactly the records that were committed and not removed, or an error that says
// what is damaged. Beside Pebble's checksums, each group's last record has the number of records
// and the sum of their ids, and a file says up to which id they must be there; see watermark.go.
//
// No id is given twice to writes that were acknowledged, even if a loss of power has taken the
// first: ids are reserved on disk ahead of their use, and what was reserved and may have been used
// is skipped; see [Log.Last].
//
// After a failure of the disk the log must be reopened; see [Log.Reopen].
package writelog

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"github.com/raylink/raylink/internal/dirlock"
)

const (
	// format is the version of the records' meaning. A directory with a newer one is refused;
	// migrations of older ones belong here.
	format = 1

	// syncInterval is the time between the beginnings of two syncs. What is committed while one
	// runs is on the disk after the next: within 100 ms, if a sync takes less than 50 ms.
	syncInterval = 50 * time.Millisecond

	// removeAtOnce is how many records are removed at a time: neighbours can be removed together.
	removeAtOnce = 1024

	// reserveAtOnce is how many ids are reserved ahead, with each sync. At 300,000 writes per
	// second they last for 50 s, so that no commit waits for a reservation unless the disk hangs.
	reserveAtOnce = 1 << 24
)

// Options configures a log.
type Options struct {
	// Dir is the directory. It is created if it does not exist, accessible to the user only.
	Dir string
	// FS is the file system of Dir. Nil means the operating system's.
	FS vfs.FS
	// Sync makes a commit wait until the disk has it. Otherwise it waits until the operating system
	// has it, which the disk has within 100 ms.
	Sync bool
	// Logger receives Pebble's messages. Not nil.
	Logger *slog.Logger

	// These are other values for tests.
	removeAtOnce  int
	reserveAtOnce uint64
	boot          string
}

// Log is an open directory. Commit, Reopen and Close are for one goroutine at a time; Sync is safe
// for concurrent use with all of them.
type Log struct {
	opts Options
	fs   vfs.FS
	boot string
	lock *pebble.Lock
	mark *watermark

	// commit guards what follows, and makes Close wait.
	commit    sync.Mutex
	tally     tally
	removable []uint64 // of earlier groups, to be removed with the next one

	// These are changed with commit and sync held.
	session *session // nil if the last Reopen failed
	err     error    // why session is nil
	closed  bool

	last atomic.Uint64 // the id of the last record
	// floor is the id above which later records have theirs; it can be above the last record's. It
	// is set before Open returns.
	floor uint64
	// reserved is the last id for which a record may be written without a reservation.
	reserved atomic.Uint64

	sync   sync.Mutex // serializes syncs; locked after commit
	synced uint64     // the last id that is known to be on the disk

	// dirty wakes the goroutine that syncs; stop ends it.
	dirty chan struct{}
	stop  chan struct{}
	done  chan struct{}
}

// Open opens or creates a directory, and calls replay for each record in the order of their ids. A
// record's Change is valid during the call. An error of replay ends Open, which returns it with the
// record's id. Errors that a caller may distinguish: [*InUseError], [*FormatError],
// [*DamagedError], [*FullError].
//
// The caller must Close the log.
func Open(opts Options, replay func(Record) error) (*Log, error) {
	l := &Log{opts: opts, fs: opts.FS, boot: opts.boot}
	if l.fs == nil {
		l.fs = vfs.Default
		l.boot = bootID()
	}
	if err := l.fs.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, failure(opts.Dir, "make", err)
	}
	lock, err := dirlock.Lock(l.fs, opts.Dir)
	var held *dirlock.HeldError
	switch {
	case errors.As(err, &held):
		return nil, &InUseError{Dir: opts.Dir, PID: held.PID, Err: err}
	case err != nil:
		return nil, failure(opts.Dir, "lock", err)
	}
	l.lock = lock
	if err := l.open(replay); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	l.dirty, l.stop, l.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go l.syncInBackground()
	return l, nil
}

func (l *Log) open(replay func(Record) error) (err error) {
	m, err := l.check()
	if err != nil {
		return err
	}
	s, err := l.newSession(m.required(l.boot) > 0)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	found, err := s.read(m.acknowledged(l.boot), replay)
	switch {
	case err != nil:
		return err
	case s.Err() != nil:
		return s.Err()
	case found.last < m.required(l.boot):
		return &DamagedError{Dir: l.opts.Dir, What: fmt.Sprintf(
			"the writes up to %d had been stored, only those up to %d are there", m.required(l.boot), found.last)}
	case found.all != found.stored:
		return &DamagedError{Dir: l.opts.Dir, What: fmt.Sprintf(
			"of the %d writes that had been stored, %d are there; the last one is %d", found.stored.count, found.all.count, found.last)}
	}
	if err := s.drop(found); err != nil {
		return err
	}
	if l.floor = m.lost(l.boot, found.last); l.floor > m.floor {
		l.opts.Logger.Warn("the machine has stopped before all writes were synced: those of the last moments may be lost, and their ids are skipped",
			slog.String("directory", l.opts.Dir), slog.Uint64("last", found.last), slog.Uint64("next", l.floor+1))
	}
	mark, err := openWatermark(l.fs, l.opts.Dir, m)
	if err != nil {
		return failure(l.opts.Dir, "open the watermark of", err)
	}
	// Pebble's Open has synced what it found.
	if err := l.start(s, mark, found.last, found.tally); err != nil {
		return errors.Join(err, mark.file.Close())
	}
	return nil
}

// start makes a session the current one, whose records are all on the disk.
func (l *Log) start(s *session, mark *watermark, last uint64, t tally) error {
	var err error
	for range mark.slots {
		err = errors.Join(err, mark.set(func(m *marks) {
			m.synced, m.written, m.boot = last, last, l.boot
			m.floor, m.reserved = l.floor, l.reservation(last)
		}))
	}
	var reserved uint64
	if err == nil {
		reserved, err = mark.sync()
	}
	if err != nil {
		return failure(l.opts.Dir, "write to", err)
	}
	s.disk.release()
	l.session, l.err, l.mark, l.tally = s, nil, mark, t
	l.last.Store(last)
	l.reserved.Store(reserved)
	l.synced = last
	return nil
}

// reservation returns the last id to be reserved when the last record is known. If a commit waits
// for the disk, the id of a record that can still be lost has not been given to any caller.
func (l *Log) reservation(last uint64) uint64 {
	last = max(last, l.floor)
	if l.opts.Sync {
		return last
	}
	return last + cmp.Or(l.opts.reserveAtOnce, reserveAtOnce)
}

// Last returns the last id that may have been given: the next record has the one above it. It is
// above that of the last record after a loss of power, when records may have been lost that others
// have seen.
func (l *Log) Last() uint64 { return max(l.last.Load(), l.floor) }

// check reads the watermark, or creates it in an empty directory, before Pebble changes anything.
func (l *Log) check() (marks, error) {
	dir := l.opts.Dir
	names, err := l.fs.List(dir)
	if err != nil {
		return marks{}, failure(dir, "list", err)
	}
	m, ok, err := readWatermark(l.fs, dir)
	if err != nil {
		return marks{}, err
	}
	if !ok {
		for _, name := range names {
			if strings.HasPrefix(name, "marker.") || strings.HasPrefix(name, "MANIFEST") || strings.HasPrefix(name, "OPTIONS") ||
				strings.HasSuffix(name, ".log") || strings.HasSuffix(name, ".sst") {
				return marks{}, &DamagedError{Dir: dir, What: describe(watermarkName, "is missing, and others of a storage are there")}
			}
		}
		m = marks{format: format, boot: l.boot}
		if err := createWatermark(l.fs, dir, m); err != nil {
			return marks{}, failure(dir, "write to", err)
		}
		return m, nil
	}
	if m.format > format {
		return marks{}, &FormatError{Dir: dir, Format: m.format, Known: format}
	}
	return m, l.checkMarkers(m)
}

// checkMarkers refuses files of a later Pebble with a clear error: Pebble reports only an unknown
// number. And it refuses a directory without a manifest, which Pebble takes for a new one.
func (l *Log) checkMarkers(m marks) error {
	dir := l.opts.Dir
	version, err := atomicfs.ReadMarker(l.fs, dir, "format-version")
	if err != nil {
		return &DamagedError{Dir: dir, What: describe("marker.format-version", "cannot be read"), Err: err}
	}
	if n := number(version); n > uint64(pebble.FormatNewest) {
		return &FormatError{Dir: dir, Format: n, Known: uint64(pebble.FormatNewest), Files: true}
	}
	manifest, err := atomicfs.ReadMarker(l.fs, dir, "manifest")
	if err != nil {
		return &DamagedError{Dir: dir, What: describe("marker.manifest", "cannot be read"), Err: err}
	}
	if m.required(l.boot) > 0 && manifest == "" {
		return &DamagedError{Dir: dir, What: describe("marker.manifest", "is missing")}
	}
	return nil
}

// Commit appends records and removes others, all or nothing. The ids of the records follow the last
// one; remove must not have the id of the last record, nor one that was removed before.
//
// Records are removed with a later group, when there are 1024 of them: the next Open may call
// replay for those that are left, and the caller must remove them again. They are removed in the
// order of the calls, or not at all.
//
// After an error the log fails until Reopen. A full disk is a [*FullError].
func (l *Log) Commit(records []Record, remove []uint64) error {
	l.commit.Lock()
	defer l.commit.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	last := l.Last()
	for i, r := range records {
		if r.ID != last+uint64(i)+1 {
			return fmt.Errorf("commit to the directory %s: the record after %d has the id %d", l.opts.Dir, last+uint64(i), r.ID)
		}
	}
	last += uint64(len(records))
	for _, id := range remove {
		if id == 0 || id >= last {
			return fmt.Errorf("commit to the directory %s: the record %d cannot be removed, the last one is %d", l.opts.Dir, id, last)
		}
	}
	if len(records) > 0 {
		if err := l.write(records); err != nil {
			return err
		}
	}
	// They go with a later group. If they went with this one and it failed halfway, a current write
	// of a key could be gone.
	l.removable = append(l.removable, remove...)
	return nil
}

// write commits records, and may remove those that earlier groups have left.
func (l *Log) write(records []Record) error {
	s, last, t := l.session, records[len(records)-1].ID, l.tally
	if err := l.reserve(last); err != nil {
		return err
	}
	for _, r := range records {
		t.add(r.ID)
	}
	var remove []uint64
	if len(l.removable) >= cmp.Or(l.opts.removeAtOnce, removeAtOnce) {
		remove = l.removable
	}
	for _, id := range remove {
		t.remove(id)
	}
	s.apply(func(batch *pebble.Batch) error {
		if err := removeRecords(batch, remove); err != nil {
			return err
		}
		for i, r := range records {
			if err := put(batch, r, i == len(records)-1, t); err != nil {
				return err
			}
		}
		return nil
	})
	if s.Err() == nil {
		if err := l.mark.set(func(m *marks) {
			m.written = last
			if l.opts.Sync {
				m.synced, m.reserved = last, last
			}
		}); err != nil {
			s.fail(err)
		}
	}
	if err := s.Err(); err != nil {
		return err
	}
	l.tally = t
	l.removable = l.removable[len(remove):]
	l.last.Store(last)
	select {
	case l.dirty <- struct{}{}:
	default:
	}
	return nil
}

// reserve reserves ids up to that of a record which is going to be written, unless they are. Most
// ids have been reserved by an earlier sync.
func (l *Log) reserve(last uint64) error {
	if l.opts.Sync || last <= l.reserved.Load() {
		return nil
	}
	l.sync.Lock()
	defer l.sync.Unlock()
	for range l.mark.slots {
		if err := l.mark.set(func(m *marks) { m.reserved = l.reservation(last) }); err != nil {
			l.session.fail(err)
			return l.session.Err()
		}
	}
	return l.syncMark(l.session)
}

// syncMark syncs the watermark, with l.sync held.
func (l *Log) syncMark(s *session) error {
	reserved, err := l.mark.sync()
	if err != nil {
		s.fail(err)
		return s.Err()
	}
	l.reserved.Store(reserved)
	return nil
}

// usable returns why the log cannot be used.
func (l *Log) usable() error {
	switch {
	case l.closed:
		return fmt.Errorf("the directory %s: %w", l.opts.Dir, errClosed)
	case l.session == nil:
		return l.err
	}
	return l.session.Err()
}

// Sync returns when everything that was committed before is on the disk. Calls share syncs.
func (l *Log) Sync() error {
	if l.opts.Sync {
		return nil
	}
	want := l.last.Load()
	l.sync.Lock()
	defer l.sync.Unlock()
	if l.synced >= want {
		return nil
	}
	if err := l.usable(); err != nil {
		return err
	}
	return l.syncNow()
}

// syncNow syncs with l.sync held.
func (l *Log) syncNow() error {
	s, last := l.session, l.last.Load()
	if !l.opts.Sync {
		s.disk.syncDirty()
		if err := s.Err(); err != nil {
			return err
		}
	}
	if err := l.mark.set(func(m *marks) {
		m.synced, m.reserved = max(m.synced, last), max(m.reserved, l.reservation(last))
	}); err != nil {
		s.fail(err)
		return s.Err()
	}
	if err := l.syncMark(s); err != nil {
		return err
	}
	l.synced = last
	return nil
}

// syncInBackground syncs once in an interval while there are new commits.
func (l *Log) syncInBackground() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.dirty:
		case <-l.stop:
			return
		}
		select {
		case <-timer.C:
		case <-l.stop:
			return
		}
		timer.Reset(syncInterval)
		l.sync.Lock()
		if l.synced < l.last.Load() && l.usable() == nil {
			_ = l.syncNow() // a failure is kept, and the next commit returns it
		}
		l.sync.Unlock()
	}
}

// Reopen repairs the log after a failed Commit. It closes and opens the directory again, removes
// what the failed group may have left, which are the records above last, and checks that the
// records up to last are there. last is the last id that was committed. After an error the log
// still fails, and Reopen may be called again.
//
// If the process ends instead, the next Open removes what the failed group has left. Only if the
// machine loses power before either, the failed group may be there, as a whole.
func (l *Log) Reopen(last uint64) error {
	l.commit.Lock()
	defer l.commit.Unlock()
	l.sync.Lock()
	defer l.sync.Unlock()
	if l.closed {
		return fmt.Errorf("the directory %s: %w", l.opts.Dir, errClosed)
	}
	if last != l.Last() {
		return fmt.Errorf("reopen the directory %s: the last write is %d, not %d", l.opts.Dir, l.Last(), last)
	}
	if l.session != nil {
		l.session.abandon()
		l.session = nil
	}
	l.err = l.reopen(l.last.Load())
	return l.err
}

func (l *Log) reopen(last uint64) (err error) {
	s, err := l.newSession(last > 0)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	found, err := s.read(last, func(Record) error { return nil })
	if err != nil {
		return err
	}
	removed := l.tally
	for _, id := range l.removable {
		removed.remove(id)
	}
	switch found.tally {
	case l.tally:
	case removed:
		l.removable = l.removable[:0]
	default:
		return &DamagedError{Dir: l.opts.Dir, What: fmt.Sprintf(
			"of the %d writes up to %d that had been stored, %d are there", l.tally.count, last, found.tally.count)}
	}
	if err := s.drop(found); err != nil {
		return err
	}
	return l.start(s, l.mark, last, found.tally)
}

// Close syncs and closes the directory. It returns why, if the log has failed.
func (l *Log) Close() error {
	l.commit.Lock()
	defer l.commit.Unlock()
	if l.closed {
		return nil
	}
	close(l.stop)
	<-l.done
	l.sync.Lock()
	defer l.sync.Unlock()
	err := l.usable()
	if err == nil {
		err = l.finish()
	}
	l.closed = true
	if l.session != nil {
		err = errors.Join(err, l.session.close())
	}
	return errors.Join(err, l.mark.file.Close(), l.lock.Close())
}

// finish syncs everything, and gives the reservation back: nothing can be lost any more.
func (l *Log) finish() error {
	if err := l.syncNow(); err != nil {
		return err
	}
	for range l.mark.slots {
		if err := l.mark.set(func(m *marks) { m.reserved = l.Last() }); err != nil {
			return failure(l.opts.Dir, "write to", err)
		}
	}
	if _, err := l.mark.sync(); err != nil {
		return failure(l.opts.Dir, "write to", err)
	}
	return nil
}

// key returns the key of a record.
func key(id uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'w'}, id) }

// number parses a decimal number; 0 if it is none.
func number(text string) (n uint64) {
	_, _ = fmt.Sscanf(text, "%d", &n)
	return n
}
