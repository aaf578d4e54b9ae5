package storage

import (
	"log/slog"
	"math"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/services/storage/internal/changelog"
	"github.com/raylink/raylink/services/storage/internal/table"
)

const (
	defaultMaxKeys      = 1 << 20
	defaultMaxBytes     = 1 << 30
	defaultHistory      = 1 << 16
	defaultHistoryBytes = 64 << 20
	// maxHistory bounds the configured history.
	maxHistory = 1 << 24
	// maxKey is the maximum length of a key in bytes.
	maxKey = 4096
	// maxOps is the maximum number of operations in a batch, and of keys in GetMany.
	maxOps = 10000
)

// node is a storage node.
//
// The state is in memory, and a log on the disk has the writes by id. A method that writes applies
// the write to the state, provisionally, and adds it to the pending group. Then it gives its turn
// back, and waits until the committer has committed the group. So groups form while the
// previous one is being committed, and the calls of one caller keep their order. What depends on a
// provisional write, an error included, is returned when its group is committed. If a commit fails,
// all provisional writes are rolled back.
//
// Requests and stored values share no memory: the table copies.
type node struct {
	storagev1raylink.UnimplementedStorageNode

	durability storagev1.Durability
	directory  string
	limits     table.Limits
	// maxMessage is the maximum size of a response, and maxValue that of a value: with its key it
	// must fit into List's response.
	maxMessage, maxValue int
	logger               *slog.Logger
	// first is the id after which this incarnation's ids begin, in memory; otherwise 0.
	first uint64

	log     changelog.Log // nil in memory; of the committer, but for Sync
	encoded records       // of the committer

	// wake has a value when there is a pending group, and rearm when the next expiry may be earlier
	// than before.
	wake, rearm chan struct{}

	mu    sync.Mutex // guards the fields below; never held while blocking
	table *table.Table
	view  view
	// pending is the group that writes join, and committing the one that is being committed; nil if
	// there is none.
	pending, committing *group
	// spare is memory for the changes of the next group.
	spare []table.Change
	// inMemory has the buffers for the writes of a storage without a log; it is empty otherwise.
	inMemory group
	// failure is why writes fail; nil while they don't.
	failure error
	// changed is closed when more changes are committed; nil while there is no watcher waiting.
	changed chan struct{}
	// nextExpiry is when the expiry task wakes up, in Unix nanoseconds.
	nextExpiry int64
}

// listingBytes is the space in a response for one entry's key, the page token with that key, and
// their framing.
const listingBytes = 4 * maxKey

// newNode returns an empty storage on a host that receives messages of up to maxMessage bytes.
func newNode(config *storagev1.StorageConfig, maxMessage int, logger *slog.Logger) (*node, error) {
	n := &node{
		durability: config.GetDurability(), directory: config.GetDirectory(),
		maxMessage: maxMessage, maxValue: max(maxMessage-listingBytes, 1), logger: logger,
		wake: make(chan struct{}, 1), rearm: make(chan struct{}, 1), nextExpiry: math.MaxInt64,
	}
	switch n.durability {
	case storagev1.Durability_DURABILITY_UNSPECIFIED:
		n.durability = storagev1.Durability_DURABILITY_MEMORY
	case storagev1.Durability_DURABILITY_MEMORY, storagev1.Durability_DURABILITY_ASYNC, storagev1.Durability_DURABILITY_SYNC:
	default:
		return nil, connect.Errorf(connect.CodeInvalidArgument,
			"configure a storage: there is no durability %d; there are memory, async and sync", n.durability)
	}
	if n.directory != "" {
		if n.durability == storagev1.Durability_DURABILITY_MEMORY {
			return nil, connect.Errorf(connect.CodeInvalidArgument,
				"configure a storage: it has the directory %q, but its data are only in memory; set the durability to async or sync", n.directory)
		}
		if !filepath.IsAbs(n.directory) {
			return nil, connect.Errorf(connect.CodeInvalidArgument,
				"configure a storage: the directory %q is relative, to a process that may be on another machine; set an absolute one", n.directory)
		}
	}
	if config.GetHistory() > maxHistory {
		return nil, connect.Errorf(connect.CodeInvalidArgument,
			"configure a storage: a history of %d changes; at most %d are possible", config.GetHistory(), maxHistory)
	}
	n.limits = table.Limits{
		Keys:         orDefault(config.GetMaxKeys(), defaultMaxKeys),
		Bytes:        orDefault(config.GetMaxBytes(), defaultMaxBytes),
		History:      orDefault(config.GetHistory(), defaultHistory),
		HistoryBytes: orDefault(config.GetHistoryBytes(), defaultHistoryBytes),
		MaxValue:     uint64(n.maxValue), //nolint:gosec // not negative
	}
	n.table, n.view.n = table.New(n.limits), n
	return n, nil
}

func orDefault(value, otherwise uint64) uint64 {
	if value == 0 {
		return otherwise
	}
	return value
}

// incarnationBits is how many ids an incarnation of a storage in memory can give. JavaScript's
// numbers are exact up to 2^53: for 8192 incarnations.
const incarnationBits = 40

// startAfter begins the ids of a storage in memory after those that its former incarnations have
// given, of which nothing is left. So an id from before is that of no write, and no watcher can
// resume from it.
func (n *node) startAfter(incarnation uint64) {
	if incarnation > 1 {
		n.first = (incarnation - 1) << incarnationBits
		n.table.Skip(n.first)
	}
}

// restore adds a record of the log to the state, when the log is opened.
func (n *node) restore(r changelog.Record) error {
	return n.table.Restore(r.ID, r.Change)
}

// close closes the log.
func (n *node) close() error {
	if n.log == nil {
		return nil
	}
	return n.log.Close()
}

// unixNow is the time by which entries expire.
func unixNow() int64 { return time.Now().UnixNano() }
