package launch

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
)

// Build identifies the build of this executable: executables with the same build are the same
// program. It is the build id that `go tool buildid` prints, if the linker has written one, and
// otherwise a hash of the executable.
func Build() string { return thisBuild() }

//nolint:gochecknoglobals // a process has one executable; reading it once is enough
var thisBuild = sync.OnceValue(func() string {
	path, err := executable()
	if err == nil {
		var build string
		if build, err = buildOf(path); err == nil {
			return build
		}
	}
	// The executable cannot be read. The build information that is linked into it does not
	// distinguish two builds of a modified working tree, but is better than nothing.
	if info, ok := debug.ReadBuildInfo(); ok {
		sum := sha256.Sum256([]byte(info.String()))
		return "buildinfo:" + hex.EncodeToString(sum[:])
	}
	return fmt.Sprintf("unknown: %v", err)
})

func buildOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("launch: reading the executable's build: %w", err)
	}
	defer func() { _ = file.Close() }() // only read
	if id := elfBuildID(file); id != "" {
		return id, nil
	}
	if id := textBuildID(file); id != "" {
		return id, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, 1<<62)); err != nil {
		return "", fmt.Errorf("launch: hashing the executable: %w", err)
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// elfBuildID reads the note that Go's linker writes, as in cmd/internal/buildid: owner "Go", type
// 4.
func elfBuildID(r io.ReaderAt) string {
	const noteType = 4
	file, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	for _, prog := range file.Progs {
		if prog.Type != elf.PT_NOTE || prog.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, prog.Filesz)
		if _, err := io.ReadFull(prog.Open(), notes); err != nil {
			continue
		}
		if id := findNote(file.ByteOrder, notes, "Go\x00\x00", noteType); id != "" && len(id) <= maxBuild {
			return id
		}
	}
	return ""
}

// findNote returns the description of a note among ELF notes: three words (size of the name, size
// of the description, type), the name and the description, each padded to four bytes.
func findNote(order binary.ByteOrder, notes []byte, name string, noteType uint32) string {
	const header = 12
	for len(notes) >= header {
		nameSize, descSize, kind := uint64(order.Uint32(notes)), uint64(order.Uint32(notes[4:])), order.Uint32(notes[8:])
		descAt := header + (nameSize+3)&^3
		next := descAt + (descSize+3)&^3
		if descAt+descSize > uint64(len(notes)) {
			return ""
		}
		if kind == noteType && string(notes[header:header+nameSize]) == name {
			return string(notes[descAt : descAt+descSize])
		}
		notes = notes[min(next, uint64(len(notes))):]
	}
	return ""
}

// textBuildID reads the id that Go's linker writes at the beginning of the text segment of files
// without ELF notes (Mach-O), as in cmd/internal/buildid.
func textBuildID(r io.ReaderAt) string {
	const before, after = "\xff Go build ID: \"", "\"\n \xff"
	head := make([]byte, 64<<10)
	n, err := r.ReadAt(head, 0)
	if err != nil && n == 0 {
		return ""
	}
	_, rest, found := bytes.Cut(head[:n], []byte(before))
	id, _, ended := bytes.Cut(rest, []byte(after))
	if !found || !ended || len(id) > maxBuild {
		return ""
	}
	return string(id)
}
