package replay

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// tables are those of a node.
type tables struct {
	configs []*replayv1.TableConfig
	names   []string
	byName  map[string]*table.Table
}

// Limits of a node's tables.
const (
	defaultMaxItems = 1_000_000
	// maxSampledItems bounds the items of one response.
	maxSampledItems = 1 << 16
)

// newTables returns empty tables, or why there can't be such.
func newTables(configs []*replayv1.TableConfig) (*tables, error) {
	return makeTables(configs, func(_ *replayv1.TableConfig, config table.Config) (*table.Table, error) { return table.New(config) })
}

// makeTables returns tables that are made by a function.
func makeTables(configs []*replayv1.TableConfig, newTable func(*replayv1.TableConfig, table.Config) (*table.Table, error)) (*tables, error) {
	ts := &tables{byName: make(map[string]*table.Table)}
	for i, c := range configs {
		if c.GetName() == "" {
			return nil, fmt.Errorf("%w: table %d has no name", table.ErrConfig, i)
		}
		if ts.byName[c.GetName()] != nil {
			return nil, fmt.Errorf("%w: there are two tables %q", table.ErrConfig, c.GetName())
		}
		config, err := tableConfig(c)
		if err != nil {
			return nil, err
		}
		t, err := newTable(c, config)
		if err != nil {
			return nil, err
		}
		ts.configs = append(ts.configs, proto.CloneOf(c))
		ts.names = append(ts.names, c.GetName())
		ts.byName[c.GetName()] = t
	}
	return ts, nil
}

func (ts *tables) close(cause error) {
	for _, t := range ts.byName {
		t.Close(cause)
	}
}

// find returns a table by name.
func (ts *tables) find(name string) (*table.Table, error) {
	if t := ts.byName[name]; t != nil {
		return t, nil
	}
	return nil, noTable(name, ts.names)
}

// noTable returns the error of a table that is not among those of a replay.
func noTable(name string, names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("%w: %q: the replay has no tables: add them to its configuration", ErrTable, name)
	}
	return fmt.Errorf("%w: %q: the replay has %s", ErrTable, name, strings.Join(names, ", "))
}

// table returns a table from which items of overwritten rows were removed.
func (n *node) table(ctx context.Context, name string) (*table.Table, error) {
	t, err := n.tables.find(name)
	if err != nil {
		return nil, err
	}
	oldest, err := n.ring.Oldest(ctx)
	if err != nil {
		return nil, err
	}
	t.Expire(oldest)
	return t, nil
}

// CreateItems inserts items into a table.
func (n *node) CreateItems(ctx context.Context, req *replayv1.CreateItemsRequest) (*replayv1.CreateItemsResponse, error) {
	t, err := n.table(ctx, req.GetTable())
	if err != nil {
		return nil, connectError(err)
	}
	if !n.isRing(req.GetRingId()) {
		return nil, connectError(fmt.Errorf("insert %d items into table %q: their rows are those of the ring before: %w",
			len(req.GetItems()), req.GetTable(), ring.ErrEnded))
	}
	items := itemsOf(req.GetItems())
	keys := make([]table.Key, len(items))
	var done int
	if req.GetWaitMs() > 0 {
		waiting, cancel := waitForItems(ctx, req.GetWaitMs(), req.GetCall())
		defer cancel()
		done, err = t.Insert(waiting, req.GetCaller(), items, keys)
	} else {
		done, err = t.TryInsert(req.GetCaller(), items, keys)
	}
	res := &replayv1.CreateItemsResponse{Keys: make([]uint64, done)}
	for i, key := range keys[:done] {
		res.Keys[i] = uint64(key)
	}
	res.Blocked, err = blockedOf(err)
	if err != nil {
		return nil, connectError(err)
	}
	return res, nil
}

// SampleItems draws items of a table.
func (n *node) SampleItems(ctx context.Context, req *replayv1.SampleItemsRequest) (*replayv1.SampleItemsResponse, error) {
	if req.GetItems() > maxSampledItems {
		return nil, connectError(fmt.Errorf("sample %d items of table %q: %w: at most %d fit into one response",
			req.GetItems(), req.GetTable(), ErrArgument, maxSampledItems))
	}
	t, err := n.table(ctx, req.GetTable())
	if err != nil {
		return nil, connectError(err)
	}
	if req.GetReturned() > 0 && n.isRing(req.GetRingId()) {
		t.Return(int(req.GetReturned()))
	}
	samples := make([]table.Sample, req.GetItems())
	options := table.SampleOptions{Caller: req.GetCaller(), Beta: req.GetBeta()}
	var done int
	if req.GetWaitMs() > 0 {
		waiting, cancel := waitForItems(ctx, req.GetWaitMs(), req.GetCall())
		defer cancel()
		done, err = t.Sample(waiting, samples, options)
	} else {
		done, err = t.TrySample(samples, options)
	}
	res := &replayv1.SampleItemsResponse{RingId: n.ring.ID().String()}
	if req.GetColumns() {
		res.Columns = sampledColumnsOf(samples[:done])
	} else {
		res.Items = sampledItemsOf(samples[:done])
	}
	res.Blocked, err = blockedOf(err)
	if err != nil {
		return nil, connectError(err)
	}
	return res, nil
}

// Waiting says what a call waits for.
func (n *node) Waiting(_ context.Context, req *replayv1.WaitingRequest) (*replayv1.WaitingResponse, error) {
	t, err := n.tables.find(req.GetTable())
	if err != nil {
		return nil, connectError(err)
	}
	res := &replayv1.WaitingResponse{}
	if blocked, ok := t.Waiting(req.GetCall()); ok {
		res.Blocked = blockedMessage(&blocked)
	}
	return res, nil
}

// UpdatePriorities changes the priorities of items.
func (n *node) UpdatePriorities(ctx context.Context, req *replayv1.UpdatePrioritiesRequest) (*replayv1.UpdatePrioritiesResponse, error) {
	t, err := n.table(ctx, req.GetTable())
	if err != nil {
		return nil, connectError(err)
	}
	keys := n.keysOf(req)
	if len(req.GetParts()) > 0 {
		res, err := updateParts(t, keys, req.GetPriorities(), req.GetParts())
		if err != nil {
			return nil, connectError(fmt.Errorf("update priorities of table %q: %w", req.GetTable(), err))
		}
		return res, nil
	}
	stale, err := t.Update(keys, req.GetPriorities())
	if err != nil {
		return nil, connectError(err)
	}
	return &replayv1.UpdatePrioritiesResponse{Stale: uint64(stale)}, nil //nolint:gosec // not negative
}

// DeleteItems removes items from a table.
func (n *node) DeleteItems(ctx context.Context, req *replayv1.DeleteItemsRequest) (*replayv1.DeleteItemsResponse, error) {
	t, err := n.table(ctx, req.GetTable())
	if err != nil {
		return nil, connectError(err)
	}
	stale, err := t.Delete(n.keysOf(req))
	if err != nil {
		return nil, connectError(err)
	}
	return &replayv1.DeleteItemsResponse{Stale: uint64(stale)}, nil //nolint:gosec // not negative
}

// SetLimiter replaces a table's limiter.
func (n *node) SetLimiter(_ context.Context, req *replayv1.SetLimiterRequest) (*replayv1.SetLimiterResponse, error) {
	t, err := n.tables.find(req.GetTable())
	if err != nil {
		return nil, connectError(err)
	}
	l, err := limiterOf(req.GetLimiter())
	if err == nil {
		err = t.SetLimiter(l)
	}
	if err != nil {
		return nil, connectError(err)
	}
	return &replayv1.SetLimiterResponse{}, nil
}

// keysOf returns the keys of a request. If they are those of another ring, no item has them.
func (n *node) keysOf(req interface {
	GetKeys() []uint64
	GetRingId() string
},
) []table.Key {
	keys := keysOf(req.GetKeys())
	if !n.isRing(req.GetRingId()) {
		clear(keys) // no item has the key 0
	}
	return keys
}

// isRing reports whether the node has the ring that a request names, if it names one.
func (n *node) isRing(id string) bool { return id == "" || id == n.ring.ID().String() }

// waitForItems returns the context of a call that waits for a limiter.
func waitForItems(ctx context.Context, ms uint32, call uint64) (context.Context, context.CancelFunc) {
	ctx = table.WithCall(ctx, call)
	if ms == math.MaxUint32 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
}
