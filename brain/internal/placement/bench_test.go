package placement

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// crowded has 1,000 machines with 100 nodes each.
func crowded(b *testing.B) *crowd {
	b.Helper()
	c := newCrowd(b)
	for i := range 1000 {
		m := newMachine(fmt.Sprintf("machine-%04d", i), 128, 0, 1, 2, 3, 4, 5, 6, 7)
		m.Total[Memory] = 512 << 30
		m.Labels = map[string]string{"role": []string{"trainer", "worker"}[i%2]}
		require.NoError(b, c.a.Join(m))
	}
	require.NoError(b, c.place(&Request{Count: 4000, Resources: Resources{"cpu": Unit, GPU: Unit}, Strategy: Spread}))
	for range 10 {
		require.NoError(b, c.place(&Request{Count: 9600, Resources: Resources{"cpu": Unit, Memory: 1 << 30}}))
	}
	return c
}

func BenchmarkPlace(b *testing.B) {
	c := crowded(b)
	resources := Resources{"cpu": Unit, Memory: 1 << 30}
	for _, bench := range []struct {
		name string
		r    Request
	}{
		{"parent", Request{Count: 1, Resources: resources, Parent: "id-machine-0500"}},
		{"nothing", Request{Count: 1, Parent: "id-machine-0500"}},
		{"emptiest", Request{Count: 1, Resources: resources}},
		{"gpu", Request{Count: 1, Resources: Resources{"cpu": Unit, GPU: Unit, Memory: 1 << 30}}},
		{"labels", Request{Count: 1, Resources: resources, Labels: map[string]string{"role": "trainer"}}},
		{"on", Request{Count: 1, Resources: resources, On: "machine-0500"}},
		{"gang=10000", Request{Count: 10_000, Resources: resources}},
		{"gang=10000/spread", Request{Count: 10_000, Resources: resources, Strategy: Spread}},
		{"gang=1000/one-per-machine", Request{Count: 1000, Resources: resources, Strategy: OnePerMachine}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.a.Place(&bench.r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("lacking", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.a.Place(&Request{Count: 4001, Resources: Resources{GPU: Unit}}); err == nil {
				b.Fatal("placed")
			}
		}
	})
}

// BenchmarkChange is one registration and one removal, each in a nested version, as Brain does
// them.
func BenchmarkChange(b *testing.B) {
	c := crowded(b)
	r := &Request{Count: 1, Resources: Resources{"cpu": Unit}, Parent: "id-machine-0500"}
	b.ReportAllocs()
	for b.Loop() {
		outer := c.a.Begin()
		inner := outer.Begin()
		places, err := inner.Place(r)
		require.NoError(b, err)
		require.NoError(b, inner.Allocate("node", places[0]))
		inner.Merge()
		inner = outer.Begin()
		inner.Release("node")
		inner.Merge()
		outer.Merge()
	}
}

// BenchmarkServe is what a node's end costs while [MaxWaiting] equal requests wait, of which it
// serves one.
func BenchmarkServe(b *testing.B) {
	c := crowded(b)
	require.NoError(b, c.place(&Request{Count: 4000, Resources: Resources{GPU: Unit}}))
	for range MaxWaiting {
		c.wait(&Request{Count: 1, Resources: Resources{GPU: Unit}})
	}
	b.ReportAllocs()
	for b.Loop() {
		c.end(1)
		require.Len(b, c.serve(), 1)
		c.wait(&Request{Count: 1, Resources: Resources{GPU: Unit}})
	}
}
