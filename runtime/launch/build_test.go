package launch

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBuildIsWhatGoToolBuildidPrints(t *testing.T) {
	file, err := os.Executable()
	require.NoError(t, err)
	out, err := exec.CommandContext(within(t), "go", "tool", "buildid", file).Output()
	if err != nil {
		t.Skipf("go tool buildid: %v", err)
	}
	assert.Equal(t, strings.TrimSpace(string(out)), Build())
}

func TestBuildOfFilesThatNoLinkerSigned(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	build, err := buildOf(write("text \xff Go build ID: \"a/b\"\n \xff more"))
	require.NoError(t, err)
	assert.Equal(t, "a/b", build)

	one, err := buildOf(write("one"))
	require.NoError(t, err)
	two, err := buildOf(write("two"))
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(one, "sha256:"), one)
	assert.NotEqual(t, one, two)

	_, err = buildOf(filepath.Join(t.TempDir(), "nothing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func note(name, desc string, kind uint32) []byte {
	pad := func(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
	var b bytes.Buffer
	for _, word := range []int{len(name), len(desc), int(kind)} {
		b.Write(binary.LittleEndian.AppendUint32(nil, uint32(word)))
	}
	return append(b.Bytes(), pad(name)+pad(desc)...)
}

func TestFindNote(t *testing.T) {
	other, ours := note("GNU\x00", "12345", 3), note("Go\x00\x00", "the/id", 4)
	find := func(notes ...[]byte) string {
		return findNote(binary.LittleEndian, bytes.Join(notes, nil), "Go\x00\x00", 4)
	}
	assert.Equal(t, "the/id", find(other, ours))
	assert.Equal(t, "the/id", find(ours, other))
	assert.Empty(t, find(other))
	assert.Empty(t, find(note("Go\x00\x00", "x", 5), note("G", "x", 4)))
	assert.Empty(t, find())
	assert.Empty(t, find(ours[:len(ours)-4]), "truncated")
}

func FuzzFindNote(f *testing.F) {
	f.Add(append(note("GNU\x00", "12345", 3), note("Go\x00\x00", "the/id", 4)...))
	f.Fuzz(func(_ *testing.T, notes []byte) {
		findNote(binary.LittleEndian, notes, "Go\x00\x00", 4)
		textBuildID(bytes.NewReader(notes))
		elfBuildID(bytes.NewReader(notes))
	})
}
