package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

const (
	// Memory: two memtables in most cases, and the blocks that an opening or a compaction reads.
	memtableSize = 8 << 20
	cacheSize    = 1 << 20

	// The first byte of a record's value.
	plain   = 0 // the change follows
	tallied = 1 // the tally of all records follows, then the change
)

// session is one opening of Pebble.
type session struct {
	dir  string
	db   *pebble.DB
	disk *disk
	log  *slog.Logger
	// stuck is set after a panic in Pebble, which may hold its locks: closing it could block.
	stuck bool

	mu     sync.Mutex // guards failed
	failed error
}

// tally is the number of records, and the sum of their ids modulo 2^64.
type tally struct{ count, sum uint64 }

func (t *tally) add(id uint64)    { t.count++; t.sum += id }
func (t *tally) remove(id uint64) { t.count--; t.sum -= id }

// newSession opens Pebble. The directory must have a database if exists is set.
func (l *Log) newSession(exists bool) (s *session, err error) {
	s = &session{dir: l.opts.Dir, log: l.opts.Logger}
	s.disk = &disk{FS: l.fs, lazy: !l.opts.Sync, keep: true, onFail: s.fail}
	defer func() {
		if p := recover(); p != nil {
			s.disk.kill()
			err = &DamagedError{Dir: s.dir, What: "they cannot be opened", Err: fmt.Errorf("%v", p)}
		}
	}()
	cache := pebble.NewCache(cacheSize)
	defer cache.Unref()
	s.db, err = pebble.Open(l.opts.Dir, &pebble.Options{
		FS:               s.disk,
		Lock:             l.lock,
		Logger:           s,
		EventListener:    &pebble.EventListener{BackgroundError: s.fail, DataCorruption: s.damaged},
		ErrorIfNotExists: exists,
		MemTableSize:     memtableSize,
		Cache:            cache,
		// Later formats write into the write-ahead log up to where it was synced, which is not true
		// of one that is synced by a timer: after a loss of power it would look damaged. The
		// watermark says the same, and more.
		FormatMajorVersion: pebble.FormatColumnarBlocks,
	})
	switch {
	case err == nil && s.Err() == nil:
		return s, nil
	case err == nil:
		err = s.Err()
		s.abandon()
		return nil, err
	}
	s.disk.kill()
	s.disk.discard()
	switch {
	case s.Err() != nil:
		return nil, s.Err()
	case refused(err):
		return nil, failure(s.dir, "open", err)
	}
	return nil, &DamagedError{Dir: s.dir, What: "they cannot be opened", Err: err}
}

// contents describes the records of a directory.
type contents struct {
	// last is the id of the last record that was visited, end is its change, and tally counts those
	// that were visited.
	last  uint64
	end   []byte
	tally tally
	// extra are the ids of the records that were not visited.
	extra []uint64
	// all counts all records, and stored is what the last of them says.
	all, stored tally
}

// read calls visit for each record up to an id.
func (s *session) read(upTo uint64, visit func(Record) error) (c contents, err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte("w"), UpperBound: []byte("x")})
	if err != nil {
		return contents{}, s.readError(err)
	}
	defer func() {
		if closed := it.Close(); closed != nil && err == nil { // with what ended the loop
			err = s.readError(closed)
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return contents{}, s.readError(err)
		}
		k := it.Key()
		if len(k) != 9 {
			return contents{}, &DamagedError{Dir: s.dir, What: fmt.Sprintf("the key %x is none of a record", k)}
		}
		id := binary.BigEndian.Uint64(k[1:])
		change, stored, ok := decode(value)
		if !ok {
			return contents{}, &DamagedError{Dir: s.dir, What: fmt.Sprintf("the write %d cannot be decoded", id)}
		}
		c.all.add(id)
		c.stored = stored
		if id > upTo {
			c.extra = append(c.extra, id)
			continue
		}
		c.last = id
		c.tally.add(id)
		if id == upTo {
			c.end = slices.Clone(change)
		}
		if err := visit(Record{ID: c.last, Change: change}); err != nil {
			return contents{}, fmt.Errorf("restore the write %d of the directory %s: %w", c.last, s.dir, err)
		}
	}
	return c, nil
}

func (s *session) readError(err error) error {
	if refused(err) {
		return failure(s.dir, "read", err)
	}
	return &DamagedError{Dir: s.dir, What: "the writes cannot be read", Err: err}
}

// put adds a record to a batch, with the tally if it is the last.
func put(batch *pebble.Batch, r Record, last bool, t tally) error {
	header := 1
	if last {
		header = 17
	}
	op := batch.SetDeferred(9, header+len(r.Change))
	op.Key[0] = 'w'
	binary.BigEndian.PutUint64(op.Key[1:], r.ID)
	op.Value[0] = plain
	if last {
		op.Value[0] = tallied
		binary.BigEndian.PutUint64(op.Value[1:], t.count)
		binary.BigEndian.PutUint64(op.Value[9:], t.sum)
	}
	copy(op.Value[header:], r.Change)
	return op.Finish()
}

// drop removes the records that were not visited, durably.
func (s *session) drop(c contents) error {
	if len(c.extra) == 0 {
		return nil
	}
	s.apply(func(batch *pebble.Batch) error {
		if err := removeRecords(batch, c.extra); err != nil || c.last == 0 {
			return err
		}
		return put(batch, Record{ID: c.last, Change: c.end}, true, c.tally)
	})
	s.disk.syncDirty()
	return s.Err()
}

// removeRecords adds the removal of records to a batch, and sorts their ids.
func removeRecords(batch *pebble.Batch, ids []uint64) error {
	slices.Sort(ids)
	for len(ids) > 0 {
		n := 1
		for n < len(ids) && ids[n] == ids[0]+uint64(n) {
			n++
		}
		var err error
		if n < 8 { // a range costs more than some keys
			n, err = 1, batch.Delete(key(ids[0]), nil)
		} else {
			err = batch.DeleteRange(key(ids[0]), key(ids[0]+uint64(n)), nil)
		}
		if err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

func decode(value []byte) (change []byte, t tally, ok bool) {
	switch {
	case len(value) >= 1 && value[0] == plain:
		return value[1:], tally{}, true
	case len(value) >= 17 && value[0] == tallied:
		return value[17:], tally{
			count: binary.BigEndian.Uint64(value[1:]), sum: binary.BigEndian.Uint64(value[9:]),
		}, true
	}
	return nil, tally{}, false
}

// apply commits a batch. If that fails, Err returns why.
func (s *session) apply(fill func(*pebble.Batch) error) {
	defer func() {
		if p := recover(); p != nil {
			s.stuck = true
			s.fail(fmt.Errorf("commit: %v", p))
		}
	}()
	batch := s.db.NewBatch()
	err := fill(batch)
	if err == nil {
		err = s.db.Apply(batch, pebble.Sync)
	}
	if err == nil && s.Err() == nil {
		err = batch.Close()
	}
	if err != nil {
		s.fail(fmt.Errorf("commit: %w", err))
	}
}

// Err is the reason why the session has failed, or nil.
func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// fail keeps the first failure.
func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
	case errors.As(err, new(*DamagedError)):
		s.failed = err
	case pebble.IsCorruptionError(err):
		s.failed = &DamagedError{Dir: s.dir, What: "a file cannot be read", Err: err}
	default:
		s.failed = failure(s.dir, "write to", err)
	}
}

// damaged fails the session because of a file that does not have what was written.
func (s *session) damaged(info pebble.DataCorruptionInfo) {
	s.fail(&DamagedError{Dir: s.dir, What: "the file " + filepath.Base(info.Path), Err: info.Details})
}

// abandon closes Pebble without changing the directory.
func (s *session) abandon() {
	s.disk.kill()
	if err := s.close(); err != nil {
		s.log.Debug("pebble: close after a failure", "error", err)
	}
	s.disk.discard()
}

func (s *session) close() error {
	if s.stuck {
		return nil // its files cannot be changed any more
	}
	return s.db.Close()
}

// Infof implements [pebble.Logger].
func (s *session) Infof(format string, args ...any) {
	s.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

// Errorf implements [pebble.Logger].
func (s *session) Errorf(format string, args ...any) {
	s.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf implements [pebble.Logger]. Pebble expects it not to return; the code after it in Pebble
// only returns an error, or nil if a commit has failed. It fails the log instead of ending the
// process: what the storage has in memory can still be read.
func (s *session) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.log.Error("pebble: " + text)
	s.fail(errors.New(text))
	s.disk.kill()
}
