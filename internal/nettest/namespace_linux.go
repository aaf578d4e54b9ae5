package nettest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// supported returns the reason why this system has no namespaces.
func supported() error { return nil }

// enter calls a function on a thread that is in a namespace.
func enter(namespace string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errors.New("nettest: the function has ended its goroutine")
		defer func() { result <- err }()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end with a goroutine, and would keep the namespace. While it
			// is locked, another goroutine is on another thread.
			defer runtime.UnlockOSThread()
			err = enter(namespace, f)
			return
		}
		// The thread is never unlocked: it ends with this goroutine, so that no other one gets it.
		failure := setNamespace(namespace)
		if failure == nil {
			failure = f()
		}
		err = failure
	}()
	return <-result
}

// setNamespace moves this thread to a namespace.
func setNamespace(name string) error {
	file, err := os.Open(filepath.Join(namespaces, name))
	if err != nil {
		return fmt.Errorf("nettest: opening a namespace: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("nettest: entering namespace %s: %w", name, err)
	}
	return nil
}

// openTAP makes a TAP device in this thread's namespace. What it would transmit is read from the
// file, a frame at a time, and what is written is received by it. It exists until the file is
// closed.
func openTAP(name string) (*os.File, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("nettest: slow links need TAP devices: opening %s: %w", path, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		// The device is attached before the file gets to the runtime's poller: a file without a
		// device reports an error to it.
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("nettest: slow links need TAP devices: making %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
