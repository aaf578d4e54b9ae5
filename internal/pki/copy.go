package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// caFiles are the files of a CA and of its tokens. The key is the last: with it, all are there.
func caFiles() []string {
	return []string{certificateFile, tokensFile, "join.token", "admin.token", secretFile, keyFile}
}

// CopyCA copies the CA and the tokens in one directory to another, which becomes that of a CA for
// the user alone. What is copied may be readable by others, and linked, as the files of a mounted
// Secret are. It does nothing if the CA is there already, and refuses to replace another one.
func CopyCA(from, to string) error {
	files := make(map[string][]byte)
	for _, name := range caFiles() {
		content, err := readFile(filepath.Join(from, name))
		if err != nil {
			return fmt.Errorf("copying the CA in %s: %w", from, err)
		}
		files[name] = content
	}
	if err := openPrivateDir(to); err != nil {
		return err
	}
	switch key, err := readPrivate(filepath.Join(to, keyFile), maxPEM); {
	case err == nil && bytes.Equal(key, files[keyFile]):
		return nil
	case err == nil:
		return fmt.Errorf("copying the CA in %s: %s has another one: remove it for this one, which all hosts must join again", from, to)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, name := range caFiles() {
		if err := writePrivate(filepath.Join(to, name), files[name]); err != nil {
			return err
		}
	}
	return nil
}
