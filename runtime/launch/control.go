package launch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The control channel is two pipes, one in each direction. Both carry frames:
//
//	length  4 bytes, big endian: of kind and body together
//	kind    1 byte
//	body    length-1 bytes
//
// The parent sends one start and later at most one stop. The child sends one hello, then one ready
// or one failed, after ready at most one goodbye, and lines at any time after hello. Start and
// hello begin with the version of this protocol, in 2 bytes. The end of file from the parent is its
// death. Both ends are the same build, which hello verifies, so the version is never negotiated: it
// serves only for a clear error when an executable was replaced while it ran.
const controlVersion = 1

type kind uint8

const (
	kindStart  kind = 1 // parent: version, payload
	kindStop   kind = 2 // parent: empty
	kindHello  kind = 3 // child: version, build
	kindReady  kind = 4 // child: payload
	kindFailed kind = 5 // child: payload
	kindLine   kind = 6 // child: stream, 1 byte; length of path, 2 bytes; path; text
	// child: empty, or 1 if reported; the last frame except lines
	kindGoodbye kind = 7
)

const (
	frameHeader = 5
	maxPayload  = 64 << 20
	maxBuild    = 1 << 10
	maxPath     = 4 << 10
	versionSize = 2
	lineHeader  = 3
)

// limit is the largest body of a frame of the kind, or -1 if there is no such kind.
func (k kind) limit() int {
	switch k {
	case kindStart:
		return versionSize + maxPayload
	case kindStop:
		return 0
	case kindGoodbye:
		return 1 // empty, or the byte 1 if the end was reported to Brain
	case kindHello:
		return versionSize + maxBuild
	case kindReady, kindFailed:
		return maxPayload
	case kindLine:
		return lineHeader + maxPath + MaxLine
	}
	return -1
}

func (k kind) String() string {
	switch k {
	case kindStart:
		return "start"
	case kindStop:
		return "stop"
	case kindHello:
		return "hello"
	case kindReady:
		return "ready"
	case kindFailed:
		return "failed"
	case kindLine:
		return "line"
	case kindGoodbye:
		return "goodbye"
	}
	return fmt.Sprintf("frame of unknown kind %d", uint8(k))
}

// protocolError is a violation of the protocol by the other end.
type protocolError struct {
	text string
	// truncated is set if the channel ended within a frame, as when a process is killed while it
	// writes.
	truncated bool
}

func (e *protocolError) Error() string { return e.text }

func protocolErrorf(format string, args ...any) error {
	return &protocolError{text: fmt.Sprintf(format, args...)}
}

// writeFrame writes one frame with one Write.
func writeFrame(w io.Writer, k kind, body []byte) error {
	if len(body) > k.limit() {
		return fmt.Errorf("launch: %s of %d bytes is over the limit of %d", k, len(body), k.limit())
	}
	frame := make([]byte, frameHeader, frameHeader+len(body))
	binary.BigEndian.PutUint32(frame, uint32(1+len(body))) //nolint:gosec // within limit
	frame[4] = byte(k)
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("launch: sending %s: %w", k, err)
	}
	return nil
}

// readFrame reads one frame. At the end of the channel between two frames it returns io.EOF, not
// wrapped. It allocates memory only as bytes arrive, not for the length in the header.
func readFrame(r io.Reader) (kind, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, &protocolError{text: "the channel ended within a frame's header", truncated: true}
		}
		return 0, nil, err // not wrapped: the caller compares it with io.EOF
	}
	k, length := kind(header[4]), int64(binary.BigEndian.Uint32(header[:]))
	limit := k.limit()
	if limit < 0 {
		return 0, nil, protocolErrorf("got a %s", k)
	}
	if length < 1 || length-1 > int64(limit) {
		return 0, nil, protocolErrorf("got a %s with a length of %d, which should be 1 to %d", k, length, limit+1)
	}
	var body bytes.Buffer
	if n, err := io.CopyN(&body, r, length-1); err != nil {
		if errors.Is(err, io.EOF) {
			return 0, nil, &protocolError{text: fmt.Sprintf("the channel ended %d bytes into a %s of %d", n, k, length-1), truncated: true}
		}
		return 0, nil, err
	}
	return k, body.Bytes(), nil
}

// versioned prepends the version to a body.
func versioned(body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, versionSize+len(body)), controlVersion), body...)
}

// unversioned removes and checks the version.
func unversioned(k kind, body []byte) ([]byte, error) {
	if len(body) < versionSize {
		return nil, protocolErrorf("got a %s without a version", k)
	}
	if v := binary.BigEndian.Uint16(body); v != controlVersion {
		return nil, protocolErrorf("got a %s of control version %d, but this end speaks version %d: is it another executable?",
			k, v, controlVersion)
	}
	return body[versionSize:], nil
}

// encodeLine encodes a line. One that is too long is truncated rather than refused.
func encodeLine(line Line) []byte {
	path, text := line.Path, line.Text
	path, text = path[:min(len(path), maxPath)], text[:min(len(text), MaxLine)]
	body := make([]byte, 0, lineHeader+len(path)+len(text))
	body = append(body, byte(line.Stream))
	body = binary.BigEndian.AppendUint16(body, uint16(len(path))) //nolint:gosec // at most maxPath
	return append(append(body, path...), text...)
}

func decodeLine(body []byte) (Line, error) {
	if len(body) < lineHeader {
		return Line{}, protocolErrorf("got a line of %d bytes, which is shorter than its header", len(body))
	}
	stream, length := Stream(body[0]), int(binary.BigEndian.Uint16(body[1:]))
	body = body[lineHeader:]
	switch {
	case stream != Stdout && stream != Stderr:
		return Line{}, protocolErrorf("got a line of %s", stream)
	case length > maxPath || length > len(body):
		return Line{}, protocolErrorf("got a line whose path has %d bytes, of %d that are there", length, len(body))
	case len(body)-length > MaxLine:
		return Line{}, protocolErrorf("got a line of %d bytes, over the limit of %d", len(body)-length, MaxLine)
	}
	return Line{Path: string(body[:length]), Stream: stream, Text: string(body[length:])}, nil
}
