package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/bench/gen/rows/v1/rowsv1raylink"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay"
)

// Tables of a replay whose load has items: all items, and the newest of them.
const (
	allItems  = "all"
	fewItems  = "few"
	mostOfFew = 10_000
)

// Parameters of tables and samplers.
const (
	priorityExponent = 0.6
	weightExponent   = 0.4
	prefetched       = 32
	prefetchedAfar   = 16 // from another machine: half of the buffers that a node keeps
)

// keyStore has keys that are drawn, and whose priorities are updated, without any rows.
type keyStore interface {
	draw(ctx context.Context, n int) error
	update(ctx context.Context, n int) error
}

// replayOwner hosts a replay in this process, and uses its table.
type replayOwner struct {
	rt     *raylink.Runtime
	handle *replayv1raylink.Replay
	// hidden are directories that were renamed, so that others have neither files nor Unix sockets.
	hidden []string
	// keys are those of all items, in a random order; next is the first one of the next update.
	keys []uint64
	next int
	rng  *rand.Rand
}

const elsewhere = ".elsewhere"

// serveReplay hosts a replay in this process. If it is remote, the files are hidden from others.
func serveReplay(ctx context.Context, load replayLoad, size int, dir string) (*replayOwner, error) {
	columns := map[int][]*tensorv1.Column{
		64: rowsv1raylink.Row64Row.Columns(), 1024: rowsv1raylink.Row1024Row.Columns(),
		3072: rowsv1raylink.Row3072Row.Columns(), 28672: rowsv1raylink.Row28672Row.Columns(),
	}[size]
	config := &replayv1.ReplayConfig{Columns: columns, CapacityBytes: uint64(load.bytes), Directory: dir}
	if load.items > 0 {
		sampler := replay.Prioritized(priorityExponent)
		if load.remote {
			sampler = replay.Uniform()
		}
		config.Tables = []*replayv1.TableConfig{
			replay.Table(allItems, sampler, replay.MaxItems(uint64(load.items))),
			replay.Table(fewItems, sampler, replay.MaxItems(mostOfFew)),
		}
	}
	rt, err := raylink.Init(ctx)
	if err != nil {
		return nil, err
	}
	o := &replayOwner{rt: rt, rng: newRand()}
	if err := o.prepare(ctx, config, load); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), 0)) } //nolint:gosec // a load

func (o *replayOwner) prepare(ctx context.Context, config *replayv1.ReplayConfig, load replayLoad) error {
	if load.remote {
		config.Directory = filepath.Join(config.GetDirectory(), "remote-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(config.GetDirectory(), 0o700); err != nil {
			return err
		}
	}
	var err error
	if o.handle, err = replayv1raylink.CreateReplay(ctx, o.rt, config, runtime.ParentProcess()); err != nil {
		return err
	}
	if load.items > 0 || load.remote {
		if err := o.fill(ctx, load); err != nil {
			return err
		}
	}
	if !load.remote {
		return nil
	}
	for _, dir := range []string{config.GetDirectory(), o.handle.Ref().Record().GetHost().GetDirectory()} {
		if err := os.Rename(dir, dir+elsewhere); err != nil {
			return err
		}
		o.hidden = append(o.hidden, dir)
	}
	return nil
}

// fill writes all rows of the ring, and makes items of the newest ones: one begins at each row.
func (o *replayOwner) fill(ctx context.Context, load replayLoad) error {
	client, err := replay.OpenClient(ctx, o.handle)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // it only unmaps
	const together = 256
	batch, err := client.NewBatch(together)
	if err != nil {
		return err
	}
	content := batch.Bytes(0)
	for i := range content {
		content[i] = byte(i*31 + i>>10)
	}
	// The node writes them, so that the pages are in the page table of its own mapping.
	first := client.Layout().Columns[0]
	column := tensorv1.Tensor{Dtype: tensorv1.DataType(first.DType), Shape: append([]uint64{together}, first.Shape...), Data: content}
	write := &replayv1.WriteRequest{Batch: &replayv1.Batch{Rows: together, Columns: []*tensorv1.Tensor{&column}}}
	capacity := int(client.Layout().Capacity)
	var sequences []uint64
	for left := capacity; left > 0; left -= together {
		if left < together {
			write.Batch.Rows, column.Shape[0], column.Data = uint64(left), uint64(left), content[:left*len(content)/together]
		}
		res, err := o.handle.Write(ctx, write)
		if err != nil {
			return err
		}
		if res.GetNoRoom() != nil {
			return fmt.Errorf("the ring has no room for the first %d rows", capacity)
		}
		sequences = res.GetSequence()
	}
	if load.items == 0 {
		return nil
	}
	end := sequences[len(sequences)-1] + 1
	if end != uint64(capacity) {
		return fmt.Errorf("%d rows have sequence numbers up to %d", capacity, end)
	}
	for table, items := range map[string]int{allItems: load.items, fewItems: min(mostOfFew, load.items)} {
		first := capacity - items - load.length + 1
		if first < 0 {
			return fmt.Errorf("the ring has %d rows, too few for %d items of %d rows", capacity, items, load.length)
		}
		keys, err := o.insert(ctx, table, first, items, load.length)
		if err != nil {
			return err
		}
		if table == allItems {
			o.keys = keys
		}
	}
	o.rng.Shuffle(len(o.keys), func(i, j int) { o.keys[i], o.keys[j] = o.keys[j], o.keys[i] })
	return nil
}

// insert inserts items with random priorities, and returns their keys.
func (o *replayOwner) insert(ctx context.Context, table string, first, n, length int) ([]uint64, error) {
	const together = 4096
	items, runs, priorities := make([]replayv1.Item, together), make([]replayv1.Run, together), make([]float64, together)
	req := &replayv1.CreateItemsRequest{Table: table, Items: make([]*replayv1.Item, together)}
	for i := range items {
		runs[i].Length = uint32(length)
		items[i].Runs, items[i].Priority = []*replayv1.Run{&runs[i]}, &priorities[i]
		req.Items[i] = &items[i]
	}
	keys := make([]uint64, 0, n)
	for len(keys) < n {
		req.Items = req.GetItems()[:min(together, n-len(keys))]
		for i := range req.GetItems() {
			runs[i].First = uint64(first + len(keys) + i)
			priorities[i] = o.rng.Float64()
		}
		res, err := o.handle.CreateItems(ctx, req)
		if err != nil {
			return nil, err
		}
		if len(res.GetKeys()) != len(req.GetItems()) {
			return nil, fmt.Errorf("only %d of %d items were inserted into table %s", len(keys)+len(res.GetKeys()), n, table)
		}
		keys = append(keys, res.GetKeys()...)
	}
	return keys, nil
}

// draw draws items in the process of the table.
func (o *replayOwner) draw(ctx context.Context, n int) error {
	res, err := o.handle.SampleItems(ctx, &replayv1.SampleItemsRequest{Table: allItems, Items: uint32(n)})
	if err == nil && len(res.GetItems()) != n {
		err = fmt.Errorf("%d of %d items were drawn", len(res.GetItems()), n)
	}
	return err
}

// update changes priorities in the process of the table.
func (o *replayOwner) update(ctx context.Context, n int) error {
	if o.next+n > len(o.keys) {
		o.next = 0
	}
	req := &replayv1.UpdatePrioritiesRequest{Table: allItems, Keys: o.keys[o.next : o.next+n], Priorities: make([]float64, n)}
	for i := range req.GetPriorities() {
		req.Priorities[i] = o.rng.Float64()
	}
	o.next += n
	res, err := o.handle.UpdatePriorities(ctx, req)
	if err == nil && res.GetStale() > 0 {
		err = fmt.Errorf("%d of %d items have left the table", res.GetStale(), n)
	}
	return err
}

func (o *replayOwner) close() error {
	var errs []error
	for _, dir := range o.hidden {
		errs = append(errs, os.Rename(dir+elsewhere, dir))
	}
	return errors.Join(append(errs, o.rt.Close())...)
}

// sumTree is the least that a prioritized table needs: a binary sum tree in an array.
type sumTree struct {
	items, leaves int
	sums          []float64
	rng           *rand.Rand
	drawn         int
}

func newSumTree(items int) *sumTree {
	t := &sumTree{items: items, leaves: 1, rng: newRand()}
	for t.leaves < items {
		t.leaves *= 2
	}
	t.sums = make([]float64, 2*t.leaves)
	for i := range items {
		t.sums[t.leaves+i] = t.rng.Float64()
	}
	for i := t.leaves - 1; i > 0; i-- {
		t.sums[i] = t.sums[2*i] + t.sums[2*i+1]
	}
	return t
}

func (t *sumTree) draw(_ context.Context, n int) error {
	for range n {
		x, i := t.rng.Float64()*t.sums[1], 1
		for i < t.leaves {
			i *= 2
			if x >= t.sums[i] {
				x -= t.sums[i]
				i++
			}
		}
		t.drawn += i - t.leaves
	}
	return nil
}

func (t *sumTree) update(_ context.Context, n int) error {
	for range n {
		i := t.leaves + t.rng.IntN(t.items)
		t.sums[i] = t.rng.Float64()
		for i /= 2; i > 0; i /= 2 {
			t.sums[i] = t.sums[2*i] + t.sums[2*i+1]
		}
	}
	return nil
}
