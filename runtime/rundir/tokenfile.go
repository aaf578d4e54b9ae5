package rundir

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxToken bounds a token file's line, in bytes.
const maxToken = 4 << 10

// ReadToken reads a token from the first line of a file, which may be a pipe: a shell's
// `<(command)`.
func ReadToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	line, err := bufio.NewReaderSize(io.LimitReader(f, maxToken+1), maxToken+1).ReadString('\n')
	token := strings.TrimSpace(line)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return "", fmt.Errorf("reading the token: %w", err)
	case len(line) > maxToken:
		return "", fmt.Errorf("reading the token: the first line of %s is longer than %d bytes", path, maxToken)
	case token == "":
		return "", fmt.Errorf("reading the token: the first line of %s is empty", path)
	}
	return token, nil
}
