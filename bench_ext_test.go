package raylink_test

import (
	"testing"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// BenchmarkRemote calls a node in a process of its own, through the tunnel.
func BenchmarkRemote(b *testing.B) {
	p, err := contractv1raylink.CreateProbe(b.Context(), driver, nil)
	if err != nil {
		b.Fatal(err)
	}
	req := &contractv1.AddRequest{By: 1}
	b.Run("one caller", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Add(b.Context(), req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("64 callers", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := p.Add(b.Context(), req); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("async, 32 outstanding", func(b *testing.B) {
		b.ReportAllocs()
		futures := make(chan *runtime.Future[*contractv1.AddResponse], 32)
		done := make(chan error, 1)
		go func() {
			var first error
			for f := range futures {
				if _, err := f.Get(b.Context()); err != nil && first == nil {
					first = err
				}
			}
			done <- first
		}()
		for b.Loop() {
			futures <- p.AddAsync(b.Context(), req)
		}
		close(futures)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	})
	if err := p.Ref().Stop(b.Context()); err != nil {
		b.Fatal(err)
	}
}
