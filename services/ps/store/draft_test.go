package store

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// content returns parameters of which no two chunks of a version, and no two versions, are alike.
func content(id uint64, size int) []byte {
	b := make([]byte, size)
	state := id
	for i := range b {
		state = state*6364136223846793005 + 1442695040888963407
		b[i] = byte(state >> 56)
	}
	return b
}

// write writes all chunks of a draft from the given one on.
func write(d *Draft, from int, parameters []byte) error {
	for i := from; i < d.Chunks(); i++ {
		chunk := parameters[i*ChunkSize : min(len(parameters), (i+1)*ChunkSize)]
		if err := d.WriteChunk(i, chunk, Checksum(chunk)); err != nil {
			return err
		}
	}
	return nil
}

func TestIncompleteDraftIsNotPublished(t *testing.T) {
	s := newStore(t, Options{})
	parameters := content(1, 2*ChunkSize+1)
	v := &psv1.Version{Tag: "w", Id: 1, Size: uint64(len(parameters))}
	d, err := s.Reserve(v, "")
	require.NoError(t, err)
	require.NoError(t, d.WriteChunk(0, parameters[:ChunkSize], Checksum(parameters[:ChunkSize])))
	_, err = s.Publish(d, v)
	require.ErrorIs(t, err, ErrVersion)
	_, err = reader(t, s, "w").Pull()
	require.ErrorIs(t, err, ErrNoVersion)

	require.NoError(t, write(d, 1, parameters))
	published, err := s.Publish(d, v)
	require.NoError(t, err)
	require.True(t, published)
	p, err := reader(t, s, "w").Pull()
	require.NoError(t, err)
	require.Equal(t, parameters, p.Bytes())
	require.NoError(t, p.Release())
}

// push publishes a version of tag "w" that the officer writes itself.
func push(t require.TestingT, s *Store, tag string, id uint64, parameters []byte) {
	v := &psv1.Version{Tag: tag, Id: id, Size: uint64(len(parameters)), Pushed: timestamppb.New(time.Unix(int64(id), 0))}
	d, err := s.Reserve(v, "")
	require.NoError(t, err)
	require.NoError(t, write(d, 0, parameters))
	published, err := s.Publish(d, v)
	require.NoError(t, err)
	require.True(t, published)
}

// pull pulls a version and compares it.
func pull(t require.TestingT, r *Reader, id uint64, parameters []byte) *Parameters {
	p, err := r.Pull()
	require.NoError(t, err)
	require.Equal(t, id, p.Version().GetId())
	require.True(t, bytes.Equal(parameters, p.Bytes()), "the parameters are not those of version %d", id)
	require.NoError(t, p.Verify())
	return p
}

func TestDamagedChunksAreRefused(t *testing.T) {
	s := newStore(t, Options{})
	parameters := content(1, 2*ChunkSize+1)
	d, err := s.Reserve(&psv1.Version{Tag: "w", Size: uint64(len(parameters))}, "abc")
	require.NoError(t, err)
	require.Equal(t, 3, d.Chunks())
	first, second := parameters[:ChunkSize], parameters[ChunkSize:2*ChunkSize]
	require.ErrorIs(t, d.WriteChunk(1, second, Checksum(second)), ErrVersion, "out of order")
	require.ErrorIs(t, d.WriteChunk(0, first, Checksum(second)), ErrDamaged)
	require.ErrorIs(t, d.WriteChunk(0, first[1:], Checksum(first[1:])), ErrDamaged, "too short")
	require.Zero(t, d.Written())
	require.NoError(t, d.WriteChunk(0, first, Checksum(first)))
	require.NoError(t, d.WriteChunk(0, first, Checksum(first)), "a chunk that was written before")
	require.NoError(t, write(d, 1, parameters))
	require.ErrorIs(t, d.WriteChunk(3, nil, 0), ErrVersion, "beyond the end")
	sum, complete := d.Checksum()
	require.True(t, complete && d.Complete())
	require.Equal(t, Checksum(parameters), sum)

	for name, v := range map[string]*psv1.Version{
		"no id":         {Tag: "w", Size: d.Size()},
		"no valid id":   {Tag: "w", Size: d.Size(), Id: removed},
		"another tag":   {Tag: "v", Size: d.Size(), Id: 1},
		"another size":  {Tag: "w", Size: d.Size() + 1, Id: 1},
		"other content": {Tag: "w", Size: d.Size(), Id: 1, Content: "abd"},
		"long info":     {Tag: "w", Size: d.Size(), Id: 1, Info: map[string]string{"x": string(make([]byte, 1000))}},
	} {
		_, err := s.Publish(d, v)
		require.ErrorIs(t, err, ErrVersion, name)
	}
	_, err = s.Publish(d, &psv1.Version{Tag: "w", Size: d.Size(), Id: 1, Checksum: sum + 1})
	require.ErrorIs(t, err, ErrDamaged)
	require.Nil(t, s.Newest("w"))
	require.Equal(t, d, s.Draft("abc"))
	require.NoError(t, d.Discard())
	require.NoError(t, d.Discard())
	require.Nil(t, s.Draft("abc"))
	_, err = s.Publish(d, &psv1.Version{Tag: "w", Size: d.Size(), Id: 1})
	require.ErrorIs(t, err, ErrDiscarded)
	require.ErrorIs(t, d.WriteChunk(0, first, Checksum(first)), ErrDiscarded)
	require.ErrorIs(t, d.Lend(), ErrDiscarded)
	require.ErrorIs(t, d.Reclaim(sum), ErrDiscarded)
	require.Zero(t, s.Usage().Bytes)
	require.NoDirExists(t, tagPath(s.Directory(), "w"), "a tag without versions")
}

func TestInvalidDraftsAreRefused(t *testing.T) {
	s := newStore(t, Options{})
	for _, name := range []string{"..", "a/b", "a b", "ä", string(make([]byte, 65)), "a.draft"} {
		_, err := s.Reserve(&psv1.Version{Tag: "w"}, name)
		require.ErrorIs(t, err, ErrVersion, name)
	}
	d, err := s.Reserve(&psv1.Version{Tag: "w"}, "same")
	require.NoError(t, err)
	_, err = s.Reserve(&psv1.Version{Tag: "v"}, "same")
	require.ErrorIs(t, err, ErrExists)
	published, err := s.Publish(d, &psv1.Version{Tag: "w", Id: 1})
	require.NoError(t, err)
	require.True(t, published)
	_, err = s.Reserve(&psv1.Version{Tag: "v"}, "same")
	require.ErrorIs(t, err, ErrExists, "published")
	require.Zero(t, s.Usage().Drafts)
	require.NoError(t, pull(t, reader(t, s, "w"), 1, nil).Release())
}

func TestFilledDraftIsPublished(t *testing.T) {
	s := newStore(t, Options{})
	r := reader(t, s, "w")
	rapid.Check(t, func(t *rapid.T) {
		id := s.Last("w") + 1
		size := rapid.SampledFrom([]int{0, 1, 1000, ChunkSize - 1, ChunkSize, ChunkSize + 1, 3*ChunkSize + 7}).Draw(t, "size")
		parameters := content(id, size)
		var parts [][]byte
		for rest := parameters; ; {
			n := rapid.IntRange(0, len(rest)).Draw(t, "part")
			parts, rest = append(parts, rest[:n]), rest[n:]
			if len(parts) == 5 {
				parts = append(parts, rest)
				break
			}
		}
		v := &psv1.Version{Tag: "w", Id: id, Size: uint64(size), Info: map[string]string{"a": "b"}}
		d, err := s.Reserve(v, "")
		require.NoError(t, err)
		require.NoError(t, d.Lend())
		require.False(t, d.Complete())
		sum, err := Fill(d.Path(), parts...)
		require.NoError(t, err)
		require.Equal(t, Checksum(parameters), sum)
		require.NoError(t, d.Reclaim(sum))
		published, err := s.Publish(d, &psv1.Version{Tag: "w", Id: id, Size: uint64(size), Checksum: sum})
		require.NoError(t, err)
		require.True(t, published)
		p := pull(t, r, id, parameters)
		require.Equal(t, map[string]string{"a": "b"}, p.Version().GetInfo())
		require.Equal(t, d.Content(), p.Version().GetContent())
		require.NoError(t, p.Release())
	})
}

func TestOnlyLentDraftsAreFilled(t *testing.T) {
	s := newStore(t, Options{Held: 1})
	parameters := content(1, 1000)
	size := uint64(len(parameters))
	d, err := s.Reserve(&psv1.Version{Tag: "w", Size: size}, "")
	require.NoError(t, err)
	_, err = Fill(d.Path(), parameters)
	require.ErrorIs(t, err, ErrDiscarded, "not lent")
	require.ErrorIs(t, d.Reclaim(0), ErrVersion)
	require.NoError(t, d.Lend())
	require.NoError(t, d.Lend())
	require.ErrorIs(t, d.WriteChunk(0, parameters, Checksum(parameters)), ErrBusy)
	_, err = Fill(d.Path(), parameters[1:])
	require.ErrorIs(t, err, ErrVersion, "another size")
	_, err = Fill(filepath.Join(s.Directory(), lockName), parameters)
	require.ErrorIs(t, err, ErrVersion, "another file")
	sum, err := Fill(d.Path(), parameters)
	require.NoError(t, err)
	require.ErrorIs(t, d.Reclaim(sum+1), ErrDamaged)
	require.False(t, d.Complete())

	other, _, err := mapfile.Open(d.Path())
	require.NoError(t, err)
	require.NoError(t, mapfile.Lock(other, fillLock))
	_, err = Fill(d.Path(), parameters)
	require.ErrorIs(t, err, ErrBusy)
	require.ErrorIs(t, d.Reclaim(sum), ErrBusy)
	require.NoError(t, mapfile.Unlock(other, fillLock))
	require.NoError(t, d.Reclaim(sum))
	_, err = Fill(d.Path(), parameters)
	require.ErrorIs(t, err, ErrDiscarded, "reclaimed")
	published, err := s.Publish(d, &psv1.Version{Tag: "w", Id: 1, Size: size})
	require.NoError(t, err)
	require.True(t, published)
	_, err = Fill(d.Path(), parameters)
	require.ErrorIs(t, err, ErrDiscarded, "published")

	// A process that opened the draft late has another draft's file.
	push(t, s, "w", 2, content(2, 1000))
	again, err := s.Reserve(&psv1.Version{Tag: "w", Size: size}, "")
	require.NoError(t, err)
	require.NoError(t, again.Lend())
	status, err := mapfile.Stat(other)
	require.NoError(t, err)
	_, err = fillFile(other, status.Size, d.Content(), [][]byte{parameters})
	require.ErrorIs(t, err, ErrDiscarded)
	require.NoError(t, mapfile.Unlock(other, fillLock))
	sum, err = Fill(again.Path(), parameters)
	require.NoError(t, err)
	require.NoError(t, again.Reclaim(sum))
	require.NoError(t, again.Discard())
	_, err = fillFile(other, status.Size, again.Content(), [][]byte{parameters})
	require.Error(t, err, "discarded")
	require.NoError(t, other.Close())
}

func TestSourceFollowsDraft(t *testing.T) {
	s := newStore(t, Options{Held: 1})
	parameters := content(1, 3*ChunkSize)
	v := &psv1.Version{Tag: "w", Id: 1, Size: uint64(len(parameters))}
	_, err := s.Source("abc")
	require.ErrorIs(t, err, ErrNoVersion)
	_, err = s.SourceOf("w")
	require.ErrorIs(t, err, ErrNoVersion)
	d, err := s.Reserve(v, "abc")
	require.NoError(t, err)
	x, err := s.Source("abc")
	require.NoError(t, err)
	require.Equal(t, "abc", x.Version().GetContent())
	_, _, err = x.Chunk(t.Context(), 3)
	require.ErrorIs(t, err, ErrVersion)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = x.Chunk(ended, 0)
	require.ErrorIs(t, err, context.Canceled)

	read := make(chan error)
	go func() {
		var whole []byte
		for i := range 3 {
			chunk, sum, err := x.Chunk(t.Context(), i)
			if err == nil && Checksum(chunk) != sum {
				err = ErrDamaged
			}
			if err != nil {
				read <- err
				return
			}
			whole = append(whole, chunk...)
			read <- nil
		}
		if !bytes.Equal(whole, parameters) {
			read <- ErrDamaged
		}
		close(read)
	}()
	for i := range 3 {
		chunk := parameters[i*ChunkSize : (i+1)*ChunkSize]
		require.NoError(t, d.WriteChunk(i, chunk, Checksum(chunk)))
		require.NoError(t, <-read)
	}
	require.NoError(t, <-read)
	published, err := s.Publish(d, v)
	require.NoError(t, err)
	require.True(t, published)

	// The source holds the file, as a reader would.
	for id := uint64(2); id < 6; id++ {
		push(t, s, "w", id, content(id, 3*ChunkSize))
	}
	require.True(t, bytes.Equal(parameters, x.Bytes()), "the file was recycled under a source")
	newest, err := s.SourceOf("w")
	require.NoError(t, err)
	require.Equal(t, uint64(5), newest.Version().GetId())
	chunk, sum, err := newest.Chunk(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, sum, Checksum(chunk))
	require.NoError(t, newest.Release())
	require.Equal(t, 3, s.Usage().Files)
	require.NoError(t, x.Release())
	require.NoError(t, x.Release())
	require.NoError(t, s.Sweep())
	require.Equal(t, 2, s.Usage().Files)
}

func TestSourceOutlivesItsOfficer(t *testing.T) {
	s := newStore(t, Options{})
	parameters := content(1, ChunkSize+1)
	push(t, s, "w", 1, parameters)
	x, err := s.SourceOf("w")
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = s.SourceOf("w")
	require.ErrorIs(t, err, ErrClosed)
	next, err := Open(s.Directory(), Options{Held: 1})
	require.NoError(t, err)
	for id := uint64(2); id < 6; id++ {
		push(t, next, "w", id, content(id, ChunkSize+1))
	}
	require.Equal(t, 1, next.Usage().Tags[0].Held)
	require.True(t, bytes.Equal(parameters, x.Bytes()))
	require.NoError(t, x.Release())
	require.NoError(t, next.Sweep())
	require.Equal(t, 2, next.Usage().Files)
	require.NoError(t, next.Close())
}

func TestSourcesOfDiscardedDraftsEnd(t *testing.T) {
	for name, end := range map[string]func(*Store, *Draft) error{
		"discarded": func(_ *Store, d *Draft) error { return d.Discard() },
		"late": func(s *Store, d *Draft) error {
			_, err := s.Publish(d, &psv1.Version{Tag: "w", Id: 1, Size: d.Size()})
			return err
		},
		"closed": func(s *Store, _ *Draft) error { return s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Options{})
			push(t, s, "w", 1, content(1, 10))
			parameters := content(2, 2*ChunkSize)
			d, err := s.Reserve(&psv1.Version{Tag: "w", Size: uint64(len(parameters))}, "")
			require.NoError(t, err)
			require.NoError(t, d.WriteChunk(0, parameters[:ChunkSize], Checksum(parameters[:ChunkSize])))
			x, err := s.Source(d.Content())
			require.NoError(t, err)
			first, _, err := x.Chunk(t.Context(), 0)
			require.NoError(t, err)
			if name == "late" {
				require.NoError(t, write(d, 1, parameters))
			}
			waited := make(chan error)
			go func() {
				_, _, err := x.Chunk(t.Context(), 1)
				waited <- err
			}()
			if name == "late" {
				require.NoError(t, <-waited)
			}
			require.NoError(t, end(s, d))
			expected := ErrDiscarded
			if name == "closed" {
				expected = ErrClosed
			}
			if name != "late" {
				require.ErrorIs(t, <-waited, expected)
			}
			_, _, err = x.Chunk(t.Context(), 0)
			require.ErrorIs(t, err, expected)
			require.NoFileExists(t, d.Path())
			require.True(t, bytes.Equal(parameters[:ChunkSize], first), "what a source returned is valid until it is released")
			if name != "closed" {
				require.Positive(t, s.Usage().Retired)
			}
			require.NoError(t, x.Release())
			require.True(t, name == "closed" || s.Usage().Retired == 0)
		})
	}
}

func TestChecksumsCombine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(0, 5*ChunkSize).Draw(t, "size")
		parameters := content(uint64(size), size)
		var table []uint32
		for from := 0; from < size; from += ChunkSize {
			table = append(table, Checksum(parameters[from:min(size, from+ChunkSize)]))
		}
		require.Equal(t, Checksum(parameters), combine(table, uint64(size)))
		require.Equal(t, table, append([]uint32(nil), decodeTable(encodeTable(table))...))
	})
}
