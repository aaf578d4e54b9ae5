//go:build !linux

package launch

// nameProcess does nothing where only the arguments of a process are shown.
func nameProcess(string) {}
