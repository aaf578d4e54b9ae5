package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// Change changes rows of items, in the ring: all tables that have them see the change, and so do
// samples of the bare rows. It calls fn once with copies of the rows of all items, back to back in
// the order of the keys: Key.Rows() of them for each, and zeros for an item that has left its
// table. So if all items have the same length, the rows lie as those of a [SampledBatch] with these
// keys. fn changes what it likes, for example one column that was computed anew. If no item is
// left, fn is not called.
//
// Change then overwrites those columns of those rows that fn has changed, row by row: a reader sees
// a row before or after its change. The columns that fn left alone keep what others write to them
// meanwhile; if two calls change the same column of a row, one of them wins. If fn panics, nothing
// is changed. If the process is killed in the middle of a row, the row is lost, like that of a
// killed writer; rows before it are changed, and those behind it are not.
//
// Change returns how many of the keys are stale: their items have left their tables, or a row of
// theirs was overwritten. Stale items are not changed, except for one whose rows are overwritten
// while Change is overwriting them. Items are named by keys and not by the sequence numbers of
// their rows, which may be those of other rows after the replay was restarted.
//
// Rows that areas hold do not change. Change waits until they are released, or until the context
// ends: the error then is a [ring.HeldError], which says which processes hold areas, how many rows
// were changed, and which matches the context's error. A row can be changed 4,095 times: the next
// time the error matches [ErrChanged].
func (t *Typed[C]) Change(ctx context.Context, keys []Key, fn func(rows *C)) (stale int, err error) {
	return t.client.Change(ctx, keys, func(rows *Batch) {
		columns := make([][]byte, len(t.client.layout.Columns))
		for i := range columns {
			columns[i] = rows.Bytes(i)
		}
		var view C
		if err := t.row.View(&view, rows.Rows(), columns); err != nil {
			panic(err) // As has made sure of the columns
		}
		fn(&view)
	})
}

// Change is [Typed.Change] for rows that are a [Batch], whose number of rows fn must not change.
func (c *Client) Change(ctx context.Context, keys []Key, fn func(rows *Batch)) (stale int, err error) {
	ch := change{client: c, keys: keys, stale: make([]bool, len(keys))}
	if err = c.callable(ctx); err == nil {
		err = ch.run(ctx, fn)
	}
	for _, s := range ch.stale {
		if s {
			stale++
		}
	}
	if err != nil {
		return stale, fmt.Errorf("change rows of %d items: %w", len(keys), err)
	}
	return stale, nil
}

// change is a call of Change.
type change struct {
	client *Client
	keys   []Key
	// stale are the items that are not changed.
	stale []bool
	// ring is that of the rows. sequences are the rows of the items, back to back; owners are the
	// indexes of their keys.
	ring      string
	sequences []uint64
	owners    []int
}

func (ch *change) run(ctx context.Context, fn func(rows *Batch)) error {
	found, err := ch.find(ctx)
	if err != nil || !found {
		return err
	}
	rows, err := ch.read(ctx)
	if err != nil || !slices.Contains(ch.stale, false) {
		return err
	}
	before, n := rows.Clone(), rows.Rows()
	fn(rows)
	if rows.Rows() != n {
		return fmt.Errorf("%w: the function that changes %d rows made them %d", ring.ErrBatch, n, rows.Rows())
	}
	return ch.write(ctx, ch.difference(before, rows), rows)
}

// find gets the rows of the items. It reports whether there are any.
func (ch *change) find(ctx context.Context) (bool, error) {
	indexes := make(map[string][]int)
	for i, key := range ch.keys {
		if ch.stale[i] = key.number == 0; !ch.stale[i] {
			indexes[key.table] = append(indexes[key.table], i)
		}
	}
	runs := make([][]*replayv1.Run, len(ch.keys))
	for name, items := range indexes {
		req := &replayv1.FindItemsRequest{Table: name}
		for _, i := range items {
			req.Keys = append(req.Keys, ch.keys[i].number)
		}
		res, err := ch.client.Handle().FindItems(ctx, req)
		if err != nil {
			return false, ringError(err)
		}
		if len(res.GetItems()) != len(items) {
			return false, fmt.Errorf("invalid response from the replay: %d items instead of %d", len(res.GetItems()), len(items))
		}
		if ch.ring != "" && ch.ring != res.GetRingId() { // it was restarted in between
			ch.ring = ""
			return ch.find(ctx)
		}
		ch.ring = res.GetRingId()
		for k, i := range items {
			runs[i] = res.GetItems()[k].GetRuns()
			ch.stale[i] = len(runs[i]) == 0 || ch.keys[i].ring != ch.ring
			if !ch.stale[i] && rowsIn(runs[i]) != ch.keys[i].rows {
				return false, fmt.Errorf("invalid response from the replay: %d rows instead of %d", rowsIn(runs[i]), ch.keys[i].rows)
			}
		}
	}
	for i, key := range ch.keys {
		if ch.stale[i] {
			runs[i] = nil
		}
		ch.sequences = appendRuns(ch.sequences, runs[i])
		for range key.rows {
			ch.owners = append(ch.owners, i)
		}
		for len(ch.sequences) < len(ch.owners) {
			ch.sequences = append(ch.sequences, ring.NoRow)
		}
	}
	return slices.Contains(ch.stale, false), nil
}

// read returns copies of the rows. Those of stale items are zero.
func (ch *change) read(ctx context.Context) (*Batch, error) {
	rows, err := ch.client.NewBatch(0)
	if err != nil {
		return nil, err
	}
	lost, err := ch.client.Reader(nil).at(ctx, ch.ring, ch.sequences, rows)
	if err != nil {
		return nil, err
	}
	for _, i := range lost {
		ch.stale[ch.owners[i]] = true
	}
	for i, owner := range ch.owners {
		if !ch.stale[owner] {
			continue
		}
		ch.sequences[i] = ring.NoRow
		row, err := rows.Slice(i, i+1)
		if err != nil {
			return nil, err
		}
		for c := range rows.Layout().Columns {
			clear(row.Bytes(c))
		}
	}
	return rows, nil
}

// difference returns which columns of which rows differ.
func (ch *change) difference(before, after *Batch) []ring.RowChange {
	columns := len(ch.client.layout.Columns)
	var changes []ring.RowChange
	var last []int
	for i, sequence := range ch.sequences {
		if sequence == ring.NoRow {
			continue
		}
		differ := make([]int, 0, columns)
		for c := range columns {
			a, b := before.Bytes(c), after.Bytes(c)
			size := len(a) / before.Rows()
			if !bytes.Equal(a[i*size:(i+1)*size], b[i*size:(i+1)*size]) {
				differ = append(differ, c)
			}
		}
		if slices.Equal(differ, last) {
			differ = last // usually the same columns for all rows
		}
		if last = differ; len(differ) > 0 {
			changes = append(changes, ring.RowChange{Sequence: sequence, Row: i, Columns: differ})
		}
	}
	return changes
}

// write makes the changes.
func (ch *change) write(ctx context.Context, changes []ring.RowChange, rows *Batch) error {
	if len(changes) == 0 {
		return nil
	}
	var lost []int
	other := false
	err := ch.client.with(ctx, func(r *ring.Ring) error {
		if other = r.ID().String() != ch.ring; other {
			return ring.ErrEnded // one of both has ended: look for the current one
		}
		w, err := r.Writer()
		if err != nil {
			return err
		}
		lost, err = w.Change(ctx, changes, rows)
		return err
	}, func() error {
		other = false
		var err error
		lost, err = ch.send(ctx, changes, rows)
		return err
	})
	for _, i := range lost {
		ch.stale[ch.owners[changes[i].Row]] = true
	}
	if other && errors.Is(err, ring.ErrEnded) {
		for i := range ch.stale {
			ch.stale[i] = true
		}
		return nil
	}
	return err
}

// send makes the changes through the node, in several calls if they are many.
func (ch *change) send(ctx context.Context, changes []ring.RowChange, rows *Batch) (lost []int, err error) {
	begin := time.Now()
	var held *ring.HeldError
	for done := 0; done < len(changes); {
		req := ch.request(changes[done:], rows)
		if held != nil {
			req.WaitMs = waitOf(ctx)
		}
		res, err := ch.client.Handle().ChangeRows(ctx, req)
		for _, i := range res.GetLost() {
			if k := done + int(i); k < len(changes) { //nolint:gosec // an index
				lost = append(lost, k)
			}
		}
		done += int(min(res.GetDone(), uint64(len(changes)-done))) //nolint:gosec // not negative
		switch {
		case err == nil && res.GetHeld() != nil:
			held = heldOf(res.GetHeld())
		case err != nil && held != nil && endedBy(ctx, err) != nil: // while it waited
		case err != nil:
			return lost, err
		default:
			held = nil
			continue
		}
		held.Rows, held.Done, held.Waited, held.Cause = len(changes), done, time.Since(begin), endedBy(ctx, err)
		if held.Cause != nil {
			return lost, fmt.Errorf("change rows of the ring: %w", held)
		}
	}
	return lost, nil
}

// request returns a request with as many changes as fit into a message.
func (ch *change) request(changes []ring.RowChange, rows *Batch) *replayv1.ChangeRowsRequest {
	req := &replayv1.ChangeRowsRequest{RingId: ch.ring}
	changes = changes[:min(len(changes), rowsPerChunk(ch.client.layout))]
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && slices.Equal(changes[n].Columns, changes[0].Columns) {
			n++
		}
		message := &replayv1.RowsChange{}
		sequences := make([]uint64, n)
		for i, c := range changes[:n] {
			sequences[i] = c.Sequence
		}
		message.Runs = runsOf(sequences)
		for _, column := range changes[0].Columns {
			all := rows.Bytes(column)
			size := len(all) / rows.Rows()
			data := make([]byte, 0, n*size)
			for _, c := range changes[:n] {
				data = append(data, all[c.Row*size:(c.Row+1)*size]...)
			}
			message.Columns = append(message.Columns, &replayv1.ColumnChange{Column: uint32(column), Data: data}) //nolint:gosec // an index
		}
		req.Changes = append(req.Changes, message)
		changes = changes[n:]
	}
	return req
}

// heldOf returns the error of a message.
func heldOf(m *replayv1.Held) *ring.HeldError {
	e := &ring.HeldError{Sequence: m.GetSequence(), Holders: holdersOf(m.GetHolders())}
	for _, pid := range m.GetWriters() {
		e.Writers = append(e.Writers, int(pid))
	}
	return e
}

// FindItems returns the rows of items.
func (n *node) FindItems(ctx context.Context, req *replayv1.FindItemsRequest) (*replayv1.FindItemsResponse, error) {
	t, err := n.table(ctx, req.GetTable())
	if err != nil {
		return nil, connectError(err)
	}
	found, err := t.Find(keysOf(req.GetKeys()))
	if err != nil {
		return nil, connectError(err)
	}
	res := &replayv1.FindItemsResponse{RingId: n.ring.ID().String()}
	for _, runs := range found {
		item := &replayv1.FoundItem{}
		if len(runs) > 0 {
			item.Runs = runsMessage(runs[0], runs[1:])
		}
		res.Items = append(res.Items, item)
	}
	return res, nil
}

// ChangeRows overwrites columns of existing rows.
func (n *node) ChangeRows(ctx context.Context, req *replayv1.ChangeRowsRequest) (*replayv1.ChangeRowsResponse, error) {
	changes, from, err := n.changesOf(req)
	if err != nil {
		return nil, connectError(err)
	}
	res := &replayv1.ChangeRowsResponse{Done: uint64(len(changes))}
	if !n.isRing(req.GetRingId()) {
		for i := range changes {
			res.Lost = append(res.Lost, uint64(i))
		}
		return res, nil
	}
	var lost []int
	if wait := time.Duration(req.GetWaitMs()) * time.Millisecond; wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, min(wait, maxWait))
		defer cancel()
		lost, err = n.writer.Change(waiting, changes, from)
	} else {
		lost, err = n.writer.TryChange(changes, from)
	}
	for _, i := range lost {
		res.Lost = append(res.Lost, uint64(i)) //nolint:gosec // not negative
	}
	if held, ok := errors.AsType[*ring.HeldError](err); ok {
		res.Done = uint64(held.Done) //nolint:gosec // not negative
		res.Held = &replayv1.Held{Sequence: held.Sequence}
		for _, h := range held.Holders {
			res.Held.Holders = append(res.Held.Holders, holderMessage(h))
		}
		for _, pid := range held.Writers {
			res.Held.Writers = append(res.Held.Writers, int64(pid))
		}
		return res, nil
	}
	if err != nil {
		return nil, connectError(err)
	}
	return res, nil
}

// changesOf returns the changes of a request, and a batch that has their contents.
func (n *node) changesOf(req *replayv1.ChangeRowsRequest) ([]ring.RowChange, *ring.Batch, error) {
	layout := n.ring.Layout()
	total := 0
	for _, c := range req.GetChanges() {
		for _, r := range c.GetRuns() {
			if total += int(r.GetLength()); uint64(total) > max(1, maxResponse/n.rowSize) { //nolint:gosec // positive
				return nil, nil, fmt.Errorf("%w: more than %d rows to change do not fit into one call", ring.ErrBatch, max(1, maxResponse/n.rowSize))
			}
		}
	}
	from, err := ring.NewBatch(layout, total)
	if err != nil {
		return nil, nil, err
	}
	changes := make([]ring.RowChange, 0, total)
	for k, c := range req.GetChanges() {
		begin := len(changes)
		rows := rowsIn(c.GetRuns())
		var columns []int
		for _, column := range c.GetColumns() {
			index := int(column.GetColumn())
			if index >= len(layout.Columns) {
				return nil, nil, fmt.Errorf("%w: change %d has column %d, and the ring's columns are %v", ring.ErrBatch, k, index, layout.Columns)
			}
			into := from.Bytes(index)
			size := len(into) / max(1, total)
			if len(column.GetData()) != rows*size {
				return nil, nil, fmt.Errorf("%w: change %d has %d bytes of column %q for %d rows, and should have %d",
					ring.ErrBatch, k, len(column.GetData()), layout.Columns[index].Name, rows, rows*size)
			}
			copy(into[begin*size:], column.GetData())
			columns = append(columns, index)
		}
		for _, sequence := range appendRuns(nil, c.GetRuns()) {
			changes = append(changes, ring.RowChange{Sequence: sequence, Row: len(changes), Columns: columns})
		}
	}
	return changes, from, nil
}
