package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
)

// Key identifies an item of a table. It is never that of another item of the table, not even after
// the replay was restarted. A key is that of one table: others find no item by it. Keys can be
// compared. The zero value is the key of no item.
type Key struct {
	ring, table string
	number      uint64
	rows        int
}

// Rows returns the number of rows of the item.
func (k Key) Rows() int { return k.rows }

// in returns the key's number in a table, 0 if it is the key of another table's item.
func (k Key) in(table string) uint64 {
	if k.table != table {
		return 0
	}
	return k.number
}

// keyOf returns the key of an item with these rows.
func keyOf(ring, table string, number uint64, runs []*replayv1.Run) Key {
	return Key{ring: ring, table: table, number: number, rows: rowsIn(runs)}
}

// Number returns the key as the node's methods have it. It is that of one incarnation of the
// replay, and 0 for the key of no item.
func (k Key) Number() uint64 { return k.number }

// String returns the number in hexadecimal.
func (k Key) String() string { return strconv.FormatUint(k.number, 16) }

// PendingKey is the key of an item that is on its way to its table. It is safe for concurrent use.
type PendingKey struct {
	confirmed atomic.Bool
	key       Key
}

// Get returns the key, and whether the node has confirmed the item. The key is the zero value if it
// has not, and if a row of the item was overwritten before the item was inserted, so that there is
// no item.
func (p *PendingKey) Get() (key Key, confirmed bool) {
	if !p.confirmed.Load() {
		return Key{}, false
	}
	return p.key, true
}

// HistoryError means that an item has more rows than its writer can refer to. It matches
// [ErrItem].
type HistoryError struct {
	Table string
	// Rows is the number of rows asked for.
	Rows int
	// Written is how many rows the item could have: those of the episode, unless it may cross the
	// episode's end, and at most History.
	Written int
	// History is the number of rows that the writer remembers.
	History int
}

// Error says how many rows were asked for, and how many there are.
func (e *HistoryError) Error() string {
	subject := fmt.Sprintf("create an item of %d rows in table %q", e.Rows, e.Table)
	switch {
	case e.Rows < 1:
		return subject + ": an item has at least one row"
	case e.Rows > e.History:
		return fmt.Sprintf("%s: the writer remembers %d rows: create it with replay.History(%d)", subject, e.History, e.Rows)
	default:
		return fmt.Sprintf("%s: %d rows of the episode were written: wait for more, or allow the item to cross the episode's end",
			subject, e.Written)
	}
}

// Is reports whether target is [ErrItem].
func (*HistoryError) Is(target error) bool { return target == ErrItem }

// UnconfirmedError means that items were not confirmed: it is unknown whether their table has them.
// It wraps the cause, for example [ring.ErrOrphaned] if the node's process has died.
//
// Where the ring is not mapped, it is also for rows, and for a writer whose stream was lost or
// whose context ended before the node's confirmation.
type UnconfirmedError struct {
	// Table is that of the items. It is empty where they may be of several tables.
	Table string
	Items int
	// Rows is how many rows were not confirmed, and Confirmed how many of the writer's rows were.
	Rows, Confirmed uint64
	// Keys are those of the items that were not confirmed. They are nil if the ring is mapped.
	Keys []*PendingKey
	// Kept means that the writer still has the rows and items: its next call sends them again, and
	// the node writes those that it has already no second time. Otherwise they were dropped.
	Kept  bool
	Cause error
}

// Error says what was not confirmed, and why.
func (e *UnconfirmedError) Error() string {
	items := fmt.Sprintf("%d items", e.Items)
	if e.Table != "" {
		items += fmt.Sprintf(" for table %q", e.Table)
	}
	switch {
	case e.Rows == 0 && e.Keys == nil:
		return fmt.Sprintf("%s were not confirmed: %v", items, e.Cause)
	case e.Kept:
		return fmt.Sprintf("%d rows and %s were not confirmed, after %d confirmed rows; the writer keeps them and sends them again: %v",
			e.Rows, items, e.Confirmed, e.Cause)
	default:
		return fmt.Sprintf("%d rows and %s were not confirmed, after %d confirmed rows, and were dropped: %v", e.Rows, items, e.Confirmed, e.Cause)
	}
}

// Unwrap returns the cause.
func (e *UnconfirmedError) Unwrap() error { return e.Cause }

// WriterOption configures a [TypedWriter].
type WriterOption interface{ applyWriter(options *writerOptions) }

// writerOptions are those of a writer.
type writerOptions struct {
	history, unconfirmed, window int
	caller                       string
}

type writerOption func(options *writerOptions)

func (o writerOption) applyWriter(options *writerOptions) { o(options) }

// History lets a writer create items of its last n rows or fewer.
func History(n int) WriterOption { return writerOption(func(o *writerOptions) { o.history = n }) }

// Unconfirmed is the maximum number of items per table that a writer has created and the node has
// not confirmed, by default 1024. [TypedWriter.Item] blocks when they are reached.
func Unconfirmed(items int) WriterOption {
	return writerOption(func(o *writerOptions) { o.unconfirmed = items })
}

// Window is the maximum size, in bytes, of the rows that a writer has written and the node has not
// confirmed, where the ring is not mapped; by default 4 MiB. [TypedWriter.Append] blocks when it is
// reached. A larger write waits until all rows before it are confirmed.
func Window(bytes int) WriterOption { return writerOption(func(o *writerOptions) { o.window = bytes }) }

// CallerOption names a writer or a sampler.
type CallerOption string

// Caller names a writer or a sampler in the errors and descriptions of calls that wait for it.
func Caller(name string) CallerOption { return CallerOption(name) }

func (c CallerOption) applyWriter(options *writerOptions) { options.caller = string(c) }

const (
	defaultUnconfirmed = 1024
	defaultWindow      = 4 << 20
)

func writerOptionsOf(c *Client, options []WriterOption) (writerOptions, error) {
	chosen := writerOptions{unconfirmed: defaultUnconfirmed, window: defaultWindow}
	for _, o := range options {
		o.applyWriter(&chosen)
	}
	switch capacity := c.layout.Capacity; {
	case chosen.history < 0 || uint64(chosen.history) > capacity:
		return chosen, fmt.Errorf("create a writer with a history of %d rows: %w: the ring has %d", chosen.history, ErrArgument, capacity)
	case chosen.unconfirmed < 1:
		return chosen, fmt.Errorf("create a writer with up to %d unconfirmed items: %w: it needs one", chosen.unconfirmed, ErrArgument)
	case chosen.window < 1:
		return chosen, fmt.Errorf("create a writer with a window of %d bytes: %w: it must be positive", chosen.window, ErrArgument)
	}
	return chosen, nil
}

// ItemOption configures an item.
type ItemOption func(options *itemOptions)

type itemOptions struct{ across, maximum bool }

// AcrossEpisodes allows an item to have rows of earlier episodes of its writer.
func AcrossEpisodes() ItemOption { return func(o *itemOptions) { o.across = true } }

// AtMaximum gives an item the highest priority of its table at the time when it is inserted, or 1
// if there is no positive one, instead of the priority that the call has.
func AtMaximum() ItemOption { return func(o *itemOptions) { o.maximum = true } }

// history has the sequence numbers of a writer's last rows.
type history struct {
	// most is how many of them items can have.
	most int
	ring string
	rows []uint64
	// episode is the index of the current episode's first row.
	episode int
}

// add adds rows of a ring. Those of another ring are forgotten.
func (h *history) add(id string, sequences []uint64) {
	if len(sequences) == 0 {
		return
	}
	if id != h.ring {
		h.ring, h.rows, h.episode = id, h.rows[:0], 0
	}
	if excess := len(sequences) - h.most; excess > 0 {
		sequences = sequences[excess:]
	}
	if len(h.rows)+len(sequences) > 2*h.most {
		dropped := max(0, len(h.rows)-h.most)
		h.rows = append(h.rows[:0], h.rows[dropped:]...)
		h.episode = max(0, h.episode-dropped)
	}
	h.rows = append(h.rows, sequences...)
}

// append adds n rows that a stream numbers.
func (h *history) append(key string, first uint64, n int) {
	if h.most == 0 {
		return
	}
	first += uint64(max(0, n-h.most))
	var few [1]uint64
	numbers := few[:0]
	for i := range min(n, h.most) {
		numbers = append(numbers, first+uint64(i))
	}
	h.add(key, numbers)
}

// resolve replaces the numbers of a stream by sequence numbers, if all of its rows were confirmed.
func (h *history) resolve(o *outbox, ring string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ring != ring || o.dead != nil {
		*h = history{most: h.most}
		return
	}
	recent := o.recent.rows
	known := min(len(h.rows), len(recent))
	h.episode = max(0, h.episode-(len(h.rows)-known))
	h.ring, h.rows = ring, slices.Clone(recent[len(recent)-known:])
}

// length returns how many rows items can have, whatever the episode.
func (h *history) length() int { return min(h.most, len(h.rows)) }

// last returns the runs of the last n rows, or how many there are.
func (h *history) last(n int, across bool) ([]*replayv1.Run, int) {
	rows := h.rows
	if !across {
		rows = rows[h.episode:]
	}
	rows = rows[max(0, len(rows)-h.most):]
	if n < 1 || n > len(rows) {
		return nil, len(rows)
	}
	return runsOf(rows[len(rows)-n:]), len(rows)
}

// Item creates an item of a table: the last n rows that this writer has written, with a priority.
// It never crosses an episode's end, unless [AcrossEpisodes] allows it. If there are not as many
// rows, the error is a [HistoryError]. A priority that is negative, not finite or too high for the
// table is an error that matches [ErrPriority], an unknown table one that matches [ErrTable].
//
// Item does not wait for the node: items are sent in the background, in their order for each table,
// several in one call. [TypedWriter.Flush] waits until all are confirmed, and only then the key can
// be relied on. While as many items of the table are unconfirmed as [Unconfirmed] allows, Item
// waits for the node, and for the table's limiter; if the context ends first, the error matches
// [ErrBlocked] and says what the limiter waits for, and there is no such item.
//
// Items that were not confirmed are an [UnconfirmedError], which the next call of Item, EndEpisode
// or Flush returns, once. It comes within a second of the death of the node's process.
func (w *TypedWriter[C]) Item(ctx context.Context, tableName string, n int, priority float64, options ...ItemOption) (*PendingKey, error) {
	var chosen itemOptions
	for _, o := range options {
		o(&chosen)
	}
	if err := w.typed.client.opened(); err != nil {
		return nil, fmt.Errorf("create an item: %w", err)
	}
	q, err := w.queue(tableName)
	if err != nil {
		return nil, fmt.Errorf("create an item: %w", err)
	}
	o := w.outbox
	if o != nil && o.ended() {
		if w.history.ring == o.key {
			w.history = history{most: w.history.most}
		}
		o = nil
	}
	runs, written := w.history.last(n, chosen.across)
	if runs == nil {
		return nil, &HistoryError{Table: tableName, Rows: n, Written: written, History: w.history.most}
	}
	item := &replayv1.Item{Runs: runs}
	if !chosen.maximum {
		if err := q.config.CheckPriority(0, priority); err != nil {
			return nil, fmt.Errorf("create an item of table %q: %w", tableName, err)
		}
		item.Priority = &priority
	}
	if o != nil && w.history.ring == o.key {
		return o.item(ctx, q.config, &replayv1.FeedItem{
			Table: tableName, First: runs[0].GetFirst(), Length: uint32(n), Priority: item.Priority, //nolint:gosec // at most the history
		})
	}
	key := &PendingKey{}
	return key, q.add(ctx, unconfirmed{ring: w.history.ring, item: item, key: key})
}

// EpisodeRows returns how many rows of the episode an item can have: those that were written, at
// most the writer's [History]. Where items have n rows, the one at an episode's end has the rows
// that are left: the lower of n and EpisodeRows.
func (w *TypedWriter[C]) EpisodeRows() int {
	return min(len(w.history.rows)-w.history.episode, w.history.most)
}

// EndEpisode ends the episode: items of later rows have none of the rows before. It does not wait
// for items: see [TypedWriter.Flush]. It returns an [UnconfirmedError] if some were lost.
func (w *TypedWriter[C]) EndEpisode(ctx context.Context) error {
	w.history.episode = len(w.history.rows)
	err := ctx.Err()
	if w.outbox != nil {
		err = errors.Join(err, w.outbox.lost())
	}
	for _, q := range w.queues {
		err = errors.Join(err, q.takeFailure())
	}
	return err
}

// Flush waits until the node has confirmed all items, or until the context ends: then the error
// matches [ErrBlocked] and the context's error. Items stay on their way.
func (w *TypedWriter[C]) Flush(ctx context.Context) error {
	var err error
	if w.outbox != nil {
		err = w.outbox.flush(ctx)
	}
	for _, q := range w.queues {
		err = errors.Join(err, q.wait(ctx, 0, nil))
	}
	return err
}

// queue returns the items on their way to a table.
func (w *TypedWriter[C]) queue(name string) (*itemQueue, error) {
	if q := w.queues[name]; q != nil {
		return q, nil
	}
	config, err := w.typed.client.table(name)
	if err != nil {
		return nil, err
	}
	if w.queues == nil {
		w.queues = make(map[string]*itemQueue)
	}
	q := &itemQueue{
		client: w.typed.client, config: config, caller: w.options.caller, most: w.options.unconfirmed, changed: make(chan struct{}),
	}
	w.queues[name] = q
	return q, nil
}

// table returns the configuration of a table.
func (c *Client) table(name string) (table.Config, error) {
	names := make([]string, len(c.tables))
	for i, config := range c.tables {
		if names[i] = config.GetName(); names[i] == name {
			return tableConfig(config)
		}
	}
	return table.Config{}, noTable(name, names)
}
