package runtime

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/invariants"
)

// quick is a node whose method does nothing, and allocates nothing.
func quick() *stub {
	s := newCounter("quick", 1)
	res := &storagev1.IncrResponse{}
	s.take = func(context.Context, *storagev1.IncrRequest) (*storagev1.IncrResponse, error) { return res, nil }
	has := &storagev1.HasResponse{}
	s.concurrent = func(context.Context, *storagev1.HasRequest) (*storagev1.HasResponse, error) { return has, nil }
	return s
}

// quickThatEndsTurns is the same, whose method gives its turn back.
func quickThatEndsTurns() *stub {
	s := quick()
	inner := s.take
	s.take = func(ctx context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		s.node.EndTurn(ctx)
		return inner(ctx, req)
	}
	return s
}

// handedOver makes a call as if it could not run inline: it is queued, and runs on a goroutine of
// the node.
func (s *stub) handedOver(ctx context.Context, req *storagev1.IncrRequest) error {
	cc := localCall(ctx, &s.incr.m, Metadata{})
	j := &job{cc: cc, req: req, done: make(chan struct{})}
	s.node.bind(cc)
	if err := s.node.enqueue(j); err != nil {
		return err
	}
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// BenchmarkLocalMailbox measures a call inside a process, in the variants that docs/turns.md
// compares.
func BenchmarkLocalMailbox(b *testing.B) {
	soon := func(b *testing.B) context.Context {
		b.Helper()
		ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
		b.Cleanup(cancel)
		return ctx
	}
	req := &storagev1.IncrRequest{}
	b.Run("inline", func(b *testing.B) { benchmarkCall(b, b.Context(), quick(), req) })
	b.Run("inline with deadline", func(b *testing.B) { benchmarkCall(b, soon(b), quick(), req) })
	b.Run("inline with EndTurn", func(b *testing.B) { benchmarkCall(b, b.Context(), quickThatEndsTurns(), req) })
	b.Run("inline with a deadline of its own", func(b *testing.B) {
		s := quick()
		b.ReportAllocs()
		for b.Loop() {
			ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
			if _, err := s.incr.call(ctx, s.ref, req); err != nil {
				b.Fatal(err)
			}
			cancel()
		}
	})
	b.Run("handed over", func(b *testing.B) { benchmarkHandOver(b, b.Context(), req) })
	b.Run("handed over with deadline", func(b *testing.B) { benchmarkHandOver(b, soon(b), req) })
	b.Run("async and get", func(b *testing.B) {
		s := quick()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.incr.async(b.Context(), s.ref, req).Get(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("concurrent method", func(b *testing.B) {
		s := quick()
		has := &storagev1.HasRequest{}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.has.call(b.Context(), s.ref, has); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("contended", func(b *testing.B) {
		s := quick()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := s.incr.call(b.Context(), s.ref, req); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func benchmarkCall(b *testing.B, ctx context.Context, s *stub, req *storagev1.IncrRequest) { //nolint:revive // b comes first
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.incr.call(ctx, s.ref, req); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkHandOver(b *testing.B, ctx context.Context, req *storagev1.IncrRequest) { //nolint:revive // b comes first
	b.Helper()
	s := quick()
	b.ReportAllocs()
	for b.Loop() {
		if err := s.handedOver(ctx, req); err != nil {
			b.Fatal(err)
		}
	}
}

// A local call allocates its context only.
func TestLocalCallAllocates(t *testing.T) {
	if invariants.Messages {
		t.Skip("messages are hashed")
	}
	s := quick()
	req, has := &storagev1.IncrRequest{}, &storagev1.HasRequest{}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for name, call := range map[string]func() error{
		"inline":     func() error { _, err := s.incr.call(ctx, s.ref, req); return err },
		"concurrent": func() error { _, err := s.has.call(ctx, s.ref, has); return err },
	} {
		var err error
		n := testing.AllocsPerRun(100, func() { err = call() })
		require.NoError(t, err)
		require.LessOrEqual(t, n, 1.0, name)
	}
	// A call made by a method has a link of the chain.
	outer := newCounter("outer", 1)
	var n float64
	outer.does(func(ctx context.Context) error {
		n = testing.AllocsPerRun(100, func() { _, _ = s.incr.call(ctx, s.ref, req) })
		return nil
	})
	require.NoError(t, outer.call(ctx))
	require.LessOrEqual(t, n, 2.0, "nested")
}
