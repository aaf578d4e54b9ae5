//go:build !invariants

package invariants

const tagged = false

// Value holds a T if [Messages] is set. Otherwise it takes no memory.
type Value[T any] struct{}

// Get returns the value, or nil if [Messages] is not set.
func (*Value[T]) Get() *T { return nil }
