//go:build !invariants

package contract

// encodesLocally says that calls inside a process encode their messages.
const encodesLocally = false
