package storagetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect/v2"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
)

// readPause is the pause between two reads of a reader.
const readPause = 3 * time.Millisecond

// read reads the keys that writers share, and reports each answer.
func (w *worker) read(ctx context.Context, h *storagev1raylink.Storage) {
	const who = "reader"
	troubled := w.troubled(who)
	for ; ctx.Err() == nil; rest(ctx, readPause) {
		r := &read{Seen: w.seen.Load()}
		var err error
		switch rand.IntN(3) {
		case 0:
			group := rand.IntN(groups)
			r.Missing = []string{fmt.Sprint("batches/", group)}
			for i := range groupKeys {
				r.Missing = append(r.Missing, groupKey(group, i))
			}
			var res *storagev1.GetManyResponse
			if res, err = h.GetMany(ctx, &storagev1.GetManyRequest{Keys: r.Missing}); len(res.GetEntries()) > 0 {
				r.Entries, r.Missing = entries(res.GetEntries()), nil
			}
			if n := len(r.Entries); err == nil && n != 0 && n != groupKeys+1 {
				w.tell(answer{Event: faultEvent, Who: who, Error: fmt.Sprintf("a batch is torn: only %s are there", r.Entries)})
			}
		case 1:
			key := fmt.Sprint("counter/", rand.IntN(counters))
			var res *storagev1.GetResponse
			res, err = h.Get(ctx, &storagev1.GetRequest{Key: key})
			r.Entries = []change{{ID: res.GetId(), Key: key, Value: textOf(res.GetValue())}}
			if connect.CodeOf(err) == connect.CodeNotFound {
				r.Entries, r.Missing, err = nil, []string{key}, nil
			}
		case 2:
			prefix := "conditional/"
			var res *storagev1.ListResponse
			res, err = h.List(ctx, &storagev1.ListRequest{Prefix: prefix, Reverse: rand.IntN(2) == 0})
			r.Entries, r.Prefix = entries(res.GetEntries()), &prefix
		}
		if err != nil {
			if ctx.Err() == nil {
				troubled(err)
			}
			continue
		}
		for _, e := range r.Entries {
			w.saw(e.ID)
		}
		w.tell(answer{Event: readEvent, Who: who, Read: r})
	}
}

// watch watches a prefix from the beginning. When a call ends, the next one resumes by id.
func (w *worker) watch(ctx context.Context, h *storagev1raylink.Storage, who, prefix string) {
	troubled := w.troubled(who)
	w.tell(answer{Event: sentEvent, Who: who, Sent: &sent{Prefix: prefix}})
	since := uint64(0)
	for ; ctx.Err() == nil; rest(ctx, retryPause) {
		err := w.watchOnce(ctx, h, prefix, who, &since)
		switch {
		case ctx.Err() != nil:
		case connect.CodeOf(err) == connect.CodeOutOfRange:
			w.tell(fail(answer{Event: faultEvent, Who: who}, fmt.Errorf("resume from id %d: %w", since, err)))
			return
		default:
			troubled(err)
		}
	}
}

// watchOnce makes one call, and advances since.
func (w *worker) watchOnce(ctx context.Context, h *storagev1raylink.Storage, prefix, who string, since *uint64) error {
	stream, err := h.Watch(ctx, &storagev1.WatchRequest{Prefix: prefix, Since: new(*since)})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for first := true; ; first = false {
		res, err := stream.Receive()
		if err != nil {
			return err
		}
		s := &sent{Prefix: prefix, Until: res.GetId()}
		for _, c := range res.GetChanges() {
			s.Changes = append(s.Changes, changeOf(c))
			w.saw(c.GetId())
		}
		w.saw(res.GetId())
		w.tell(answer{Event: sentEvent, Who: who, Sent: s})
		if n := len(s.Changes); first && n > 0 || n > 0 && s.Changes[n-1].ID > s.Until || s.Until < *since {
			w.tell(answer{Event: faultEvent, Who: who, Error: fmt.Sprintf("after id %d a response (first: %t) has %d changes and says that all up to id %d were sent", *since, first, n, s.Until)})
		}
		*since = res.GetId()
	}
}

func changeOf(c *storagev1.Change) change {
	if c.GetValue() == nil {
		return change{ID: c.GetId(), Key: c.GetKey(), Removed: true}
	}
	return change{ID: c.GetId(), Key: c.GetKey(), Value: textOf(c.GetValue())}
}
