package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// maxDescription is the maximum size of a version's JSON in bytes.
const maxDescription = 1 << 20

// description is a version's JSON.
type description struct {
	Tag      string            `json:"tag"`
	ID       uint64            `json:"id"`
	Size     uint64            `json:"size"`
	Info     map[string]string `json:"info,omitempty"`
	Pushed   *time.Time        `json:"pushed,omitempty"`
	Checksum crc               `json:"checksum"`
	// Format is one of formats. The name of the content's file follows from it.
	Format string `json:"format"`
	// Write is the id of the write.
	Write string `json:"write"`
}

// crc is a CRC-32C, in JSON as "crc32c:0123abcd".
type crc uint32

const crcPrefix = "crc32c:"

func (c crc) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s%08x", crcPrefix, uint32(c)), nil
}

func (c *crc) UnmarshalText(text []byte) error {
	digits, ok := strings.CutPrefix(string(text), crcPrefix)
	n, err := strconv.ParseUint(digits, 16, 32)
	if !ok || err != nil || len(digits) != 8 {
		return fmt.Errorf("checksum %.40q: it should be %s and eight digits", text, crcPrefix)
	}
	*c = crc(n)
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // a table

func checksum(content []byte) uint32 { return crc32.Checksum(content, castagnoli) }

func describe(version *psv1.Version, format, write string) (*description, error) {
	d := &description{
		Tag: version.GetTag(), ID: version.GetId(), Size: version.GetSize(), Info: version.GetInfo(),
		Checksum: crc(version.GetChecksum()), Format: format, Write: write,
	}
	for key, value := range d.Info {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return nil, fmt.Errorf("%w: info %q is not UTF-8", ErrVersion, key)
		}
	}
	if pushed := version.GetPushed(); pushed != nil {
		if err := pushed.CheckValid(); err != nil {
			return nil, fmt.Errorf("%w: time of the push: %w", ErrVersion, err)
		}
		at := pushed.AsTime()
		d.Pushed = &at
	}
	return d, nil
}

func (d *description) version() *psv1.Version {
	v := &psv1.Version{Tag: d.Tag, Id: d.ID, Size: d.Size, Info: d.Info, Checksum: uint32(d.Checksum)}
	if d.Pushed != nil {
		v.Pushed = timestamppb.New(*d.Pushed)
	}
	return v
}

func (d *description) marshal() ([]byte, error) {
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVersion, err)
	}
	if len(text) > maxDescription {
		return nil, fmt.Errorf("%w: its description has %d bytes; at most %d are allowed: use less info", ErrVersion, len(text), maxDescription)
	}
	return append(text, '\n'), nil
}

// readDescription reads a tag's JSON, and returns its text too.
func readDescription(root *os.Root, where location) (_ *description, text string, err error) {
	file, _, err := openFile(root, where.json())
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(io.LimitReader(file, maxDescription+2))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, "", err
	}
	d, err := parseDescription(b, where.tag)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %s: %w", ErrDamaged, where.json(), err)
	}
	return d, string(b), nil
}

// parseDescription parses a tag's JSON, which is untrusted. Unknown fields are ignored.
func parseDescription(text []byte, tag string) (*description, error) {
	if len(text) > maxDescription+1 {
		return nil, fmt.Errorf("more than %d bytes", maxDescription)
	}
	if !utf8.Valid(text) {
		return nil, errors.New("it is not UTF-8")
	}
	d := new(description)
	if err := json.Unmarshal(text, d); err != nil {
		return nil, err
	}
	switch {
	case d.Tag != tag:
		return nil, fmt.Errorf("it describes the tag %.100q", d.Tag)
	case d.Size > math.MaxInt64:
		return nil, fmt.Errorf("invalid size %d", d.Size)
	case d.ID > math.MaxInt64:
		// A captain that continued from there would soon have no more ids.
		return nil, fmt.Errorf("invalid id %d", d.ID)
	case formatSuffixes[d.Format] == "":
		return nil, fmt.Errorf("unknown format %.40q", d.Format)
	case !isID(d.Write):
		return nil, fmt.Errorf("invalid id of the write, %.40q", d.Write)
	}
	if d.Pushed != nil {
		if err := timestamppb.New(*d.Pushed).CheckValid(); err != nil {
			return nil, err
		}
	}
	return d, nil
}
