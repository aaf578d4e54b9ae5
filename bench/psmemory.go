package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// resident returns the resident memory of a process in bytes, private and shared; and how much of
// it are mapped files below a directory.
func resident(pid int, dir string) (all, mapped uint64, err error) {
	file, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps"))
	if err != nil {
		return 0, 0, err
	}
	defer file.Close() //nolint:errcheck // only read
	inside := false
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if !strings.HasSuffix(fields[0], ":") { // ADDRESSES MODE OFFSET DEVICE INODE PATH
			inside = len(fields) > 5 && strings.HasPrefix(fields[5], dir) && !strings.HasSuffix(lines.Text(), "(deleted)")
			continue
		}
		if fields[0] != "Rss:" {
			continue
		}
		kilobytes, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %q: %w", file.Name(), lines.Text(), err)
		}
		all += kilobytes << 10
		if inside {
			mapped += kilobytes << 10
		}
	}
	return all, mapped, lines.Err()
}

// stored returns how much memory or disk the files of parameter servers below a directory take.
func stored(dir string) (uint64, error) {
	var sum uint64
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.Contains(path, "/parameters") {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += uint64(stat.Blocks) * 512
		}
		return nil
	})
	return sum, err
}
