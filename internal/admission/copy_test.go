package admission_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/pki"
)

// mounted makes a CA, and presents it as a mounted Secret: links to files that all may read.
func mounted(t *testing.T) (dir, fingerprint string) {
	t.Helper()
	made, dir := t.TempDir(), t.TempDir()
	authority, err := admission.Open(filepath.Join(made, "pki"), 0)
	require.NoError(t, err)
	entries, err := os.ReadDir(filepath.Join(made, "pki"))
	require.NoError(t, err)
	for _, entry := range entries {
		path := filepath.Join(made, "pki", entry.Name())
		require.NoError(t, os.Chmod(path, 0o644))
		require.NoError(t, os.Symlink(path, filepath.Join(dir, entry.Name())))
	}
	return dir, authority.Fingerprint()
}

func TestCopiedCAIsTheSame(t *testing.T) {
	t.Parallel()
	from, fingerprint := mounted(t)
	to := filepath.Join(t.TempDir(), "pki")
	require.NoError(t, pki.CopyCA(from, to))
	authority, err := admission.Open(to, 0)
	require.NoError(t, err)
	assert.Equal(t, fingerprint, authority.Fingerprint())
	join, err := os.ReadFile(filepath.Join(from, "join.token"))
	require.NoError(t, err)
	assert.Equal(t, string(join), authority.JoinToken().Reveal()+"\n")
	require.NoError(t, pki.CopyCA(from, to), "a restart")
}

func TestCopyingReplacesNoCA(t *testing.T) {
	t.Parallel()
	to := filepath.Join(t.TempDir(), "pki")
	first, fingerprint := mounted(t)
	require.NoError(t, pki.CopyCA(first, to))
	second, _ := mounted(t)
	require.ErrorContains(t, pki.CopyCA(second, to), "has another one")
	authority, err := admission.Open(to, 0)
	require.NoError(t, err)
	assert.Equal(t, fingerprint, authority.Fingerprint())
}

func TestIncompleteCAIsNotCopied(t *testing.T) {
	t.Parallel()
	from, _ := mounted(t)
	require.NoError(t, os.Remove(filepath.Join(from, "tokens.json")))
	to := filepath.Join(t.TempDir(), "pki")
	require.ErrorContains(t, pki.CopyCA(from, to), "tokens.json")
	assert.NoDirExists(t, to)
}
