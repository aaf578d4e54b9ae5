//go:build !unguarded

package ring

// guarded is false under the build tag `unguarded`, which leaves out the reader's second look at a row's word and the writers'
// look at the areas. The tests' checker must then find torn rows: that shows that it would.
const guarded = true
