package storagetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"

	"connectrpc.com/connect/v2"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
)

const (
	// counters, conditionals and groups are the numbers of keys that all writers share: those that
	// are added to, those that are put on conditions, and groups of keys of batches.
	counters, conditionals, groups = 4, 3, 4
	// groupKeys is the number of keys in a group, which a batch puts to the same value.
	groupKeys = 4
	// appends is how many times a writer appends to a key before it takes the next one, and kept
	// how many of its own keys it keeps.
	appends, kept = 10, 20
)

// groupKey returns a key of a group.
func groupKey(group, i int) string { return fmt.Sprintf("batch/%d/%d", group, i) }

// writer makes random writes, one at a time.
type writer struct {
	*worker

	h        *storagev1raylink.Storage
	n, round int
	who      string
	count    int
	// own are the keys that the writer has put.
	own []string
}

func (w *writer) run(ctx context.Context) {
	troubled := w.troubled(w.who)
	for ; ctx.Err() == nil; w.count++ {
		if err := w.one(ctx); err != nil && ctx.Err() == nil {
			troubled(err)
			rest(ctx, retryPause)
		}
	}
}

// token returns a value that is of no other write.
func (w *writer) token() string { return fmt.Sprintf("%d.%d.%d", w.n, w.round, w.count) }

// one makes a write.
func (w *writer) one(ctx context.Context) error {
	switch kind := rand.IntN(10); {
	case kind < 3:
		return w.add(ctx, fmt.Sprint("counter/", rand.IntN(counters)))
	case kind < 5:
		return w.putOwn(ctx)
	case kind < 7:
		return w.batch(ctx, rand.IntN(groups))
	case kind < 8:
		return w.append(ctx)
	case kind < 9 || len(w.own) < kept:
		return w.conditional(ctx, fmt.Sprint("conditional/", rand.IntN(conditionals)))
	default:
		return w.deleteOwn(ctx)
	}
}

// try makes an attempt and reports it. The call sets the ids of the writes. An attempt is reported
// even if the writer is ended meanwhile.
func (w *writer) try(a attempt, call func(a *attempt) error) error {
	a.Seen = w.seen.Load()
	err := call(&a)
	switch connect.CodeOf(err) {
	case connect.CodeAborted, connect.CodeInvalidArgument, connect.CodeFailedPrecondition:
		a.Outcome = refused
		if a.Conditional { // another writer was faster
			err = nil
		}
	default:
		a.Outcome = unknown
	}
	if err == nil && a.Outcome != refused {
		a.Outcome = acknowledged
		for _, wr := range a.Writes {
			w.saw(wr.ID)
		}
	}
	w.tell(answer{Event: attemptEvent, Who: w.who, Attempt: &a})
	return err
}

func (w *writer) add(ctx context.Context, key string) error {
	return w.try(attempt{Writes: []write{{Kind: addKind, Key: key, Value: "1"}}}, func(a *attempt) error {
		res, err := w.h.Incr(ctx, &storagev1.IncrRequest{Key: key, By: integer(1)})
		a.Writes[0].ID = res.GetId()
		if err == nil {
			a.Writes[0].Result = textOf(res.GetValue())
		}
		return err
	})
}

func (w *writer) putOwn(ctx context.Context) error {
	key := fmt.Sprintf("own/%d/%d/%d", w.n, w.round, w.count)
	err := w.try(attempt{Writes: []write{{Kind: putKind, Key: key, Value: w.token()}}}, func(a *attempt) error {
		res, err := w.h.Put(ctx, &storagev1.PutRequest{Key: key, Value: text(w.token())})
		a.Writes[0].ID = res.GetId()
		return err
	})
	if err == nil {
		w.own = append(w.own, key)
	}
	return err
}

func (w *writer) deleteOwn(ctx context.Context) error {
	key := w.own[0]
	w.own = w.own[1:]
	seen, missing := w.seen.Load(), false
	err := w.try(attempt{Writes: []write{{Kind: deleteKind, Key: key}}}, func(a *attempt) error {
		res, err := w.h.Delete(ctx, &storagev1.DeleteRequest{Key: key})
		a.Writes[0].ID = res.GetId()
		missing = err == nil && !res.GetDeleted()
		return err
	})
	if missing {
		w.tell(answer{Event: readEvent, Who: w.who, Read: &read{Seen: seen, Missing: []string{key}}})
	}
	return err
}

func (w *writer) append(ctx context.Context) error {
	key, part := fmt.Sprintf("text/%d/%d/%d", w.n, w.round, w.count/(10*appends)), w.token()+";"
	return w.try(attempt{Writes: []write{{Kind: appendKind, Key: key, Value: part}}}, func(a *attempt) error {
		res, err := w.h.Append(ctx, &storagev1.AppendRequest{Key: key, Value: text(part)})
		a.Writes[0].ID = res.GetId()
		if err == nil {
			a.Writes[0].Result = strconv.FormatUint(res.GetSize(), 10)
		}
		return err
	})
}

// batch puts all keys of a group to the same value, and counts that.
func (w *writer) batch(ctx context.Context, group int) error {
	var a attempt
	req := &storagev1.BatchRequest{}
	for i := range groupKeys {
		a.Writes = append(a.Writes, write{Kind: putKind, Key: groupKey(group, i), Value: w.token()})
		req.Ops = append(req.Ops, &storagev1.Op{Kind: &storagev1.Op_Put{
			Put: &storagev1.PutRequest{Key: groupKey(group, i), Value: text(w.token())},
		}})
	}
	count := fmt.Sprint("batches/", group)
	a.Writes = append(a.Writes, write{Kind: addKind, Key: count, Value: "1"})
	req.Ops = append(req.Ops, &storagev1.Op{Kind: &storagev1.Op_Add{Add: &storagev1.IncrRequest{Key: count, By: integer(1)}}})
	return w.try(a, func(a *attempt) error {
		res, err := w.h.Batch(ctx, req)
		if err == nil && len(res.GetIds()) != len(a.Writes) {
			w.tell(answer{Event: faultEvent, Who: w.who, Error: fmt.Sprintf("a batch of %d writes got ids %d", len(a.Writes), res.GetIds())})
			return nil
		}
		for i, id := range res.GetIds() {
			a.Writes[i].ID = id
		}
		return err
	})
}

// conditional reads a key, and puts or deletes it if it is still the same.
func (w *writer) conditional(ctx context.Context, key string) error {
	seen := w.seen.Load()
	res, err := w.h.GetMany(ctx, &storagev1.GetManyRequest{Keys: []string{key}})
	if err != nil {
		return err
	}
	r := &read{Seen: seen, Entries: entries(res.GetEntries())}
	a := attempt{Conditional: true}
	condition := &storagev1.Condition{Kind: &storagev1.Condition_Absent{Absent: true}}
	if len(r.Entries) == 0 {
		r.Missing = []string{key}
	} else {
		a.Condition = r.Entries[0].ID
		condition.Kind = &storagev1.Condition_Id{Id: a.Condition}
		w.saw(a.Condition)
	}
	w.tell(answer{Event: readEvent, Who: w.who, Read: r})
	if len(r.Entries) > 0 && rand.IntN(4) == 0 {
		a.Writes = []write{{Kind: deleteKind, Key: key}}
		return w.try(a, func(a *attempt) error {
			res, err := w.h.Delete(ctx, &storagev1.DeleteRequest{Key: key, Condition: condition})
			a.Writes[0].ID = res.GetId()
			return err
		})
	}
	a.Writes = []write{{Kind: putKind, Key: key, Value: w.token()}}
	return w.try(a, func(a *attempt) error {
		res, err := w.h.Put(ctx, &storagev1.PutRequest{Key: key, Value: text(w.token()), Condition: condition})
		a.Writes[0].ID = res.GetId()
		return err
	})
}
