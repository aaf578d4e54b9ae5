package engine

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRecordsOfEndedRunsAreBounded(t *testing.T) {
	t.Parallel()
	all := Records{Data: t.TempDir()}
	var running, first *Record
	for i := range kept + 5 {
		record := &Record{ID: NewID(), Started: time.Unix(int64(i), 0), State: Ended}
		switch i {
		case 0:
			record.State, running = Running, record
		case 1:
			first = record
		}
		require.NoError(t, all.Create(record))
	}
	list, err := all.All()
	require.NoError(t, err)
	assert.Equal(t, running.ID, list[0].ID, "a run that is not over is kept")
	assert.LessOrEqual(t, len(list), kept+2)
	_, err = all.Find(first.ID)
	require.ErrorIs(t, err, fs.ErrNotExist)
	elsewhere := filepath.Join(all.Data, "x")
	require.NoError(t, os.Mkdir(elsewhere, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "run.json"), []byte("{}"), 0o600))
	for _, id := range []string{"", "../x", "a/b", ".", "UPPER"} {
		_, err := all.Find(id)
		assert.ErrorIs(t, err, fs.ErrNotExist, "%q", id)
	}
}

func TestHeldRecord(t *testing.T) {
	t.Parallel()
	all := Records{Data: t.TempDir()}
	record := &Record{ID: NewID(), State: Running}
	require.NoError(t, all.Create(record))
	held, err := record.IsHeld()
	require.NoError(t, err)
	assert.False(t, held)
	require.NoError(t, record.Hold())
	other, err := all.Find(record.ID)
	require.NoError(t, err)
	held, err = other.IsHeld()
	require.NoError(t, err)
	assert.True(t, held)
	assert.ErrorContains(t, other.Hold(), "has a head already")
}

func TestFollowCopiesWhatWasWrittenBeforeTheEnd(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/output"
	var out bytes.Buffer
	calls := 0
	err := Follow(t.Context(), &out, path, func() (bool, error) {
		calls++
		switch calls {
		case 2:
			return false, os.WriteFile(path, []byte("one "), 0o600)
		case 3:
			file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = file.WriteString("two")
			require.NoError(t, err)
			return true, file.Close()
		}
		return false, nil
	})
	require.NoError(t, err)
	assert.Equal(t, "one two", out.String())
}

func TestNothingIsLeftOfARecordThatCannotBeStored(t *testing.T) {
	t.Parallel()
	all := Records{Data: t.TempDir()}
	record := &Record{ID: "one", Engine: "local", State: Running}
	require.NoError(t, os.MkdirAll(filepath.Join(all.folder(), "one", "run.json.new"), 0o700))
	require.Error(t, all.Create(record))
	assert.NoDirExists(t, record.Directory())
}
