package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
)

// How much of one log is kept: the file itself and older ones, of which PATH.1 is the newest.
const (
	maxLogFile = 8 << 20
	oldLogs    = 2
)

// logTime is the format of the time before each line of a process's log.
const logTime = "2006-01-02T15:04:05.000Z "

// LogFile is a log that is rotated by size. No line is split between files, and the total size is
// bounded. Its methods are safe for concurrent use.
type LogFile struct {
	path  string
	limit int64

	mu   sync.Mutex // guards the fields below
	file *os.File
	size int64
	// rotates is set for a regular file.
	rotates bool
}

// OpenLog opens a log for appending, and creates it, readable by its owner only, if it does not
// exist. The caller must Close it.
func OpenLog(path string) (*LogFile, error) {
	l := &LogFile{path: path, limit: maxLogFile}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *LogFile) open() error {
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600) //nolint:gosec // the launcher's choice
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.file, l.size, l.rotates = file, info.Size(), info.Mode().IsRegular()
	return nil
}

// Write appends whole lines.
func (l *LogFile) Write(lines []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, fmt.Errorf("log %s: %w", l.path, os.ErrClosed)
	}
	if l.rotates && l.size > 0 && l.size+int64(len(lines)) > l.limit {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(lines)
	l.size += int64(n)
	return n, err
}

// rotate begins a new file. If that fails after the old one was closed, the log is closed.
func (l *LogFile) rotate() error {
	err := l.file.Close()
	l.file = nil
	old := func(i int) string { return l.path + "." + strconv.Itoa(i) }
	for i := oldLogs; i > 1; i-- {
		if rerr := os.Rename(old(i-1), old(i)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err = errors.Join(err, os.Rename(l.path, old(1))); err != nil {
		return fmt.Errorf("rotating a log: %w", err)
	}
	return l.open()
}

// Close closes the log. Further calls do nothing.
func (l *LogFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	return file.Close()
}

// stamped prefixes a process's line with the present time.
func stamped(text string) []byte {
	b := make([]byte, 0, len(logTime)+len(text)+1)
	b = time.Now().UTC().AppendFormat(b, logTime)
	return append(append(b, text...), '\n')
}
