package nettest

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestNamesHaveTheirOwner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := owner{pid: rapid.IntRange(1, 1<<22).Draw(t, "pid"), start: rapid.Uint64().Draw(t, "start")}
		suffix := rapid.String().Draw(t, "suffix")
		got, ok := ownerOf(o.String() + suffix)
		require.True(t, ok)
		require.Equal(t, o, got)
	})
}

func FuzzOwnerOf(f *testing.F) {
	for _, name := range []string{"rlnet-12-345-6789-m0", "rlnet-12-345", "rlnet--1-2-3", "rlnet-+1-2-3", "rlnet-01-2-3", "rlnet-1-2-", "x"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if o, ok := ownerOf(name); ok {
			assert.Positive(t, o.pid)
			assert.True(t, strings.HasPrefix(name, o.String()), "%q is not a name of %+v", name, o)
		}
	})
}

func TestForeignNamesHaveNoOwner(t *testing.T) {
	for _, name := range []string{
		"", "rlnet", "rlnet-", "rlnet-1", "rlnet-1-2", "rlnet-x-2-3", "rlnet-1-x-3", "rlnet-0-2-3", "rlnet--1-2-3", "rlnet-+1-2-3",
		"rlnet-01-2-3", "rlnet-1-02-3", "1-2-3", "other-1-2-3", "rlnet-99999999999999999999-2-3", "rlnet-1-99999999999999999999-3",
	} {
		_, ok := ownerOf(name)
		assert.False(t, ok, "%q", name)
	}
}

func TestStartIsReadOfProcesses(t *testing.T) {
	const rest = " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 "
	for stat, want := range map[string]uint64{
		"7 (sh) S" + rest + "4711 1 2":            4711,
		"7 (a) Z 1 (b c) R" + rest + "4711 1 2\n": 4711,
	} {
		got, err := parseStart(stat)
		require.NoError(t, err, stat)
		assert.Equal(t, want, got, stat)
	}
	for stat, want := range map[string]string{
		"":                           `"" is no line of /proc/<pid>/stat`,
		"7 (sh) S 1 2":               `"7 (sh) S 1 2" is no line of /proc/<pid>/stat`,
		"7 (sh) Z" + rest + "4711 1": "the process has ended",
		"7 (sh) S" + rest + "x 1":    `strconv.ParseUint: parsing "x": invalid syntax`,
	} {
		_, err := parseStart(stat)
		require.EqualError(t, err, want)
	}
	if _, err := os.Stat("/proc/self/stat"); err == nil {
		start, err := startOf(os.Getpid())
		require.NoError(t, err)
		assert.True(t, owner{pid: os.Getpid(), start: start}.isAlive())
		assert.False(t, owner{pid: os.Getpid(), start: start + 1}.isAlive(), "another process with the same id")
	}
}
