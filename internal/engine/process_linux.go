package engine

import "syscall"

// driverAttributes gives the driver a group of its own, and has the kernel kill it when its parent
// dies.
func driverAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
