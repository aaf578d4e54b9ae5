//go:build !linux

package launch

import "os"

// awaitExit does nothing here: the process is reaped before its group is killed.
func awaitExit(int) {}

// markSelf does nothing here: limits of other processes cannot be read.
func markSelf() {}

// marked finds nothing here: the environment of other processes cannot be read.
func marked([]string) []*os.Process { return nil }

// descendants finds nothing here: the launcher kills the process group.
func descendants(int, string) []*os.Process { return nil }
