// Package wire is the protocol between connectconformance and the programs under test: messages on
// standard input and output, each preceded by its length in four bytes.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

// maxMessage bounds what Read allocates.
const maxMessage = 64 << 20

// Read reads the next message. At the end of r it returns io.EOF.
func Read(r io.Reader, msg proto.Message) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		return fmt.Errorf("reading a message's length: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxMessage {
		return fmt.Errorf("a message of %d bytes is larger than %d", n, maxMessage)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("reading a message of %d bytes: %w", n, err)
	}
	if err := proto.Unmarshal(b, msg); err != nil {
		return fmt.Errorf("decoding a message: %w", err)
	}
	return nil
}

// Write writes one message by one call of w.Write.
func Write(w io.Writer, msg proto.Message) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4), msg)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4)) //nolint:gosec // a message is smaller than 2 GiB
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("writing a message: %w", err)
	}
	return nil
}
