package runtime

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"go.uber.org/goleak"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counter is a node for tests inside the package. Each method runs a function of the test. It uses
// storage's schema.
type counter struct {
	take       func(context.Context, *storagev1.IncrRequest) (*storagev1.IncrResponse, error)
	concurrent func(context.Context, *storagev1.HasRequest) (*storagev1.HasResponse, error)
}

func (c *counter) Incr(ctx context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
	return c.take(ctx, req)
}

func (c *counter) Has(ctx context.Context, req *storagev1.HasRequest) (*storagev1.HasResponse, error) {
	return c.concurrent(ctx, req)
}

// stub is a counter behind a mailbox, with the methods Incr, which takes turns, and Has, which is
// concurrent.
type stub struct {
	*counter

	node *Node
	ref  Ref
	incr *unaryMethod[*storagev1.IncrRequest, *storagev1.IncrResponse]
	has  *unaryMethod[*storagev1.HasRequest, *storagev1.HasResponse]
}

func newCounter(name string, turns int) *stub {
	return newLimitedCounter(name, Limits{MaxConcurrency: turns, MaxStreams: 2})
}

func newLimitedCounter(name string, limits Limits) *stub {
	s := &stub{
		counter: &counter{},
		incr:    newUnaryMethod("Incr", (*counter).Incr),
		has:     newUnaryMethod("Has", (*counter).Has, concurrent()),
	}
	desc := storagev1.File_raylink_storage_v1_storage_proto.Services().Get(0)
	s.ref = newStandalone(newService(desc, serviceConfig{typeName: name, Limits: limits}, &s.incr.m, &s.has.m), s.counter).ref()
	s.node = s.ref.to.local()
	return s
}

func (s *stub) call(ctx context.Context) error {
	_, err := s.incr.call(ctx, s.ref, nil)
	return err
}

func (s *stub) callConcurrent(ctx context.Context) error {
	_, err := s.has.call(ctx, s.ref, nil)
	return err
}

func (s *stub) future(ctx context.Context) *Future[*storagev1.IncrResponse] {
	return s.incr.async(ctx, s.ref, nil)
}

// does sets the function of Incr.
func (s *stub) does(fn func(ctx context.Context) error) {
	s.take = func(ctx context.Context, _ *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		return nil, fn(ctx)
	}
}

func (s *stub) doesConcurrent(fn func(ctx context.Context) error) {
	s.concurrent = func(ctx context.Context, _ *storagev1.HasRequest) (*storagev1.HasResponse, error) {
		return nil, fn(ctx)
	}
}

// intercepted gives the stub's node interceptors, as its host would.
func (s *stub) intercepted(interceptors ...Interceptor) {
	s.node.intercept = chainInterceptors(interceptors, s.counter)
}

// journal is a log that a test can read.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, r.Message)
	return nil
}

func (j *journal) WithAttrs([]slog.Attr) slog.Handler { return j }
func (j *journal) WithGroup(string) slog.Handler      { return j }

func (j *journal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.lines)
}
