package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/services/storage/internal/changelog"
)

// The durabilities, in short.
const (
	inMemory = storagev1.Durability_DURABILITY_MEMORY
	async    = storagev1.Durability_DURABILITY_ASYNC
	synced   = storagev1.Durability_DURABILITY_SYNC
)

// newClient returns a client of an empty storage in memory, without its tasks.
func newClient(t require.TestingT, config *storagev1.StorageConfig) *Client {
	return newSized(t, config, 64<<20)
}

func newSized(t require.TestingT, config *storagev1.StorageConfig, maxMessage int) *Client {
	n, err := newNode(config, maxMessage, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return New(storagev1raylink.NewLocalStorage(n))
}

// fakeLog is a log in memory that can fail, and outlives the node. Like the log on disk it accepts
// only contiguous ids.
type fakeLog struct {
	mu      sync.Mutex // guards the fields below
	records map[uint64][]byte
	last    uint64
	groups  []int // the sizes of the committed groups
	syncs   int
	// took is how long a commit takes.
	took time.Duration
	// failing is the error of commits, syncs and reopening; nil if they succeed.
	failing error
	broken  bool // needs Reopen
}

func newFakeLog() *fakeLog { return &fakeLog{records: map[uint64][]byte{}} }

func (l *fakeLog) Commit(records []changelog.Record, remove []uint64) error {
	l.mu.Lock()
	took := l.took
	l.mu.Unlock()
	if took > 0 {
		time.Sleep(took) //nolint:forbidigo // in a bubble of synctest
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failing != nil {
		l.broken = true
		return l.failing
	}
	if l.broken {
		return errors.New("committed before it was reopened")
	}
	if len(records) == 0 {
		return errors.New("an empty group")
	}
	for _, r := range records {
		if r.ID != l.last+1 {
			return fmt.Errorf("the id %d follows %d", r.ID, l.last)
		}
		l.last = r.ID
		l.records[r.ID] = slices.Clone(r.Change)
	}
	for _, id := range remove {
		if _, ok := l.records[id]; !ok || id == l.last {
			return fmt.Errorf("the id %d can't be removed", id)
		}
		delete(l.records, id)
	}
	l.groups = append(l.groups, len(records))
	return nil
}

func (l *fakeLog) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.syncs++
	return l.failing
}

func (l *fakeLog) Reopen(last uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last != l.last {
		return fmt.Errorf("reopened with the last id %d instead of %d", last, l.last)
	}
	l.broken = l.failing != nil
	return l.failing
}

func (l *fakeLog) Last() uint64 { return 0 }

func (l *fakeLog) Close() error { return nil }

func (l *fakeLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failing = err
}

func (l *fakeLog) committed() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.groups)
}

// running is a node with its tasks.
type running struct {
	*Client

	node  *node
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// start starts a node with the records of a log; log is nil if the node is in memory.
func start(t require.TestingT, config *storagev1.StorageConfig, log *fakeLog) *running {
	n, err := newNode(config, 64<<20, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Client: New(storagev1raylink.NewLocalStorage(n)), node: n, stop: cancel}
	if log != nil {
		for _, id := range slices.Sorted(maps.Keys(log.records)) {
			require.NoError(t, n.restore(changelog.Record{ID: id, Change: log.records[id]}))
		}
		n.log = log
		r.tasks.Go(func() { _ = n.commit(ctx) })
	}
	r.tasks.Go(func() { _ = n.expire(ctx) })
	return r
}

// end stops the node's tasks.
func (r *running) end() {
	r.stop()
	r.tasks.Wait()
}
