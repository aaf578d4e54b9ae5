package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

func mustPut(t *testing.T, s *Store, id uint64) {
	t.Helper()
	stored, err := put(s, id, 10000)
	require.NoError(t, err)
	require.True(t, stored)
}

func reader(t *testing.T, s *Store, name string) *Reader {
	t.Helper()
	r, err := NewReader(s.Directory(), name)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func TestReadersInOtherProcessesSeeCompleteVersionsInOrder(t *testing.T) {
	s := newStore(t, Options{})
	const versions = 200
	followers := make([]*process, 3)
	for i := range followers {
		followers[i] = start(t, task{Name: "reader", Directory: s.Directory(), Until: versions})
	}
	for id := uint64(1); id <= versions; id++ {
		stored, err := put(s, id, 50_000)
		require.NoError(t, err)
		require.True(t, stored)
		stored, err = put(s, id/2, 50_000+1)
		if id > 1 {
			require.NoError(t, err)
		}
		require.False(t, stored)
	}
	for _, f := range followers {
		require.NoError(t, f.in.Close())
		o := f.end()
		require.Positive(t, o.Pulled)
		require.Zero(t, o.Torn, "torn versions")
		require.Zero(t, o.Back, "versions that go back")
		require.Equal(t, uint64(versions), o.Last, "the newest version is not the last")
	}
}

func TestReaderSlowerThanManyPushesKeepsItsBytes(t *testing.T) {
	s := newStore(t, Options{Held: 1})
	mustPut(t, s, 1)
	slow := start(t, task{Name: "slow reader", Directory: s.Directory()})
	require.True(t, slow.next().Ready)
	for id := uint64(2); id < 20; id++ {
		mustPut(t, s, id)
	}
	_, err := slow.in.Write([]byte("\n"))
	require.NoError(t, err)
	require.Zero(t, slow.end().Torn)
}

func TestLateVersionNeverReplacesNewerOne(t *testing.T) {
	s := newStore(t, Options{})
	mustPut(t, s, 5)
	for _, id := range []uint64{5, 4, 1} {
		stored, err := put(s, id, 3)
		require.NoError(t, err)
		require.False(t, stored)
	}
	p, err := reader(t, s, "w").Pull()
	require.NoError(t, err)
	require.Equal(t, uint64(5), p.Version().GetId())
	require.Equal(t, weights(5, 10000), p.Bytes())
	require.NoError(t, p.Release())
	require.NoError(t, p.Release())
}

func TestOldFilesAreRemoved(t *testing.T) {
	s := newStore(t, Options{Held: 2})
	for id := uint64(1); id < 10; id++ {
		mustPut(t, s, id)
	}
	files, err := filepath.Glob(filepath.Join(s.Directory(), "*", "*"+versionSuffix))
	require.NoError(t, err)
	require.Len(t, files, 3)
}

func TestNextOfficerPreservesAcknowledgedVersions(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "parameters")
	newStore(t, Options{}) // skips the test where stores are unsupported
	officer := start(t, task{Name: "officer", Directory: directory, Until: 7, Size: 5000})
	require.True(t, officer.next().Ready)
	r, err := NewReader(directory, "w")
	require.NoError(t, err)
	served, err := r.Served()
	require.NoError(t, err)
	require.True(t, served)
	_, err = Open(directory, Options{})
	require.ErrorIs(t, err, ErrInUse)

	require.NoError(t, officer.cmd.Process.Kill())
	require.Error(t, officer.cmd.Wait())
	served, err = r.Served()
	require.NoError(t, err)
	require.False(t, served, "readers can detect that the officer is dead")
	id, err := r.ID()
	require.NoError(t, err)
	require.Equal(t, uint64(7), id)

	// Incomplete files are ignored.
	tagDirectory := tagPath(directory, "w")
	require.NoError(t, os.WriteFile(versionPath(tagDirectory, 8)+tempSuffix, []byte("half"), 0o600))
	require.NoError(t, os.WriteFile(versionPath(tagDirectory, 9), []byte("half"), 0o600))
	s, err := Open(directory, Options{})
	require.NoError(t, err)
	require.Equal(t, uint64(7), s.Newest("w").GetId())
	stored, err := put(s, 7, 5)
	require.NoError(t, err)
	require.False(t, stored)
	mustPut(t, s, 8)
	p, err := r.Pull()
	require.NoError(t, err)
	require.Equal(t, uint64(8), p.Version().GetId(), "readers that mapped the index before follow the next officer")
	require.NoError(t, p.Release())
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

func TestIDOfLostVersionIsNotReused(t *testing.T) {
	s := newStore(t, Options{})
	mustPut(t, s, 4)
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(versionPath(tagPath(s.Directory(), "w"), 4)))
	again, err := Open(s.Directory(), Options{})
	require.NoError(t, err)
	require.Nil(t, again.Newest("w"))
	stored, err := put(again, 3, 5)
	require.NoError(t, err)
	require.False(t, stored)
	require.Equal(t, uint64(4), again.Last("w"))
	require.Equal(t, map[string]uint64{"w": 4}, again.Floors())
	_, err = reader(t, again, "w").Pull()
	require.ErrorIs(t, err, ErrNoVersion)
	mustPut(t, again, 5)
	require.NoError(t, again.Close())
}

func TestInvalidVersionsAreRejected(t *testing.T) {
	s := newStore(t, Options{MaxBytes: 10})
	long := strings.Repeat("x", MaxDescription)
	for name, v := range map[string]*psv1.Version{
		"no tag":    {},
		"long tag":  {Tag: long[:MaxTag+1]},
		"control":   {Tag: "a\x00b"},
		"long info": {Tag: "w", Info: map[string]string{"x": long}},
	} {
		_, err := s.Reserve(v, "")
		require.ErrorIs(t, err, ErrVersion, name)
	}
	require.Empty(t, s.Versions())
	require.Zero(t, s.Usage().Bytes)
	_, err := NewReader(s.Directory(), "")
	require.ErrorIs(t, err, ErrVersion)
}

func TestClosedStoresAndReadersReturnErrClosed(t *testing.T) {
	s := newStore(t, Options{})
	mustPut(t, s, 1)
	r := reader(t, s, "w")
	p, err := r.Pull()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.NoError(t, r.Close())
	require.False(t, torn(p), "pulled parameters outlive the reader")
	require.NoError(t, p.Release())
	_, err = r.Pull()
	require.ErrorIs(t, err, ErrClosed)
	_, err = r.ID()
	require.ErrorIs(t, err, ErrClosed)
	_, err = r.Served()
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, s.Close())
	_, err = put(s, 2, 1)
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, s.Remove())
	require.NoDirExists(t, s.Directory())
}

func TestReadersRejectDamagedIndexAndOfficersReplaceIt(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"truncated":       func(b []byte) []byte { return b[:100] },
		"another magic":   func(b []byte) []byte { b[0]++; return b },
		"another version": func(b []byte) []byte { b[8]++; return b },
		"another machine": func(b []byte) []byte { b[pageBootAt]++; return b },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Options{})
			mustPut(t, s, 3)
			require.NoError(t, s.Close())
			path := filepath.Join(tagPath(s.Directory(), "w"), indexName)
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(content), 0o600))
			_, err = reader(t, s, "w").ID()
			if name == "another machine" {
				require.ErrorIs(t, err, ErrOtherMachine)
			} else {
				require.ErrorIs(t, err, ErrFormat)
			}
			again, err := Open(s.Directory(), Options{})
			require.NoError(t, err)
			id, err := reader(t, s, "w").ID()
			require.NoError(t, err)
			require.Equal(t, uint64(3), id)
			require.NoError(t, again.Close())
		})
	}
}

func TestStoreIsAccessibleToItsUserOnly(t *testing.T) {
	s := newStore(t, Options{})
	mustPut(t, s, 1)
	require.NoError(t, filepath.Walk(s.Directory(), func(path string, info os.FileInfo, err error) error {
		require.NoError(t, err)
		if path != s.Directory() {
			require.Zero(t, info.Mode().Perm()&0o077, path)
		}
		return nil
	}))
	require.NoError(t, os.Chmod(versionPath(tagPath(s.Directory(), "w"), 1), 0o644))
	_, err := reader(t, s, "w").Pull()
	require.ErrorIs(t, err, mapfile.ErrForeign)
}

func BenchmarkID(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	require.NoError(b, err)
	_, err = put(s, 1, 10)
	require.NoError(b, err)
	r, err := NewReader(s.Directory(), "w")
	require.NoError(b, err)
	for b.Loop() {
		if _, err := r.ID(); err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, r.Close())
	require.NoError(b, s.Close())
}
