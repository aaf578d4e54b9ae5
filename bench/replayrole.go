package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/bench/gen/rows/v1/rowsv1raylink"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/runtime"
	schema "github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay"
)

// Roles of the processes in rows of the replay. The owner is followed by a system, the size of a
// row, and where its rows are: for RayLink a directory and the load, otherwise a peer's file. A
// client is followed by a system, a kind, the size of a row, and an address.
const (
	replayOwnerRole  = "replay-owner"
	replayClientRole = "replay-client"
)

// replayRole runs a process that takes part in rows of the replay.
func (c *driverConn) replayRole(ctx context.Context, words []string) error {
	if words[0] == replayOwnerRole {
		return c.replayOwner(ctx, words[1], words[2], words[3], words[4:])
	}
	size, err := strconv.Atoi(words[3])
	if err != nil {
		return c.reportError(err)
	}
	l := &replayLoop{kind: kind(words[2]), size: size, uniform: words[1] == raylinkUniform || words[1] == raylinkRemote}
	if words[1] == treeSystem {
		items, err := strconv.Atoi(words[4])
		if err != nil {
			return c.reportError(err)
		}
		l.keys = newSumTree(items)
		return c.answer(response{}, l.do)
	}
	store, err := openRowStore(ctx, words[1], l.kind, size, words[4])
	if err != nil {
		return c.reportError(err)
	}
	l.store = store
	return errors.Join(c.answer(response{}, l.do), store.close())
}

// replayOwner hosts a replay, or what a tunnel leads to.
func (c *driverConn) replayOwner(ctx context.Context, system, size, path string, load []string) error {
	if system == tunnelSystem {
		srv, err := serveTunnel(ctx, path)
		if err != nil {
			return c.reportError(err)
		}
		return errors.Join(c.answer(response{Address: srv.address()}, func(r request) (response, error) {
			return response{}, fmt.Errorf("the end of a tunnel does not support %q", r.Op)
		}), srv.close())
	}
	n, err := strconv.Atoi(size)
	if err != nil {
		return c.reportError(err)
	}
	parsed, err := replayLoadOf(load)
	if err != nil {
		return c.reportError(err)
	}
	owner, err := serveReplay(ctx, parsed, n, path)
	if err != nil {
		return c.reportError(err)
	}
	l := &replayLoop{keys: owner, size: n}
	return errors.Join(c.answer(response{Address: owner.handle.Ref().Path()}, l.do), owner.close())
}

// rowStore has rows of a size: a replay, or a peer's mapped file.
type rowStore interface {
	capacity() int
	// write writes rows back to back.
	write(ctx context.Context, n int, payload []byte) error
	// sample copies random rows.
	sample(ctx context.Context, n int) error
	// borrow has the newest rows read in place, by a function that gets them in pieces.
	borrow(ctx context.Context, n int, read func(rows []byte)) error
	// hold keeps areas until the store is closed.
	hold(ctx context.Context, areas int) error
	// flush waits until all rows that were written have arrived, where they travel.
	flush(ctx context.Context) error
	close() error
}

// itemStore has items of rows in tables.
type itemStore interface {
	rowStore
	// sampleItems copies the rows of random items.
	sampleItems(ctx context.Context, table string, n int) error
}

func openRowStore(ctx context.Context, system string, k kind, size int, address string) (rowStore, error) {
	switch system {
	case tunnelSystem:
		return openTunnelRows(ctx, size, address)
	case "raylink", raylinkNone, raylinkUniform, raylinkRemote:
	default:
		return openPlainRows(size, address)
	}
	rt, err := raylink.Init(ctx)
	if err != nil {
		return nil, err
	}
	store, err := openReplayRows(ctx, rt, !k.remote(), size, address)
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	return store, nil
}

func openReplayRows(ctx context.Context, rt *raylink.Runtime, mapped bool, size int, path string) (rowStore, error) {
	handle, err := replayv1raylink.FindReplay(ctx, rt, runtime.Path(path))
	if err != nil {
		return nil, err
	}
	switch size {
	case 64:
		return newReplayStore(ctx, rt, mapped, handle, rowsv1raylink.Row64Row, func(c *rowsv1raylink.Row64Columns) []byte { return c.Data })
	case 1024:
		return newReplayStore(ctx, rt, mapped, handle, rowsv1raylink.Row1024Row, func(c *rowsv1raylink.Row1024Columns) []byte { return c.Data })
	case 3072:
		return newReplayStore(ctx, rt, mapped, handle, rowsv1raylink.Row3072Row, func(c *rowsv1raylink.Row3072Columns) []byte { return c.Data })
	case 28672:
		return newReplayStore(ctx, rt, mapped, handle, rowsv1raylink.Row28672Row, func(c *rowsv1raylink.Row28672Columns) []byte { return c.Data })
	}
	return nil, fmt.Errorf("there are no rows of %d bytes", size)
}

// replayStore is a replay of rows with the columns C.
type replayStore[C any] struct {
	rt     *raylink.Runtime
	rows   *replay.Typed[C]
	writer *replay.TypedWriter[C]
	reader *replay.TypedReader[C]
	batch  *replay.TypedBatch[C]
	data   func(*C) []byte
	areas  []*replay.TypedArea[C]
	// samplers are those of tables.
	samplers map[string]*replay.Sampler[C]
	// fill copies payload.
	fill    func(*C)
	payload []byte
}

func newReplayStore[C any](
	ctx context.Context, rt *raylink.Runtime, mapped bool, handle *replayv1raylink.Replay, rows schema.Type[C], data func(*C) []byte,
) (rowStore, error) {
	opened, err := replay.Open(ctx, handle, rows)
	if err != nil {
		return nil, err
	}
	if opened.Client().Mapped() != mapped {
		return nil, errors.Join(fmt.Errorf("the replay is mapped: %t, instead of %t", !mapped, mapped), opened.Close())
	}
	s := &replayStore[C]{rt: rt, rows: opened, reader: opened.Reader(nil), data: data, samplers: make(map[string]*replay.Sampler[C])}
	s.fill = func(c *C) { copy(s.data(c), s.payload) }
	if s.writer, err = opened.Writer(); err != nil {
		return nil, err
	}
	s.batch, err = opened.NewBatch(0)
	return s, err
}

func (s *replayStore[C]) capacity() int { return int(s.rows.Client().Layout().Capacity) }

func (s *replayStore[C]) write(ctx context.Context, n int, payload []byte) error {
	s.payload = payload
	return s.writer.Append(ctx, n, s.fill)
}

func (s *replayStore[C]) sample(ctx context.Context, n int) error {
	return s.reader.Sample(ctx, n, s.batch)
}

func (s *replayStore[C]) borrow(ctx context.Context, n int, read func(rows []byte)) error {
	area, err := s.rows.Newest(ctx, n)
	if err != nil {
		return err
	}
	if area.Len() < n*9/10 {
		return errors.Join(fmt.Errorf("only %d of %d rows can be read", area.Len(), n), area.Release())
	}
	for i := range area.Spans() {
		if read != nil {
			read(s.data(&area.Spans()[i].Columns))
		}
	}
	return area.Release()
}

// hold holds areas of 64 rows, with rows between them that are not held.
func (s *replayStore[C]) hold(ctx context.Context, areas int) error {
	for range areas {
		if err := s.writer.Append(ctx, min(128, s.capacity()/(2*areas)), func(*C) {}); err != nil {
			return err
		}
		area, err := s.rows.Newest(ctx, min(64, s.capacity()/(4*areas)))
		if err != nil {
			return err
		}
		s.areas = append(s.areas, area)
	}
	return nil
}

// sampleItems samples a table as a learner does: ahead, and with weights.
func (s *replayStore[C]) sampleItems(ctx context.Context, table string, n int) error {
	sampler := s.samplers[table]
	if sampler == nil {
		ahead := prefetched
		if !s.rows.Client().Mapped() {
			ahead = prefetchedAfar
		}
		var err error
		sampler, err = s.rows.Sampler(table, replay.BatchOf(n), replay.Prefetch(ahead), replay.Weights(weightExponent))
		if err != nil {
			return err
		}
		s.samplers[table] = sampler
	}
	batch, err := sampler.Next(ctx)
	if err == nil && batch.Replaced > 0 {
		err = fmt.Errorf("%d items had rows that were overwritten, and there is no writer", batch.Replaced)
	}
	return err
}

func (s *replayStore[C]) flush(ctx context.Context) error { return s.writer.Flush(ctx) }

func (s *replayStore[C]) close() error {
	var errs []error
	for _, sampler := range s.samplers {
		errs = append(errs, sampler.Close())
	}
	for _, area := range s.areas {
		errs = append(errs, area.Release())
	}
	return errors.Join(append(errs, s.rows.Close(), s.rt.Close())...)
}

// plainRows are rows of a mapped file, without any synchronization.
type plainRows struct {
	memory fileMemory
	size   int
	next   int
	into   []byte
	rng    *rand.Rand
}

func openPlainRows(size int, path string) (rowStore, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s := &plainRows{memory: fileMemory{path: path}, size: size, rng: rand.New(rand.NewPCG(rand.Uint64(), 0))} //nolint:gosec // a load
	if _, err := s.memory.of(int(info.Size())); err != nil {
		return nil, err
	}
	s.next = s.rng.IntN(s.capacity()) // several writers begin at different rows
	return s, nil
}

func (s *plainRows) capacity() int { return len(s.memory.memory) / s.size }

func (s *plainRows) write(_ context.Context, n int, payload []byte) error {
	for i := range n {
		copy(s.memory.memory[s.next*s.size:][:s.size], payload[i*s.size:])
		if s.next++; s.next == s.capacity() {
			s.next = 0
		}
	}
	return nil
}

func (s *plainRows) sample(_ context.Context, n int) error {
	if len(s.into) != n*s.size {
		s.into = make([]byte, n*s.size)
	}
	for i := range n {
		copy(s.into[i*s.size:][:s.size], s.memory.memory[s.rng.IntN(s.capacity())*s.size:])
	}
	return nil
}

func (s *plainRows) borrow(_ context.Context, n int, _ func(rows []byte)) error {
	touch(s.memory.memory[:n*s.size])
	return nil
}

func (s *plainRows) hold(context.Context, int) error { return errors.New("a plain file has no areas") }
func (s *plainRows) flush(context.Context) error     { return nil }
func (s *plainRows) close() error                    { return s.memory.close() }

// replayLoop repeats an operation.
type replayLoop struct {
	// store has the rows. It is nil if there are only keys.
	store rowStore
	keys  keyStore
	// kind is empty if it is the job's.
	kind kind
	size int
	// uniform makes it sample rows where others sample items.
	uniform bool
	job     job
	// ready is set once every page was touched in all mappings that the operation uses.
	ready   bool
	payload []byte
}

func (l *replayLoop) do(r request) (response, error) {
	ctx := context.Background()
	switch r.Op {
	case "prepare":
		l.job = r.Job
		if l.kind == replayHold {
			return response{}, l.store.hold(ctx, r.Job.Inflight)
		}
		if err := l.touch(ctx); err != nil {
			return response{}, err
		}
		_, err := l.run(ctx, l.job.Duration/5)
		return response{}, err
	case "run":
		o, err := l.run(ctx, l.job.Duration)
		return response{Outcome: o}, err
	}
	return response{}, fmt.Errorf("a client of the replay does not support %q", r.Op)
}

// touch fills the store once, and reads all rows in place. Rows of items must stay, and were
// written by the owner; so were those that are not in this process's memory.
func (l *replayLoop) touch(ctx context.Context) error {
	if l.ready || l.store == nil {
		return nil
	}
	l.ready = true
	capacity := l.store.capacity()
	rows := max(1, min(256, (1<<20)/l.size))
	l.payload = make([]byte, max(rows, l.job.Inflight*l.writes())*l.size)
	for i := range l.payload {
		l.payload[i] = byte(i*31 + i>>10)
	}
	if l.kind.remote() {
		return nil
	}
	if l.kind != replayItems && l.kind != replayFewItems {
		for left := capacity; left > 0; left -= rows {
			if err := l.store.write(ctx, min(left, rows), l.payload); err != nil {
				return err
			}
		}
	}
	if l.kind == replayWrite {
		return nil
	}
	return l.store.borrow(ctx, capacity, touch)
}

// writes is 1 if the loop writes, and else 0.
func (l *replayLoop) writes() int {
	if l.kind == replayWrite || l.kind == replayRemoteWrite {
		return 1
	}
	return 0
}

// operation returns what is repeated, and of how many rows, items or keys it is. Where several
// processes do different things, writers write row by row.
func (l *replayLoop) operation(ctx context.Context) (do func() error, rows int, err error) {
	n, k := l.job.Inflight, l.kind
	if k == "" {
		k = l.job.Kind
	}
	items, hasItems := l.store.(itemStore)
	ofItems := func(table string) (func() error, int, error) {
		return func() error { return items.sampleItems(ctx, table, n) }, n, nil
	}
	switch {
	case k == replayDraw && l.keys != nil:
		return func() error { return l.keys.draw(ctx, n) }, n, nil
	case k == replayUpdate && l.keys != nil:
		return func() error { return l.keys.update(ctx, n) }, n, nil
	case l.store == nil:
		return nil, 0, fmt.Errorf("keys alone do not support %q", k)
	case k == replayWrite, k == replayRemoteWrite:
		if l.job.Kind == replayMixed {
			n = 1
		}
		payload := l.payload[:n*l.size]
		return func() error { return l.store.write(ctx, n, payload) }, n, nil
	case k == replayBorrow:
		return func() error { return l.store.borrow(ctx, n, nil) }, n, nil
	case k == replayFewItems && hasItems:
		return ofItems(fewItems)
	case (k == replayItems || k == replayRemoteSample) && hasItems && !l.uniform:
		return ofItems(allItems)
	default:
		return func() error { return l.store.sample(ctx, n) }, n, nil
	}
}

// rowsPerLook is the number of rows after which the clock is read.
const rowsPerLook = 64

// run repeats the operation for a time. Latencies are means over the operations between two looks
// at the clock.
func (l *replayLoop) run(ctx context.Context, duration time.Duration) (outcome, error) {
	do, rows, err := l.operation(ctx)
	if err != nil {
		return outcome{}, err
	}
	each := max(1, rowsPerLook/rows)
	h := new(histogram)
	begun := time.Now()
	last, end := begun, begun.Add(duration)
	for last.Before(end) {
		for range each {
			if err := do(); err != nil {
				return outcome{}, err
			}
		}
		now := time.Now()
		h.record(int64(now.Sub(last)) / int64(each))
		last = now
	}
	if l.kind.remote() {
		if err := l.store.flush(ctx); err != nil {
			return outcome{}, err
		}
		last = time.Now()
	}
	ops := h.total * uint64(each) * uint64(rows)
	return outcome{Ops: ops, Seconds: last.Sub(begun).Seconds(), P50: h.quantile(0.5), P99: h.quantile(0.99)}, nil
}
