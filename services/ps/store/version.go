package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"google.golang.org/protobuf/proto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// A version's file, little-endian:
//
//	 0  magic, 8 bytes
//	 8  format version, uint32
//	12  length of the description in bytes, uint32
//	16  CRC-32C of the description, uint32
//	20  0, uint32
//	24  description: a raylink.ps.v1.Version
//	    parameters, from the next page boundary on; the description has their size
const (
	versionMagic  = "RLPARAM\n"
	formatVersion = 1
	fixedHeader   = 24
	page          = 4096
	// MaxDescription is the maximum size of a serialized version without its parameters, in bytes.
	// It bounds tag and info.
	MaxDescription = 64 << 10
)

func parametersOffset(description int) uint64 {
	return (fixedHeader + uint64(description) + page - 1) / page * page //nolint:gosec // at most MaxDescription
}

// writeVersion writes a version's file under a temporary name, and renames it once it is complete.
func writeVersion(directory string, version *psv1.Version, parameters []byte) error {
	description, err := proto.Marshal(version)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrVersion, err)
	}
	path := versionPath(directory, version.GetId())
	temp := path + tempSuffix
	offset := parametersOffset(len(description))
	file, err := mapfile.Create(temp, offset+uint64(len(parameters)))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	header := make([]byte, 0, fixedHeader+len(description))
	header = append(header, versionMagic...)
	header = le.AppendUint32(header, formatVersion)
	header = le.AppendUint32(header, uint32(len(description))) //nolint:gosec // at most MaxDescription
	header = le.AppendUint32(header, Checksum(description))
	header = le.AppendUint32(header, 0)
	header = append(header, description...)
	_, headErr := file.WriteAt(header, 0)
	_, bodyErr := file.WriteAt(parameters, int64(offset)) //nolint:gosec // at most MaxDescription
	if err := errors.Join(headErr, bodyErr, file.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, path)
}

// parseVersion parses the header of a version's file, and returns the offset of the parameters. The
// input is untrusted: parameters that it returns are within a file of the given size.
func parseVersion(b []byte, fileSize uint64) (*psv1.Version, uint64, error) {
	le := binary.LittleEndian
	if len(b) < fixedHeader || string(b[:8]) != versionMagic {
		return nil, 0, fmt.Errorf("%w: wrong magic number", ErrFormat)
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return nil, 0, fmt.Errorf("%w: format version %d, but this program supports only version %d", ErrFormat, v, formatVersion)
	}
	length := le.Uint32(b[12:])
	if length > MaxDescription || int(length) > len(b)-fixedHeader {
		return nil, 0, fmt.Errorf("%w: invalid description length of %d bytes", ErrFormat, length)
	}
	description := b[fixedHeader : fixedHeader+length]
	if Checksum(description) != le.Uint32(b[16:]) {
		return nil, 0, fmt.Errorf("%w: wrong checksum of the description", ErrFormat)
	}
	version := new(psv1.Version)
	if err := proto.Unmarshal(description, version); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	offset := parametersOffset(int(length))
	if fileSize < offset || version.GetSize() != fileSize-offset {
		return nil, 0, fmt.Errorf("%w: the file has %d bytes instead of %d for the header and %d for the parameters",
			ErrFormat, fileSize, offset, version.GetSize())
	}
	return version, offset, nil
}

// mapVersion maps a version's file.
func mapVersion(directory, name string, id uint64) (*mapped, error) {
	file, size, err := mapfile.Open(versionPath(directory, id))
	if err != nil {
		return nil, err
	}
	if size < fixedHeader {
		return nil, errors.Join(fmt.Errorf("%w: only %d bytes", ErrFormat, size), file.Close())
	}
	all, err := mapfile.Map(file, uint64(size), mapfile.ReadOnly)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	version, offset, err := parseVersion(all, uint64(len(all)))
	if err == nil && (version.GetTag() != name || version.GetId() != id) {
		err = fmt.Errorf("%w: the file holds version %d of tag %q", ErrFormat, version.GetId(), version.GetTag())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("version %d: %w", id, err), mapfile.Unmap(all))
	}
	return &mapped{version: version, all: all, parameters: all[offset:len(all):len(all)], uses: 1}, nil
}

// verifyVersion maps a version's file, and checks its parameters.
func verifyVersion(directory, name string, id uint64) (*psv1.Version, error) {
	m, err := mapVersion(directory, name, id)
	if err != nil {
		return nil, err
	}
	if Checksum(m.parameters) != m.version.GetChecksum() {
		err = fmt.Errorf("%w: wrong checksum of the parameters of version %d", ErrFormat, id)
	}
	return m.version, errors.Join(err, mapfile.Unmap(m.all))
}
