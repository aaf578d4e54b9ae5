//go:build !linux

package table

// adviseHuge does nothing: other systems choose the size of pages on their own.
func adviseHuge[T any]([]T) {}
