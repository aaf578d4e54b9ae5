//go:build !unguarded

package ring

// guarded is false under the build tag "unguarded", which omits the reader's second check of a
// row's word and the writers' check of the areas. The tests' checker must then find torn rows,
// which shows that it can.
const guarded = true
