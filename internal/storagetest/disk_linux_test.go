package storagetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// smallDisk mounts a file system of some MiB.
func (s *system) smallDisk(mib int) string {
	s.t.Helper()
	dir := filepath.Join(s.dir, "disk")
	require.NoError(s.t, os.Mkdir(dir, 0o700))
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		s.t.Skipf("mounting a small file system needs root's rights: %v", err)
	}
	require.NoError(s.t, err)
	s.t.Cleanup(func() { assert.NoError(s.t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// fill fills a disk, and returns the file that does.
func (s *system) fill(dir string) string {
	s.t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	require.NoError(s.t, err)
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			require.ErrorIs(s.t, err, syscall.ENOSPC)
			size /= 2
		}
	}
	require.NoError(s.t, f.Close())
	return path
}

// A full disk fails writes, which change nothing. Reads go on, and writes once there is room.
func TestFullDiskFailsWritesOnly(t *testing.T) {
	for _, durability := range []string{"async", "sync"} {
		t.Run(durability, func(t *testing.T) {
			s := newSystem(t, durability)
			s.silent = true // the process logs that the disk is full
			disk := s.smallDisk(64)
			p := s.worker()
			path := p.Must(order{Do: "create", Durability: durability, Directory: filepath.Join(disk, "store")}).Path
			stored := make(map[string]answer)
			last := uint64(0)
			put := func(key string) answer {
				a := p.Do(order{Do: "put", Storage: path, Key: key, Value: key, Size: 64 << 10})
				if a.Error == "" {
					require.Greater(t, a.Write, last, "ids do not grow")
					last = a.Write
					stored[key] = a
				}
				return a
			}
			check := func() {
				t.Helper()
				for key, put := range stored {
					a := p.Must(order{Do: "get", Storage: path, Key: key})
					require.Equal(t, put.Write, a.Write, "the id of %s", key)
					require.Regexp(t, "^"+key+`\.+$`, a.Text)
				}
			}
			for round := range 3 {
				require.Empty(t, put(fmt.Sprint("before/", round)).Error)
				filler := s.fill(disk)
				var failed answer
				key := ""
				for i := 0; failed.Error == "" && i < 2000; i++ { // files may have been made larger in advance
					key = fmt.Sprintf("full/%d/%d", round, i)
					failed = put(key)
				}
				require.Regexp(t, "no space left|disk.* full", failed.Error, "a write to a full disk")
				require.Contains(t, []string{"unavailable", "resource_exhausted"}, failed.Code)
				a := p.Eventually(proctest.Patience, order{Do: "get", Storage: path, Key: key}, func(a answer) bool { return a.Error != "" }, "a failed write is shown")
				require.Equal(t, "not_found", a.Code, a.Error)
				a = p.Must(order{Do: "status", Storage: path})
				require.NotEmpty(t, a.Failure, "the state does not say that writes fail")
				check()
				require.NoError(t, os.Remove(filler))
				p.Eventually(proctest.Patience, order{Do: "put", Storage: path, Key: "probe", Value: "probe"}, func(a answer) bool {
					last = max(last, a.Write)
					return a.Error == ""
				}, "writes do not go on when there is room")
				require.Empty(t, p.Must(order{Do: "status", Storage: path}).Failure)
				check()
			}
			proctest.Kill(t, p.Must(order{Do: "info", Storage: path}).PID)
			path = p.Eventually(proctest.Patience, order{Do: "create", Durability: durability, Directory: filepath.Join(disk, "store")}, func(a answer) bool {
				return a.Error == ""
			}, "the storage does not start again").Path
			check()
			require.Empty(t, put("after").Error)
		})
	}
}
