package ps

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/ps/archive"
	"github.com/raylink/raylink/services/ps/safetensors"
	"github.com/raylink/raylink/services/ps/store"
)

func TestSavedParametersAreLoadedIntoAnotherSystem(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, _ *system, c *Client) {
		directory := filepath.Join(t.TempDir(), "saved")
		bytes := weights(1, 3*store.ChunkSize+1)
		for range 3 {
			mustPush(t, c, "policy", bytes, Info("step", "100"))
		}
		_, err := c.PushTensors(t.Context(), "policy/best", model(2))
		require.NoError(t, err)
		mustPush(t, c, "empty", nil)
		require.NoError(t, c.Save(t.Context(), directory, "policy"))
		tags, err := archive.List(directory)
		require.NoError(t, err)
		require.Equal(t, []string{"policy"}, tags)
		require.NoError(t, c.SaveAll(t.Context(), directory))
		content, err := os.ReadFile(filepath.Join(directory, "policy", "best.safetensors"))
		require.NoError(t, err)
		want, err := safetensors.Marshal(model(2), nil)
		require.NoError(t, err)
		require.Equal(t, store.Checksum(want), store.Checksum(content))

		other := newSystem(t, nil).client(home)
		versions, err := other.LoadAll(t.Context(), directory)
		require.NoError(t, err)
		require.Len(t, versions, 3)
		requirePulled(t, other, "policy", bytes, 3)
		requirePulled(t, other, "policy/best", want, 1)
		requirePulled(t, other, "empty", nil, 1)
		meta, err := other.Meta(t.Context(), "policy")
		require.NoError(t, err)
		assert.Equal(t, map[string]string{"step": "100"}, meta.GetInfo())
		require.Equal(t, uint64(4), mustPush(t, other, "policy", nil), "ids go on from there")

		// Where the captain has given the id already, the version gets the next one.
		version, err := other.Load(t.Context(), directory, "policy", Info("from", "file"))
		require.NoError(t, err)
		require.Equal(t, uint64(5), version.GetId())
		assert.Equal(t, map[string]string{"step": "100", "from": "file"}, version.GetInfo())
		requirePulled(t, other, "policy", bytes, 5)
	})
}

func TestUnknownTagsAreNotSavedNorLoaded(t *testing.T) {
	c := newSystem(t, nil).client(home)
	directory := filepath.Join(t.TempDir(), "saved")
	require.ErrorIs(t, c.Save(t.Context(), directory, "policy"), ErrNoVersion)
	assert.NoDirExists(t, directory)
	require.NoError(t, c.SaveAll(t.Context(), directory))
	_, err := c.Load(t.Context(), directory, "policy")
	require.ErrorIs(t, err, os.ErrNotExist)
	mustPush(t, c, "other", []byte("x"))
	require.NoError(t, c.SaveAll(t.Context(), directory))
	_, err = c.Load(t.Context(), directory, "policy")
	require.ErrorIs(t, err, archive.ErrNoTag)
	require.ErrorContains(t, err, `there are "other"`)
}

// A failure must not keep the other tags from being saved and loaded.
func TestOneTagsFailureDoesNotAffectTheOthers(t *testing.T) {
	s := newSystem(t, nil)
	c, directory := s.client(home), t.TempDir()
	for _, tag := range []string{"a", "b", "c"} {
		mustPush(t, c, tag, []byte(tag))
	}
	require.NoError(t, os.Mkdir(filepath.Join(directory, "b.bin"), 0o700))
	require.ErrorContains(t, c.SaveAll(t.Context(), directory), `save tag "b"`)
	tags, err := archive.List(directory)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "c"}, tags)

	require.NoError(t, os.Remove(filepath.Join(directory, "b.bin")))
	require.NoError(t, c.SaveAll(t.Context(), directory))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "b.bin"), []byte("x"), 0o600))
	loaded, err := newSystem(t, nil).client(home).LoadAll(t.Context(), directory)
	require.ErrorIs(t, err, archive.ErrDamaged)
	require.ErrorContains(t, err, `read tag "b"`)
	require.Len(t, loaded, 2)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.LoadAll(canceled, directory)
	require.ErrorIs(t, err, context.Canceled)
}

func TestTagThatTheCaptainRefusesIsNotLoaded(t *testing.T) {
	c, directory := newSystem(t, nil).client(home), t.TempDir()
	content, err := safetensors.Marshal(nil, nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(directory, "a%0a.safetensors"), content, 0o600))
	_, err = c.LoadAll(t.Context(), directory)
	require.ErrorContains(t, err, `invalid tag "a\n"`)
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
}

// Ids have to be left for later pushes, whatever a file says.
func TestLoadedIDsLeaveOthers(t *testing.T) {
	c, directory := newSystem(t, nil).client(home), t.TempDir()
	mustPush(t, c, "a", []byte("x"), At(math.MaxInt64))
	require.NoError(t, c.Save(t.Context(), directory, "a"))
	other := newSystem(t, nil).client(home)
	version, err := other.Load(t.Context(), directory, "a")
	require.NoError(t, err)
	require.Equal(t, version.GetId()+1, mustPush(t, other, "a", []byte("y")))
}

func TestSavingAndLoadingDoNotCopyParameters(t *testing.T) {
	c, directory := newSystem(t, nil).client(home), t.TempDir()
	mustPush(t, c, "w", weights(1, 32<<20))
	for name, do := range map[string]func() error{
		"save": func() error { return c.Save(t.Context(), directory, "w") },
		"load": func() error { _, err := c.Load(t.Context(), directory, "w"); return err },
	} {
		if name == "load" {
			require.NoError(t, c.Save(t.Context(), directory, "w"))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		require.NoError(t, do())
		runtime.ReadMemStats(&after)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20), name)
	}
}
