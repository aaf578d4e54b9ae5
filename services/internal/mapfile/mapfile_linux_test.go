package mapfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpaceHintNamesSmallSharedMemory(t *testing.T) {
	require.Contains(t, spaceHint("/dev/shm/ring", "/dev/shm", true, 64<<20), "--shm-size")
	require.NotContains(t, spaceHint("/dev/shm/ring", "/dev/shm", true, 65<<20), "--shm-size")
	require.Contains(t, spaceHint("/data/rings/a", "/data/rings", false, 64<<20), "/data/rings")
}

// createInMemory creates a file on a tmpfs.
func createInMemory(t *testing.T, size uint64) *os.File {
	t.Helper()
	directory, err := os.MkdirTemp("/dev/shm", "mapfile") //nolint:usetesting // it has to be on a tmpfs
	if err != nil {
		t.Skip("there is no /dev/shm:", err)
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(directory)) })
	file, err := Create(filepath.Join(directory, "file"), size)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	if !InMemory(file) {
		t.Skip("/dev/shm is no tmpfs")
	}
	return file
}

// Collapsing changes neither the content of a file, nor what a mapping of it shows.
func TestCollapsedFileKeepsItsContent(t *testing.T) {
	const size = 3*hugePage + 4096
	file := createInMemory(t, size)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * 7 / 4096)
	}
	_, err := file.WriteAt(content, 0)
	require.NoError(t, err)
	mapping, err := MapPopulated(file, size, ReadOnly)
	require.NoError(t, err)
	defer Unmap(mapping) //nolint:errcheck // a test's mapping
	if err := Collapse(file, size); err != nil {
		t.Skip("this kernel collapses no pages of a tmpfs:", err)
	}
	require.True(t, bytes.Equal(content, mapping))
	window, err := MapWindow(file, hugePage, hugePage)
	require.NoError(t, err)
	window.Populate()
	window.Bytes()[0] ^= 1
	require.NoError(t, window.Unmap())
	require.Equal(t, content[hugePage]^1, mapping[hugePage])
	require.NoError(t, Collapse(file, 100), "a small file stays as it is")
}

// largePages returns how many bytes of the mapping at an address are mapped as large pages.
func largePages(t *testing.T, mapping []byte) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	start := strings.TrimPrefix(fmt.Sprintf("%p", mapping), "0x")
	_, after, found := strings.Cut(string(maps), "\n"+start+"-")
	require.True(t, found)
	large := regexp.MustCompile(`(?:Shmem|File)PmdMapped: +(\d+) kB`)
	total := 0
	for _, match := range large.FindAllStringSubmatch(strings.SplitN(after, "VmFlags", 2)[0], -1) {
		kilobytes, err := strconv.Atoi(match[1])
		require.NoError(t, err)
		total += kilobytes << 10
	}
	return total
}

// TestLargeFilesHaveLargePages: also the part by which a file grows, and however it is mapped.
func TestLargeFilesHaveLargePages(t *testing.T) {
	const size = 4*hugePage + 3*4096
	file := createInMemory(t, size)
	require.NoError(t, Resize(file, 3*size))
	status, err := Stat(file)
	require.NoError(t, err)
	require.EqualValues(t, 3*size, status.Size)
	window, err := MapWindow(file, 0, 3*size)
	require.NoError(t, err)
	defer func() { require.NoError(t, window.Unmap()) }()
	window.Populate()
	mapping, err := MapPopulated(file, 3*size, ReadOnly)
	require.NoError(t, err)
	defer func() { require.NoError(t, Unmap(mapping)) }()
	for _, mapped := range [][]byte{window.mapping, mapping} {
		require.Equal(t, make([]byte, 3*size), mapped)
		// The large page at which the file ended before has small pages.
		if got := largePages(t, mapped); got < 11*hugePage {
			if err := Collapse(file, 3*size); err != nil {
				t.Skip("there are no large pages:", err)
			}
			require.FailNow(t, "the file has small pages", "only %d of %d bytes are in large pages", got, 3*size)
		}
	}
}

// TestMappingsLeaveNothingBehind maps parts of a file of sizes around those of pages, until what is
// left of one would have used up the number of mappings of a process.
func TestMappingsLeaveNothingBehind(t *testing.T) {
	const size = 3 * hugePage
	file := createInMemory(t, size)
	_, err := file.WriteAt(bytes.Repeat([]byte{7}, size), 0)
	require.NoError(t, err)
	mappings := func() int {
		maps, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		return bytes.Count(maps, []byte("\n"))
	}
	before := mappings()
	for i, size := range []uint64{1, 4095, 4097, hugePage - 1, hugePage, hugePage + 1, 2*hugePage + 4095, size} {
		for range 100 {
			mapping, err := Map(file, size, Access(i%2 == 0))
			require.NoError(t, err)
			require.Len(t, mapping, int(size))
			require.EqualValues(t, 7, mapping[size-1])
			require.NoError(t, Unmap(mapping))
		}
	}
	require.InDelta(t, before, mappings(), 50, "Go's heap may have grown")
	_, err = Map(file, 0, ReadOnly)
	require.ErrorContains(t, err, "map 0 bytes")
	require.NoError(t, Unmap(nil))
}
