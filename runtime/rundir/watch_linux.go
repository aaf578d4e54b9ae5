package rundir

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// inotify is a watch that the kernel wakes.
type inotify struct{ file *os.File }

// watchFile watches the file at path for being closed, which releases a lock and happens when a
// process dies, or removed.
func watchFile(path string) (watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := inotify{file: os.NewFile(uintptr(fd), "inotify")}
	const events = unix.IN_CLOSE_WRITE | unix.IN_CLOSE_NOWRITE | unix.IN_ATTRIB | unix.IN_MOVE_SELF |
		unix.IN_DELETE_SELF | unix.IN_DONT_FOLLOW
	if _, err := unix.InotifyAddWatch(fd, path, events); err != nil {
		_ = w.close() // never used
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	return w, nil
}

func (w inotify) wait(ctx context.Context, limit time.Duration) {
	if err := w.file.SetReadDeadline(time.Now().Add(limit)); err != nil {
		timer{}.wait(ctx, limit)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(0, 1)) }) // fails only when closed
	defer stop()
	// The events, and whether there are any, do not matter: the lock is tried again in any case.
	_, _ = w.file.Read(make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1)))
}

func (w inotify) close() error { return w.file.Close() }
