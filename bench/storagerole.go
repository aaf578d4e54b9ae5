package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2" //nolint:depguard // a peer
	"github.com/redis/rueidis"

	"github.com/raylink/raylink"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
)

// Roles of the processes in rows of the storage. A server is followed by a system, a directory and
// a durability; a client by a system, a kind of work, a number of connections and an address.
const (
	storageServerRole = "storage-server"
	storageClientRole = "storage-client"
)

// systemStorage is the path of the storage that every system has.
const systemStorage = "storage-0"

// counterKey is the key that all callers of Incr use.
const counterKey = "bench:counter"

// keysOfCaller is the number of keys that each caller of Put uses, one after the other.
const keysOfCaller = 200

// storageRole runs a process that takes part in rows of the storage.
func (c *driverConn) storageRole(ctx context.Context, words []string) error {
	if words[0] == storageServerRole {
		serve := serveStorage
		if words[1] == redisSystem {
			serve = serveRedis
		}
		srv, err := serve(ctx, words[2], words[3])
		if err != nil {
			return c.reportError(err)
		}
		return errors.Join(c.answer(response{Address: srv.address()}, func(r request) (response, error) {
			return response{}, fmt.Errorf("a server does not support %q", r.Op)
		}), srv.close())
	}
	connections, err := strconv.Atoi(words[3])
	if err != nil {
		return c.reportError(err)
	}
	cl, err := dialStorage(ctx, words[1], storageWork(words[2]), connections, words[4])
	if err != nil {
		return c.reportError(err)
	}
	do := callsOf(cl)
	if filled, ok := cl.(*raylinkStorage); ok && (filled.work == memoryWork || filled.work == reopenWork) {
		do = filled.do
	}
	return errors.Join(c.answer(response{}, do), cl.close())
}

// storageConfig is the configuration of RayLink's storages that the benchmark creates.
func storageConfig(dir, durability string) *storagev1.StorageConfig {
	config := &storagev1.StorageConfig{Durability: storagev1.Durability(storagev1.Durability_value[durability])}
	if config.GetDurability() != storagev1.Durability_DURABILITY_MEMORY {
		config.Directory = dir
	}
	return config
}

// serveStorage hosts a storage in this process, and hides its Unix socket, so that callers use TCP
// as Redis' do.
func serveStorage(ctx context.Context, dir, durability string) (server, error) {
	rt, err := raylink.Init(ctx)
	if err != nil {
		return nil, err
	}
	s, err := storagev1raylink.CreateStorage(ctx, rt, storageConfig(dir, durability), runtime.ParentProcess())
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	host := s.Ref().Record().GetHost().GetDirectory()
	if err := os.Rename(host, host+".elsewhere"); err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	return &raylinkServer{rt: rt, path: s.Ref().Path()}, nil
}

// dialStorage makes this process a client of a storage. Of Pebble the address is a directory.
func dialStorage(ctx context.Context, system string, work storageWork, connections int, address string) (client, error) {
	switch system {
	case "raylink", raylinkMemory:
		return dialRaylinkStorage(ctx, work, connections, address)
	case rueidisSystem:
		c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}})
		return &rueidisStorage{client: c}, err
	case pebbleSystem:
		db, err := pebble.Open(address, &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}})
		return &pebbleStorage{db: db}, err
	}
	return nil, fmt.Errorf("unknown system %q of the storage", system)
}

// callerKeys returns the keys of one more caller.
func callerKeys(callers *atomic.Int64) []string {
	caller := callers.Add(1)
	keys := make([]string, keysOfCaller)
	for i := range keys {
		keys[i] = fmt.Sprintf("put/%04d/%07d", caller, i)
	}
	return keys
}

// raylinkStorage calls a storage of RayLink.
type raylinkStorage struct {
	rt   *raylink.Runtime
	work storageWork
	// handles are one for each connection; next is that of the next caller.
	handles []*storagev1raylink.Storage
	callers atomic.Int64
}

func dialRaylinkStorage(ctx context.Context, work storageWork, connections int, path string) (_ client, err error) {
	rt, err := raylink.Init(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, rt.Close())
		}
	}()
	s, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path(path))
	if err != nil {
		return nil, err
	}
	c := &raylinkStorage{rt: rt, work: work, handles: []*storagev1raylink.Storage{s}}
	if connections == 0 {
		return c, nil
	}
	c.handles = nil
	for i := range connections {
		tag := "caller-" + strconv.Itoa(i)
		if _, err := s.Ref().CreateTunnel(ctx, tag); err != nil {
			return nil, err
		}
		tagged, err := storagev1raylink.StorageFrom(rt, s.Ref().Tagged(tag).NodeRef())
		if err != nil {
			return nil, err
		}
		c.handles = append(c.handles, tagged)
	}
	return c, nil
}

func (c *raylinkStorage) close() error { return c.rt.Close() }

func one() *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: 1}}
}

// errNotCounted means that Incr returned no higher number than before.
var errNotCounted = errors.New("the counter has not grown")

func (c *raylinkStorage) caller(payload []byte) func() error {
	s := c.handles[int(c.callers.Load())%len(c.handles)]
	keys := callerKeys(&c.callers)
	if c.work == putWork {
		value := &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: payload}}
		reqs := make([]*storagev1.PutRequest, len(keys))
		for i, key := range keys {
			reqs[i] = &storagev1.PutRequest{Key: key, Value: value}
		}
		n := 0
		return underDeadline(func(ctx context.Context) error {
			_, err := s.Put(ctx, reqs[n%len(reqs)])
			n++
			return err
		})
	}
	req := &storagev1.IncrRequest{Key: counterKey, By: one()}
	last := int64(0)
	return underDeadline(func(ctx context.Context) error {
		res, err := s.Incr(ctx, req)
		if err != nil {
			return err
		}
		if last >= res.GetValue().GetInt64Value() {
			return fmt.Errorf("%w: from %d to %v", errNotCounted, last, res.GetValue())
		}
		last = res.GetValue().GetInt64Value()
		return nil
	})
}

// start is [starter]'s, of Incr.
func (c *raylinkStorage) start(_ []byte, outstanding int, more func() bool, done func(time.Duration)) error {
	req := &storagev1.IncrRequest{Key: counterKey, By: one()}
	last := int64(0)
	ring := newFutures(outstanding, func(res *storagev1.IncrResponse, took time.Duration) error {
		if last >= res.GetValue().GetInt64Value() {
			return fmt.Errorf("%w: from %d to %v", errNotCounted, last, res.GetValue())
		}
		last = res.GetValue().GetInt64Value()
		done(took)
		return nil
	})
	for more() {
		if err := ring.add(func(ctx context.Context) *runtime.Future[*storagev1.IncrResponse] {
			return c.handles[0].IncrAsync(ctx, req)
		}); err != nil {
			return err
		}
	}
	return ring.finish()
}

// futures are outstanding calls, which are collected in the order in which they were made.
type futures[R any] struct {
	ring []outstandingFuture[R]
	next int
	got  func(res R, took time.Duration) error
}

type outstandingFuture[R any] struct {
	future *runtime.Future[R]
	cancel context.CancelFunc
	begun  time.Time
}

func newFutures[R any](outstanding int, got func(res R, took time.Duration) error) *futures[R] {
	return &futures[R]{ring: make([]outstandingFuture[R], outstanding), got: got}
}

// add makes a call. If there are too many, it collects the oldest before.
func (f *futures[R]) add(call func(ctx context.Context) *runtime.Future[R]) error {
	o := &f.ring[f.next%len(f.ring)]
	if err := f.collect(o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline) //nolint:gosec // collect calls cancel
	*o = outstandingFuture[R]{future: call(ctx), cancel: cancel, begun: time.Now()}
	f.next++
	return nil
}

func (f *futures[R]) collect(o *outstandingFuture[R]) error {
	if o.future == nil {
		return nil
	}
	res, err := o.future.Get(context.Background())
	o.cancel()
	o.future = nil
	if err != nil {
		return err
	}
	return f.got(res, time.Since(o.begun))
}

func (f *futures[R]) finish() error {
	for range f.ring {
		if err := f.collect(&f.ring[f.next%len(f.ring)]); err != nil {
			return err
		}
		f.next++
	}
	return nil
}

// do serves the operations of the rows with many keys.
func (c *raylinkStorage) do(r request) (response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), setUpDeadline)
	defer cancel()
	s := c.handles[0]
	switch r.Op {
	case opFill:
		return response{}, c.fill(r.Job.Inflight)
	case opHost:
		info, err := s.Ref().Info(ctx)
		return response{PID: int(info.GetRecord().GetHost().GetPid())}, err
	case opAnswer:
		return c.firstAnswer(ctx)
	case opKeys:
		return response{}, c.checkKeys(ctx, r.Job.Inflight)
	}
	return response{}, fmt.Errorf("a client of many keys does not support %q", r.Op)
}

// filledKey returns one of many keys, of 16 bytes. Its value is its number.
func filledKey(i int) string { return fmt.Sprintf("episodes/%07d", i) }

func (c *raylinkStorage) fill(keys int) error {
	const outstanding = 4096
	ring := newFutures(outstanding, func(*storagev1.PutResponse, time.Duration) error { return nil })
	for i := range keys {
		req := &storagev1.PutRequest{Key: filledKey(i), Value: &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: int64(i)}}}
		put := func(ctx context.Context) *runtime.Future[*storagev1.PutResponse] {
			return c.handles[0].PutAsync(ctx, req)
		}
		if err := ring.add(put); err != nil {
			return err
		}
	}
	return ring.finish()
}

// firstAnswer repeats a call until the storage answers.
func (c *raylinkStorage) firstAnswer(ctx context.Context) (response, error) {
	const attempt, pause = 250 * time.Millisecond, time.Millisecond
	// With a default, so that a key that is missing differs from a storage that is.
	req := &storagev1.GetRequest{Key: filledKey(0), Default: one()}
	for {
		once, cancel := context.WithTimeout(ctx, attempt)
		res, err := c.handles[0].Get(once, req)
		cancel()
		if err == nil {
			ended, err := monotonic()
			if res.GetId() == 0 {
				err = errors.Join(err, fmt.Errorf("the storage has lost %q", filledKey(0)))
			}
			return response{Moment: moment{Ended: ended}}, err
		}
		select {
		case <-ctx.Done():
			return response{}, fmt.Errorf("the storage has not answered: %w: %w", ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// checkKeys reads some keys, the first and the last among them.
func (c *raylinkStorage) checkKeys(ctx context.Context, keys int) error {
	const checked = 1000
	step := max(1, (keys-1)/checked)
	for i := 0; i < keys; i += step {
		if err := c.checkKey(ctx, i); err != nil {
			return err
		}
	}
	return c.checkKey(ctx, keys-1)
}

func (c *raylinkStorage) checkKey(ctx context.Context, i int) error {
	res, err := c.handles[0].Get(ctx, &storagev1.GetRequest{Key: filledKey(i)})
	if err == nil && res.GetValue().GetInt64Value() != int64(i) {
		err = fmt.Errorf("%q has the value %v instead of %d", filledKey(i), res.GetValue(), i)
	}
	return err
}

// rueidisStorage calls Redis by a client that pipelines the commands of concurrent callers.
type rueidisStorage struct{ client rueidis.Client }

func (c *rueidisStorage) caller([]byte) func() error {
	last := int64(0)
	return underDeadline(func(ctx context.Context) error {
		n, err := c.client.Do(ctx, c.client.B().Incr().Key(counterKey).Build()).AsInt64()
		if err == nil && last >= n {
			err = fmt.Errorf("%w: from %d to %d", errNotCounted, last, n)
		}
		last = n
		return err
	})
}

func (c *rueidisStorage) close() error {
	c.client.Close()
	return nil
}

// pebbleStorage puts into a store of this process, each put synced.
type pebbleStorage struct {
	db      *pebble.DB
	callers atomic.Int64
}

func (c *pebbleStorage) caller(payload []byte) func() error {
	names := callerKeys(&c.callers)
	keys := make([][]byte, len(names))
	for i, name := range names {
		keys[i] = []byte(name)
	}
	n := 0
	return func() error {
		err := c.db.Set(keys[n%len(keys)], payload, pebble.Sync)
		n++
		return err
	}
}

func (c *pebbleStorage) close() error { return c.db.Close() }

// quiet is a logger of Pebble that writes only what ends the process.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}
