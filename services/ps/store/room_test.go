package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

func TestTotalSizeIsBounded(t *testing.T) {
	const room = 10 * page
	s := newStore(t, Options{Held: 3, MaxTotalBytes: room})
	// Each version has a header of one page. Older versions go, the oldest first.
	for id := uint64(1); id <= 3; id++ {
		push(t, s, "a", id, content(id, page))
	}
	push(t, s, "b", 4, content(4, page))
	push(t, s, "b", 5, content(5, page))
	require.Equal(t, uint64(room), s.Usage().Bytes)
	push(t, s, "c", 6, content(6, page))
	require.NoFileExists(t, versionPath(tagPath(s.Directory(), "a"), 1))
	require.FileExists(t, versionPath(tagPath(s.Directory(), "a"), 2))
	require.Equal(t, uint64(room), s.Usage().Bytes)

	// What a reader holds remains, and neither do the newest versions go.
	r := reader(t, s, "a")
	held := pull(t, r, 3, content(3, page))
	push(t, s, "a", 7, content(7, page))
	_, err := s.Reserve(&psv1.Version{Tag: "d", Size: 3 * page}, "")
	var refused *RoomError
	require.ErrorAs(t, err, &refused)
	require.ErrorIs(t, err, ErrNoRoom)
	require.Equal(t, boundTotal, refused.Bound)
	require.ErrorContains(t, err, `"d"`)
	require.ErrorContains(t, err, `16384 by tag "a" (2 versions, 1 in use, 0 drafts)`)
	require.ErrorContains(t, err, "max_total_bytes")
	require.NoDirExists(t, tagPath(s.Directory(), "d"))
	require.Len(t, s.Versions(), 3, "the state is as it was")
	require.NoError(t, pull(t, r, 7, content(7, page)).Release())
	push(t, s, "d", 1, nil) // less fits
	require.NoError(t, held.Verify())
	require.NoError(t, held.Release())
	require.NoError(t, s.Delete("d", 0))
	push(t, s, "d", 2, content(2, 2*page))
	require.NoError(t, s.Delete("b", 0))
	push(t, s, "c", 8, content(8, page))
	require.LessOrEqual(t, s.Usage().Bytes, uint64(room))
}

func TestNumberOfTagsIsBounded(t *testing.T) {
	s := newStore(t, Options{MaxTags: 2})
	push(t, s, "a", 1, nil)
	d, err := s.Reserve(&psv1.Version{Tag: "b"}, "")
	require.NoError(t, err)
	_, err = s.Reserve(&psv1.Version{Tag: "c"}, "")
	var refused *RoomError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, boundTags, refused.Bound)
	require.ErrorContains(t, err, "the limit of 2 tags (max_tags)")
	require.NoError(t, d.Discard())
	push(t, s, "c", 1, nil)
	_, err = s.Reserve(&psv1.Version{Tag: "b"}, "")
	require.ErrorIs(t, err, ErrNoRoom)
	push(t, s, "a", 2, nil)
	require.NoError(t, s.Delete("a", 0))
	push(t, s, "b", 1, nil)
}

func TestSizeOfParametersIsBounded(t *testing.T) {
	s := newStore(t, Options{MaxBytes: 10})
	_, err := s.Reserve(&psv1.Version{Tag: "w", Size: 11}, "")
	require.ErrorIs(t, err, ErrNoRoom)
	require.ErrorContains(t, err, "at most 10 bytes (max_bytes)")
	_, err = s.Reserve(&psv1.Version{Tag: "w", Size: 1 << 63}, "")
	require.ErrorIs(t, err, ErrNoRoom)
}
