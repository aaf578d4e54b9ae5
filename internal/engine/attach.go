package engine

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// stopLine asks an attached process to stop gracefully.
const stopLine = "stop"

// maxTokenLine bounds the first line of the pipe.
const maxTokenLine = 4 << 10

// Attach attaches this process to the one that holds the write end of a pipe, its standard input.
// The first line is a secret, or empty. A line `stop` calls stop, once, to end gracefully; the end
// of the pipe without it means that the other process has died: lost is called, which should end
// this process at once. Both are called on a goroutine of Attach.
//
// It is what `raylink agent --attached` and `raylink brain --attached` do.
func Attach(in io.Reader, stop, lost func()) (secret string, err error) {
	r := bufio.NewReaderSize(in, maxTokenLine)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return "", fmt.Errorf("reading the first line of standard input, the token (--attached): %w", err)
	}
	secret = strings.TrimSpace(string(line))
	go func() {
		for stopped := false; ; {
			line, err := r.ReadSlice('\n')
			switch {
			case err != nil && stopped:
				return
			case err != nil:
				lost()
				return
			case strings.TrimSpace(string(line)) == stopLine && !stopped:
				stopped = true
				stop()
			}
		}
	}()
	return secret, nil
}

// pipe is the other end of Attach.
type pipe struct{ w *os.File }

func (p pipe) begin(secret string) error {
	_, err := fmt.Fprintln(p.w, secret)
	return err
}

func (p pipe) stop() { _, _ = fmt.Fprintln(p.w, stopLine) } // a process that has ended needs no request
