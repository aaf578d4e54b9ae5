package storage

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage/internal/table"
)

const (
	// watchStep is how many changes a watcher looks at with the state locked.
	watchStep = 1024
	// progressStep is after how many changes of other keys a watcher is sent the id from which it
	// can resume.
	progressStep = 4096
)

// Watch sends changes.
func (n *node) Watch(ctx context.Context, req *storagev1.WatchRequest, stream storagev1raylink.StorageWatchServerStream) error {
	check := checkPrefix
	if req.GetExact() {
		check = checkKey
	}
	if err := check(req.GetPrefix()); err != nil {
		return err
	}
	stopping := runtime.NodeFrom(ctx).Stopping()
	n.mu.Lock()
	u := n.table.Usage()
	at := u.CommittedID
	if req.Since != nil {
		at = req.GetSince()
	}
	_, known := n.table.Since(at, 1)
	if !known && req.GetExact() && at > 0 && n.isCurrent(req.GetPrefix(), at) {
		at, known = u.CommittedID, true // the key has no later changes
	}
	n.mu.Unlock()
	if !known && at < n.first {
		return historyLost(at, u,
			"watch from the id %d: the storage was started again since, and its data were only in memory; read the keys again "+
				"(the ids from which a watch can resume are %d to %d)")
	}
	if !known {
		return historyLost(at, u, "watch from the id %d: it is not known, or not any more; the ids from which a watch can resume are %d to %d")
	}
	sent := at
	if err := stream.Send(&storagev1.WatchResponse{Id: at}); err != nil {
		return err
	}
	for {
		n.mu.Lock()
		changes, known := n.table.Since(at, watchStep)
		u := n.table.Usage()
		if known && len(changes) == 0 && n.changed == nil {
			n.changed = make(chan struct{})
		}
		changed := n.changed
		n.mu.Unlock()
		switch {
		case !known:
			return historyLost(at, u,
				"the watcher is too slow: changes after the id %d are not known any more; the ids from which a watch can resume are %d to %d")
		case len(changes) == 0:
			select {
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-stopping:
				return connect.Errorf(connect.CodeUnavailable, "the storage stops: watch again from the id %d", at)
			}
			continue
		}
		last := changes[len(changes)-1].ID
		for res := range inResponses(req, changes) {
			if err := stream.Send(res); err != nil {
				return err
			}
			sent = res.GetId()
		}
		if at = last; at-sent >= progressStep {
			if err := stream.Send(&storagev1.WatchResponse{Id: at}); err != nil {
				return err
			}
			sent = at
		}
	}
}

// isCurrent reports whether a key's last write has an id, and is committed. The caller must hold
// n.mu.
func (n *node) isCurrent(key string, id uint64) bool {
	e, ok := n.table.Get(key)
	return ok && e.ID == id && id <= n.table.CommittedID()
}

func matches(req *storagev1.WatchRequest, key string) bool {
	if req.GetExact() {
		return key == req.GetPrefix()
	}
	return strings.HasPrefix(key, req.GetPrefix())
}

// inResponses returns the responses with those of the changes that a request asks for, each of a
// limited size. The last one has the id of the last change; there are none if no change matches.
func inResponses(req *storagev1.WatchRequest, changes []table.Change) iter.Seq[*storagev1.WatchResponse] {
	return func(yield func(*storagev1.WatchResponse) bool) {
		res, size := new(storagev1.WatchResponse), 0
		for i := range changes {
			if !matches(req, changes[i].Key) {
				continue
			}
			c := changes[i].Proto()
			added := framed(proto.Size(c))
			if size+added > maxPageBytes && size > 0 {
				if !yield(res) {
					return
				}
				res, size = new(storagev1.WatchResponse), 0
			}
			res.Changes, size = append(res.Changes, c), size+added
			res.Id = c.GetId()
		}
		if size > 0 {
			res.Id = changes[len(changes)-1].ID
			yield(res)
		}
	}
}

// historyLost is the error of a watcher that can't resume from an id. The format has the ids since,
// oldest and newest.
func historyLost(since uint64, u table.Usage, format string) error {
	return detailed(connect.Errorf(connect.CodeOutOfRange, format, since, u.Oldest, u.CommittedID),
		&storagev1.HistoryLost{Since: since, Oldest: u.Oldest, Newest: u.CommittedID})
}

// selectorsOf returns selectors that select each entry once, in the order of the entries' keys.
func selectorsOf(keys, prefixes []string) []table.Selector {
	all := make([]table.Selector, 0, len(keys)+len(prefixes))
	for _, key := range keys {
		all = append(all, table.Selector{Text: key})
	}
	for _, prefix := range prefixes {
		all = append(all, table.Selector{Text: prefix, Prefix: true})
	}
	slices.SortFunc(all, func(a, b table.Selector) int {
		if order := strings.Compare(a.Text, b.Text); order != 0 {
			return order
		}
		if a.Prefix && !b.Prefix {
			return -1
		}
		if b.Prefix && !a.Prefix {
			return 1
		}
		return 0
	})
	// What a prefix covers follows it directly.
	kept := all[:0]
	for _, s := range all {
		if len(kept) > 0 {
			before := kept[len(kept)-1]
			if before == s || before.Prefix && strings.HasPrefix(s.Text, before.Text) {
				continue
			}
		}
		kept = append(kept, s)
	}
	return kept
}

// Export sends entries of one moment.
func (n *node) Export(ctx context.Context, req *storagev1.ExportRequest, stream storagev1raylink.StorageExportServerStream) error {
	for _, prefix := range req.GetPrefixes() {
		if err := checkPrefix(prefix); err != nil {
			return err
		}
	}
	for _, key := range req.GetKeys() {
		if err := checkKey(key); err != nil {
			return err
		}
	}
	selectors := selectorsOf(req.GetKeys(), req.GetPrefixes())
	var snapshot *table.Snapshot
	var id uint64
	err := n.read(ctx, func() uint64 {
		snapshot, id = n.table.Snapshot(selectors...), n.table.LastID()
		return n.provisional()
	})
	if err != nil {
		return err
	}
	res, size := &storagev1.ExportResponse{Id: id}, 0
	for e := range snapshot.Entries() {
		if isExpired(&e) {
			continue
		}
		p := e.Proto()
		next := framed(proto.Size(p))
		if size+next > maxPageBytes && size > 0 {
			if err := stream.Send(res); err != nil {
				return err
			}
			res, size = &storagev1.ExportResponse{Id: id}, 0
		}
		res.Entries, size = append(res.Entries, p), size+next
	}
	return stream.Send(res)
}

// Import stores entries, all or none.
func (n *node) Import(ctx context.Context, stream storagev1raylink.StorageImportServerStream) (*storagev1.ImportResponse, error) {
	var (
		durability storagev1.Durability
		writes     []table.Write
		bytes      uint64
	)
	for first := true; ; first = false {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if first {
			durability = req.GetDurability()
			if err := n.checkDurability(durability); err != nil {
				return nil, err
			}
		}
		for _, e := range req.GetEntries() {
			w, err := n.imported(e)
			if err != nil {
				return nil, err
			}
			bytes += uint64(len(e.GetKey()) + proto.Size(e.GetValue())) //nolint:gosec // not negative
			writes = append(writes, w)
		}
		// The state could not hold them anyway.
		if count := uint64(len(writes)); count > n.limits.Keys {
			return nil, overLimit(connect.CodeResourceExhausted, "", "keys", n.limits.Keys, count,
				"import %d entries: the storage's limit is %d keys", count, n.limits.Keys)
		}
		if bytes > n.limits.Bytes {
			return nil, overLimit(connect.CodeResourceExhausted, "", "bytes", n.limits.Bytes, bytes,
				"import %d entries: the storage's limit is %d bytes", len(writes), n.limits.Bytes)
		}
	}
	res := &storagev1.ImportResponse{Entries: uint64(len(writes))}
	err := n.change(ctx, durability, operationFunc(func(v *view) (uint64, error) {
		for _, w := range writes {
			res.Id = v.add(w)
		}
		return res.GetId(), nil
	}))
	if err != nil {
		return nil, err
	}
	return res, nil
}

// imported returns the write of an entry.
func (n *node) imported(e *storagev1.Entry) (table.Write, error) {
	if err := checkKey(e.GetKey()); err != nil {
		return table.Write{}, err
	}
	if err := n.checkValue(e.GetKey(), e.GetValue()); err != nil {
		return table.Write{}, err
	}
	w := table.Write{Key: e.GetKey(), Value: e.GetValue()}
	if at := e.GetExpires(); at != nil {
		if at.CheckValid() != nil || at.AsTime().Year() > 2200 || at.AsTime().Year() < 1970 {
			return table.Write{}, connect.Errorf(connect.CodeInvalidArgument, "import %q: it expires at %s; the year must be 1970 to 2200", e.GetKey(), at)
		}
		w.Expires = max(at.AsTime().UnixNano(), 1)
	}
	return w, nil
}
