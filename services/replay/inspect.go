package replay

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

const (
	// defaultListedItems is the size of a page of items where the request has none.
	defaultListedItems = 100
	// rowsReadTogether is the size in bytes of the rows that ListItems copies at once.
	rowsReadTogether = 8 << 20
)

// Inspect describes the ring and its tables.
func (n *node) Inspect(ctx context.Context, req *replayv1.InspectRequest) (*replayv1.InspectResponse, error) {
	names := n.tables.names
	if req.GetTable() != "" {
		names = []string{req.GetTable()}
	}
	res := &replayv1.InspectResponse{}
	for _, name := range names {
		t, err := n.table(ctx, name)
		if err != nil {
			return nil, connectError(err)
		}
		res.Tables = append(res.Tables, tableInfoOf(t.Inspect()))
	}
	if n.file != nil {
		res.File = n.file.status()
	}
	_, err := n.ring.Oldest(ctx) // fails if the ring was ended
	if err == nil {
		res.Ring, err = n.inspectRing()
	}
	if err != nil {
		return nil, connectError(err)
	}
	return res, nil
}

// inspectRing describes the ring. It visits its areas and one number for each 4096 rows.
func (n *node) inspectRing() (*replayv1.RingInfo, error) {
	stats, err := n.ring.Stats()
	if err != nil {
		return nil, err
	}
	holders, err := n.ring.Holders()
	if err != nil {
		return nil, err
	}
	info := &replayv1.RingInfo{
		Id: n.ring.ID().String(), File: n.ring.Path(), FileBytes: n.ring.Size(), RowBytes: n.rowSize,
		Capacity: stats.Capacity, Rows: stats.Readable, Written: stats.Written,
		Held: stats.Held, Areas: uint64(stats.Areas), Skipped: stats.Skipped, Refused: stats.Refused, TakenOver: stats.TakenOver, //nolint:gosec // not negative
	}
	for _, h := range holders {
		info.Holders = append(info.Holders, holderMessage(h))
	}
	return info, nil
}

// ListItems returns items by their keys, or a page of a table.
func (n *node) ListItems(ctx context.Context, req *replayv1.ListItemsRequest) (*replayv1.ListItemsResponse, error) {
	res, err := n.listItems(ctx, req)
	if err != nil {
		return nil, connectError(err)
	}
	return res, nil
}

func (n *node) listItems(ctx context.Context, req *replayv1.ListItemsRequest) (*replayv1.ListItemsResponse, error) {
	t, err := n.table(ctx, req.GetTable())
	if err != nil {
		return nil, err
	}
	res := &replayv1.ListItemsResponse{RingId: n.ring.ID().String()}
	var rows *rowsOfItems
	if req.GetRows() {
		if rows, err = n.rowsOfItems(req.GetColumns()); err != nil {
			return nil, err
		}
		res.Columns = rows.names
	}
	byKey := len(req.GetKeys()) > 0
	states, next, err := n.states(t, req)
	if err != nil {
		return nil, err
	}
	for i := range states {
		s := &states[i]
		item := &replayv1.ItemState{
			Key: uint64(s.Key()), Runs: runsMessage(s.Run, s.More), Priority: s.Priority, Sampled: s.Sampled,
			AgeNs: uint64(s.Age), //nolint:gosec // not negative
		}
		if rows != nil {
			fits, err := rows.fit(item.GetRuns(), len(res.GetItems()) == 0)
			if err != nil {
				return nil, err
			}
			if !fits {
				next = s.Slot
				break
			}
			complete, err := rows.read(ctx, item)
			if err != nil {
				return nil, err
			}
			switch {
			case complete:
			case byKey:
				return nil, noItem(req.GetTable(), s.Key(), "one of its rows was overwritten", t.Len())
			default:
				continue // the item leaves the table
			}
		}
		res.Items = append(res.Items, item)
	}
	if !byKey {
		res.Next = next
	}
	return res, nil
}

// states returns the items that a request asks for, and where the next page begins, or 0.
func (n *node) states(t *table.Table, req *replayv1.ListItemsRequest) ([]table.State, uint32, error) {
	if most := max(len(req.GetKeys()), int(req.GetItems())); most > maxSampledItems {
		return nil, 0, fmt.Errorf("list %d items of table %q: %w: at most %d fit into one response", most, req.GetTable(), ErrArgument, maxSampledItems)
	}
	if len(req.GetKeys()) == 0 {
		wanted := defaultListedItems
		if req.GetItems() > 0 {
			wanted = int(req.GetItems())
		}
		states := make([]table.State, wanted)
		found, next := t.Items(req.GetFrom(), states)
		if found < wanted {
			next = 0
		}
		return states[:found], next, nil
	}
	states, current := make([]table.State, len(req.GetKeys())), n.isRing(req.GetRingId())
	for i, key := range keysOf(req.GetKeys()) {
		if !current {
			return nil, 0, noItem(req.GetTable(), key, "it was an item of the replay before it was restarted", t.Len())
		}
		s, ok := t.Get(key)
		if !ok {
			return nil, 0, noItem(req.GetTable(), key, "it left the table, or never was in it", t.Len())
		}
		states[i] = s
	}
	return states, 0, nil
}

func noItem(name string, key table.Key, why string, items int) error {
	return fmt.Errorf("%w: table %q has no item %x: %s; the table has %d items", ErrKey, name, uint64(key), why, items)
}

// rowsOfItems reads some columns of items' rows for one response.
type rowsOfItems struct {
	node    *node
	names   []string
	columns []int
	// rowSize is the size of these columns of a row, left how many bytes of the response are left.
	rowSize, left uint64
	head          *ring.ReadHead
	batch         *ring.Batch
}

// rowsOfItems returns a reader of the named columns, or of all if there are no names.
func (n *node) rowsOfItems(names []string) (*rowsOfItems, error) {
	layout := n.ring.Layout()
	r := &rowsOfItems{node: n, left: maxResponse}
	chosen, err := subset(layout, names)
	if err != nil {
		return nil, err
	}
	for _, i := range chosen {
		r.names = append(r.names, layout.Columns[i].Name)
	}
	r.columns = chosen
	r.rowSize = max(1, columnsOf(layout, chosen).RowBytes())
	if r.head, err = n.ring.Reader(); err != nil {
		return nil, err
	}
	r.batch, err = ring.NewBatch(layout, 0)
	return r, err
}

// subset returns the indexes of the named columns in their order, or of all if there are no names.
func subset(layout ring.Layout, names []string) ([]int, error) {
	var chosen []int
	for _, name := range names {
		i := slices.IndexFunc(layout.Columns, func(c ring.Column) bool { return c.Name == name })
		if i < 0 {
			known := make([]string, 0, len(layout.Columns))
			for _, c := range layout.Columns {
				known = append(known, c.Name)
			}
			return nil, fmt.Errorf("%w: no column %q; there are %v", ring.ErrLayout, name, known)
		}
		chosen = append(chosen, i)
	}
	if len(names) == 0 {
		for i := range layout.Columns {
			chosen = append(chosen, i)
		}
	}
	return chosen, nil
}

// columnsOf returns a layout of some columns.
func columnsOf(layout ring.Layout, chosen []int) ring.Layout {
	some := ring.Layout{Capacity: layout.Capacity}
	for _, i := range chosen {
		some.Columns = append(some.Columns, layout.Columns[i])
	}
	return some
}

// fit reports whether the rows of an item fit into the response. The first item of a response must.
func (r *rowsOfItems) fit(runs []*replayv1.Run, first bool) (bool, error) {
	rows := uint64(rowsIn(runs)) //nolint:gosec // not negative
	if fits := rows <= r.left/r.rowSize; fits || !first {
		return fits, nil
	}
	return false, connect.Errorf(connect.CodeResourceExhausted,
		"read the %d rows of an item: they have %d bytes each, and at most %d fit into one response: choose fewer columns",
		rows, r.rowSize, uint64(maxResponse))
}

// read sets the columns of an item, and reports whether none of its rows was overwritten.
func (r *rowsOfItems) read(ctx context.Context, item *replayv1.ItemState) (complete bool, err error) {
	layout, rows := r.node.ring.Layout(), uint64(rowsIn(item.GetRuns())) //nolint:gosec // not negative
	for _, i := range r.columns {
		c := layout.Columns[i]
		item.Columns = append(item.Columns, &tensorv1.Tensor{Dtype: tensorv1.DataType(c.DType), Shape: append([]uint64{rows}, c.Shape...)})
	}
	most := int(max(1, rowsReadTogether/r.node.rowSize)) //nolint:gosec // at most rowsReadTogether
	for some := range slices.Chunk(appendRuns(nil, item.GetRuns()), most) {
		lost, err := r.head.At(ctx, some, r.batch)
		if err != nil || len(lost) > 0 {
			return false, err
		}
		for k, i := range r.columns {
			item.Columns[k].Data = append(item.Columns[k].Data, r.batch.Bytes(i)...)
		}
	}
	r.left -= rows * r.rowSize
	return true, nil
}

// Inspect describes the ring and the tables: sizes, rates, priorities, limiters, the calls that
// wait, and the processes that hold areas. Neither the ring nor a table is scanned.
func (c *Client) Inspect(ctx context.Context) (*replayv1.InspectResponse, error) {
	if err := c.opened(); err != nil {
		return nil, err
	}
	res, err := c.Handle().Inspect(ctx, &replayv1.InspectRequest{})
	if err != nil {
		return nil, ringError(err)
	}
	return res, nil
}

// TableItem is an item as it is in its table.
type TableItem struct {
	Key Key
	// Sequences are the sequence numbers of the item's rows.
	Sequences []uint64
	Priority  float64
	// Sampled is how often the item was sampled.
	Sampled uint32
	// Age is the time since the item was inserted.
	Age time.Duration
	// Rows are its rows, with the columns asked for; nil without [WithRows].
	Rows *Batch
}

// ItemsOption configures [Client.Item] and [Client.Items].
type ItemsOption func(req *replayv1.ListItemsRequest)

// WithRows returns the rows of items too: the named columns, or all. An item of which a row was
// overwritten meanwhile is not returned.
func WithRows(columns ...string) ItemsOption {
	return func(req *replayv1.ListItemsRequest) { req.Rows, req.Columns = true, columns }
}

// Item returns an item of a table without sampling it. If the table has no item with this key, the
// error matches [ErrKey].
func (c *Client) Item(ctx context.Context, tableName string, key Key, options ...ItemsOption) (TableItem, error) {
	req := &replayv1.ListItemsRequest{Table: tableName, Keys: []uint64{key.number}, RingId: key.ring}
	items, _, err := c.listItems(ctx, req, options)
	if err != nil {
		return TableItem{}, err
	}
	if len(items) != 1 {
		return TableItem{}, fmt.Errorf("invalid response from the replay: %w: %d items instead of one", ErrArgument, len(items))
	}
	return items[0], nil
}

// Items iterates over the items of a table without sampling them, while it is used: each item is as
// it was at one time, and one that is in the table all the time occurs once. It ends with the first
// error.
func (c *Client) Items(ctx context.Context, tableName string, options ...ItemsOption) iter.Seq2[TableItem, error] {
	return func(yield func(TableItem, error) bool) {
		for from := uint32(0); ; {
			items, next, err := c.listItems(ctx, &replayv1.ListItemsRequest{Table: tableName, From: from, Items: 1000}, options) //nolint:mnd // a page
			if err != nil {
				yield(TableItem{}, err)
				return
			}
			for _, it := range items {
				if !yield(it, nil) {
					return
				}
			}
			if next <= from {
				return
			}
			from = next
		}
	}
}

func (c *Client) listItems(ctx context.Context, req *replayv1.ListItemsRequest, options []ItemsOption) ([]TableItem, uint32, error) {
	if err := c.opened(); err != nil {
		return nil, 0, err
	}
	for _, o := range options {
		o(req)
	}
	var layout ring.Layout
	if req.GetRows() {
		chosen, err := subset(c.layout, req.GetColumns())
		if err != nil {
			return nil, 0, err
		}
		layout = columnsOf(c.layout, chosen)
	}
	res, err := c.Handle().ListItems(ctx, req)
	if err != nil {
		return nil, 0, ringError(err)
	}
	items := make([]TableItem, len(res.GetItems()))
	for i, it := range res.GetItems() {
		items[i] = TableItem{
			Key: keyOf(res.GetRingId(), req.GetTable(), it.GetKey(), it.GetRuns()), Sequences: appendRuns(nil, it.GetRuns()), Priority: it.GetPriority(),
			Sampled: it.GetSampled(), Age: time.Duration(it.GetAgeNs()), //nolint:gosec // since the node began
		}
		if req.GetRows() {
			rows := &replayv1.Batch{Rows: uint64(len(items[i].Sequences)), Columns: it.GetColumns(), Sequence: items[i].Sequences}
			if items[i].Rows, err = batchOf(layout, rows); err != nil {
				return nil, 0, fmt.Errorf("invalid response from the replay: %w", err)
			}
		}
	}
	return items, res.GetNext(), nil
}
