//go:build invariants

package invariants

const tagged = true

// Value holds a T if [Messages] is set. Otherwise it takes no memory.
type Value[T any] struct{ value T }

// Get returns the value, or nil if [Messages] is not set.
func (v *Value[T]) Get() *T { return &v.value }
