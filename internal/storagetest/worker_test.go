package storagetest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"go.uber.org/goleak"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// storagePath is the path of the system's storage.
const storagePath = "storage-0"

// worker is a process that executes orders.
type worker struct {
	rt *join.Runtime

	// seen is the greatest id that the process has seen.
	seen atomic.Uint64

	// out guards the standard output.
	out sync.Mutex

	// mu guards the fields below.
	mu      sync.Mutex
	handles map[string]*storagev1raylink.Storage
	// writers and others are the tasks that write, and those that read and watch.
	writers, others tasks
}

// tasks are goroutines that end together.
type tasks struct {
	ctx  context.Context //nolint:containedctx // of the goroutines
	stop func()
	run  sync.WaitGroup
}

// start runs a task. The caller holds the worker's mu.
func (t *tasks) start(task func(ctx context.Context)) {
	if t.stop == nil {
		t.ctx, t.stop = context.WithCancel(context.Background())
	}
	ctx := t.ctx
	t.run.Go(func() { task(ctx) })
}

// serveWorker is the main function of a worker's process, and of those of its nodes. It ends with
// its input.
func serveWorker() error {
	rt, err := join.Init(context.Background())
	if err != nil {
		return err
	}
	w := &worker{rt: rt, handles: make(map[string]*storagev1raylink.Storage)}
	w.tell(answer{Event: proctest.Serving, PID: os.Getpid()})
	var orders sync.WaitGroup
	err = proctest.Lines(os.Stdin, func(o order) {
		orders.Go(func() { w.execute(o) })
	})
	// The test may have died while an order is executed.
	time.AfterFunc(proctest.Patience, func() { os.Exit(2) })
	w.quiet(&w.writers)
	w.quiet(&w.others)
	orders.Wait()
	if err = errors.Join(err, rt.Close()); err != nil {
		return err
	}
	return goleak.Find()
}

// quiet ends tasks, and waits for their end.
func (w *worker) quiet(t *tasks) {
	w.mu.Lock()
	stop := t.stop
	t.stop = nil
	w.mu.Unlock()
	if stop != nil {
		stop()
	}
	t.run.Wait()
}

// tell writes a line.
func (w *worker) tell(a answer) {
	w.out.Lock()
	defer w.out.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(a) // if it fails, the test is dead
}

func fail(a answer, err error) answer {
	if err != nil {
		a.Error, a.Code = err.Error(), connect.CodeOf(err).String()
	}
	return a
}

// saw enters an id that the process has seen.
func (w *worker) saw(id uint64) {
	for {
		seen := w.seen.Load()
		if id <= seen || w.seen.CompareAndSwap(seen, id) {
			return
		}
	}
}

func (w *worker) execute(o order) {
	limit := cmp.Or(time.Duration(o.Milliseconds)*time.Millisecond, proctest.Patience)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	a, err := w.try(ctx, o)
	a.ID = o.ID
	w.tell(fail(a, err))
}

// try executes an order that needs no storage.
func (w *worker) try(ctx context.Context, o order) (a answer, err error) {
	switch o.Do {
	case "create":
		s, err := storagev1raylink.CreateStorage(ctx, w.rt, &storagev1.StorageConfig{Durability: durabilities[o.Durability], Directory: o.Directory})
		if err != nil {
			return a, err
		}
		a.Path = s.Ref().Path()
		return a, nil
	case "stop writers":
		w.quiet(&w.writers)
		return a, nil
	case "stop others":
		w.quiet(&w.others)
		return a, nil
	}
	h, err := w.handle(ctx, cmp.Or(o.Storage, storagePath))
	if err != nil {
		return a, err
	}
	return w.tryStorage(ctx, h, o)
}

// handle returns the process's handle of a storage.
func (w *worker) handle(ctx context.Context, path string) (*storagev1raylink.Storage, error) {
	w.mu.Lock()
	h := w.handles[path]
	w.mu.Unlock()
	if h != nil {
		return h, nil
	}
	h, err := storagev1raylink.FindStorage(ctx, w.rt, runtime.Path(path))
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handles[path] = h
	return h, nil
}

func (w *worker) tryStorage(ctx context.Context, h *storagev1raylink.Storage, o order) (a answer, err error) {
	switch o.Do {
	case "info":
		info, err := h.Ref().Info(ctx)
		a.PID = int(info.GetRecord().GetHost().GetPid())
		return a, err
	case "end":
		return a, h.Ref().Stop(ctx)
	case "status":
		s, err := h.Status(ctx, &storagev1.StatusRequest{})
		a.Last, a.Failure, a.Text = s.GetLastId(), s.GetFailure(), s.GetDirectory()
		return a, err
	case "state":
		a.Read, a.Last, err = w.state(ctx, h)
	case "put":
		res, err := h.Put(ctx, &storagev1.PutRequest{Key: o.Key, Value: text(o.Value + strings.Repeat(".", o.Size))})
		a.Write = res.GetId()
		return a, err
	case "get":
		res, err := h.Get(ctx, &storagev1.GetRequest{Key: o.Key})
		a.Write, a.Text = res.GetId(), textOf(res.GetValue())
		return a, err
	case "write":
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, n := range o.Writers {
			wr := &writer{worker: w, h: h, n: n, round: o.Round, who: fmt.Sprint("writer ", n)}
			w.writers.start(wr.run)
		}
	case "read", "watch", "watch by the client":
		w.mu.Lock()
		defer w.mu.Unlock()
		w.others.start(func(ctx context.Context) {
			who := fmt.Sprintf("%s of %q", o.Do, o.Key)
			switch o.Do {
			case "read":
				w.read(ctx, h)
			case "watch":
				w.watch(ctx, h, who, o.Key)
			default:
				w.watchByClient(ctx, h, who, o.Key)
			}
		})
	default:
		err = fmt.Errorf("unknown order %q", o.Do)
	}
	return a, err
}

// state returns all entries of a storage to which nothing is written, and its last id.
func (w *worker) state(ctx context.Context, h *storagev1raylink.Storage) (*read, uint64, error) {
	all := ""
	s, err := h.Status(ctx, &storagev1.StatusRequest{})
	if err != nil {
		return nil, 0, err
	}
	r := &read{Prefix: &all, Seen: w.seen.Load()}
	req := &storagev1.ListRequest{}
	for {
		res, err := h.List(ctx, req)
		if err != nil {
			return nil, 0, err
		}
		r.Entries = append(r.Entries, entries(res.GetEntries())...)
		if res.GetNextPageToken() == "" {
			return r, s.GetLastId(), nil
		}
		req.PageToken = res.GetNextPageToken()
	}
}

func text(s string) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_StringValue{StringValue: s}}
}

func integer(n int64) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: n}}
}

// textOf returns the text by which a value is known to the record.
func textOf(v *storagev1.Value) string {
	switch k := v.GetKind().(type) {
	case *storagev1.Value_StringValue:
		return k.StringValue
	case *storagev1.Value_Int64Value:
		return strconv.FormatInt(k.Int64Value, 10)
	}
	return fmt.Sprint(v)
}

func entries(from []*storagev1.Entry) []change {
	all := make([]change, len(from))
	for i, e := range from {
		all[i] = change{ID: e.GetId(), Key: e.GetKey(), Value: textOf(e.GetValue())}
	}
	return all
}

// troubled reports errors that may pass, unless they repeat.
func (w *worker) troubled(who string) func(err error) {
	last := ""
	return func(err error) {
		if err.Error() != last {
			last = err.Error()
			w.tell(fail(answer{Event: troubleEvent, Who: who}, err))
		}
	}
}

// retryPause is the pause after a call that has failed.
const retryPause = 10 * time.Millisecond

// rest waits, or until the context ends.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
