//go:build !linux

package engine

import "syscall"

// driverAttributes gives the driver a group of its own. This kernel does not end a process when its
// parent dies: a program whose head was killed ends when it misses its Brain.
func driverAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
