package programs

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// elfFile returns the bytes of a file that is an executable by its header.
func elfFile(t *testing.T, order binary.ByteOrder, change func(*elf.Header64)) []byte {
	t.Helper()
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Phentsize: 56, Shentsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	if order == binary.BigEndian {
		h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	}
	change(&h)
	var file bytes.Buffer
	require.NoError(t, binary.Write(&file, order, h))
	return file.Bytes()
}

func machoFile(t *testing.T, cpu macho.Cpu, kind macho.Type) []byte {
	t.Helper()
	var file bytes.Buffer
	require.NoError(t, binary.Write(&file, binary.LittleEndian, macho.FileHeader{Magic: macho.Magic64, Cpu: cpu, Type: kind}))
	file.Write(make([]byte, 4))
	return file.Bytes()
}

func TestPlatform(t *testing.T) {
	little, big := binary.LittleEndian, binary.BigEndian
	machine := func(m elf.Machine) func(*elf.Header64) { return func(h *elf.Header64) { h.Machine = uint16(m) } }
	for name, c := range map[string]struct {
		file []byte
		want string // or the error
	}{
		"amd64":        {elfFile(t, little, func(*elf.Header64) {}), "linux/amd64"},
		"arm64":        {elfFile(t, little, machine(elf.EM_AARCH64)), "linux/arm64"},
		"pie":          {elfFile(t, little, func(h *elf.Header64) { h.Type = uint16(elf.ET_DYN) }), "linux/amd64"},
		"gnu":          {elfFile(t, little, func(h *elf.Header64) { h.Ident[elf.EI_OSABI] = byte(elf.ELFOSABI_LINUX) }), "linux/amd64"},
		"riscv":        {elfFile(t, little, machine(elf.EM_RISCV)), "linux/riscv64"},
		"power":        {elfFile(t, little, machine(elf.EM_PPC64)), "linux/ppc64le"},
		"z":            {elfFile(t, big, machine(elf.EM_S390)), "linux/s390x"},
		"big arm":      {elfFile(t, big, machine(elf.EM_AARCH64)), "it is an ELF file for an unknown processor (EM_AARCH64, ELFCLASS64, ELFDATA2MSB)"},
		"sparc":        {elfFile(t, big, machine(elf.EM_SPARCV9)), "it is an ELF file for an unknown processor (EM_SPARCV9, ELFCLASS64, ELFDATA2MSB)"},
		"freebsd":      {elfFile(t, little, func(h *elf.Header64) { h.Ident[elf.EI_OSABI] = 9 }), "it is an ELF file, but not for Linux (ELFOSABI_FREEBSD)"},
		"object":       {elfFile(t, little, func(h *elf.Header64) { h.Type = uint16(elf.ET_REL) }), "it is an ELF file, but no executable (ET_REL)"},
		"cut":          {elfFile(t, little, func(*elf.Header64) {})[:20], "EOF"},
		"mac":          {machoFile(t, macho.CpuArm64, macho.TypeExec), "darwin/arm64"},
		"old mac":      {machoFile(t, macho.CpuAmd64, macho.TypeExec), "darwin/amd64"},
		"mac library":  {machoFile(t, macho.CpuAmd64, macho.TypeDylib), "it is a Mach-O file, but no executable (Dylib)"},
		"mac on power": {machoFile(t, macho.CpuPpc64, macho.TypeExec), "it is a Mach-O file for an unknown processor (CpuPpc64)"},
		"universal":    {[]byte{0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 2}, "it is a universal file, for several platforms: name one that is for a single platform"},
		"script":       {[]byte("#!/bin/sh\nexec cartpole\n"), "it is a script, which has no platform: name an executable"},
		"text":         {[]byte("a, b\n1, 2\n"), "it is no executable of a known format (ELF or Mach-O)"},
		"empty":        {nil, "it is no executable of a known format (ELF or Mach-O)"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cartpole")
			require.NoError(t, os.WriteFile(path, c.file, 0o700))
			id, err := Identify(path)
			if err != nil {
				require.ErrorContains(t, err, "the program "+path+": ")
				require.ErrorContains(t, err, c.want)
				return
			}
			require.Equal(t, c.want, id.GOOS+"/"+id.GOARCH)
			require.Equal(t, "cartpole", id.Name)
			require.Equal(t, sha256.Sum256(c.file), id.SHA256)
			require.EqualValues(t, len(c.file), id.Size)
		})
	}
}

func TestPlatformError(t *testing.T) {
	id := Identity{GOOS: "linux", GOARCH: "arm64", Name: "cartpole"}
	require.NoError(t, id.CheckPlatform("linux", "arm64"))
	require.EqualError(t, id.CheckPlatform("darwin", "amd64"), "the program cartpole is for linux/arm64, and this machine is darwin/amd64: "+
		"start it there, or install it with --program cartpole=PATH")
	require.Error(t, id.CheckPlatform("linux", "amd64"))
	require.Error(t, id.CheckPlatform("darwin", "arm64"))
}

// A hash is computed again only if the file looks changed.
func TestFilesAreHashedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cartpole")
	first, second := elfFile(t, binary.LittleEndian, func(*elf.Header64) {}), elfFile(t, binary.LittleEndian, func(h *elf.Header64) { h.Entry = 1 })
	long := time.Now().Add(-time.Hour)
	write := func(content []byte, at time.Time) [sha256.Size]byte {
		t.Helper()
		require.NoError(t, os.WriteFile(path, content, 0o700))
		require.NoError(t, os.Chtimes(path, at, at))
		id, err := Identify(path)
		require.NoError(t, err)
		return id.SHA256
	}
	require.Equal(t, sha256.Sum256(first), write(first, long))
	require.Equal(t, sha256.Sum256(first), write(second, long), "it was hashed again")
	require.Equal(t, sha256.Sum256(second), write(second, long.Add(1)))
	// A file that has just been written may be written again, at the same time by its clock.
	now := time.Now()
	require.Equal(t, sha256.Sum256(first), write(first, now))
	require.Equal(t, sha256.Sum256(second), write(second, now))
}

func TestRememberedHashesAreBounded(t *testing.T) {
	var s sums
	for i := range 3 * maxSums {
		s.put(stamp{ino: uint64(i)}, [sha256.Size]byte{1})
	}
	require.Len(t, s.known, maxSums)
	_, ok := s.get(stamp{ino: 3*maxSums - 1})
	require.True(t, ok)
}

func TestSelf(t *testing.T) {
	path, err := os.Executable()
	require.NoError(t, err)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	f, err := Self()
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	require.Equal(t, programOf(filepath.Base(path), content).id, f.Identity())
}

func TestChunks(t *testing.T) {
	content := append(elfFile(t, binary.LittleEndian, func(*elf.Header64) {}), makeProgram("cartpole", 3*ChunkSize).content...)
	path := filepath.Join(t.TempDir(), "cartpole")
	require.NoError(t, os.WriteFile(path, content, 0o700))
	f, err := OpenFile(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	// What is at the path now does not matter.
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700))

	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			var read []byte
			for {
				chunk, err := f.Chunk(int64(len(read)))
				if err != nil || len(chunk) == 0 {
					break // an error shows in what was read
				}
				read = append(read, chunk...)
				assert.True(t, len(chunk) == ChunkSize || len(read) == len(content))
			}
			assert.True(t, bytes.Equal(content, read))
		})
	}
	all.Wait()
	for _, offset := range []int64{-1, int64(len(content)) + 1} {
		_, err = f.Chunk(offset)
		require.EqualError(t, err, fmt.Sprintf("the program cartpole: the offset %d is outside of its %d bytes", offset, len(content)))
	}
}

func TestChunkOfATruncatedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cartpole")
	require.NoError(t, os.WriteFile(path, elfFile(t, binary.LittleEndian, func(*elf.Header64) {}), 0o700))
	f, err := OpenFile(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	require.NoError(t, os.Truncate(path, 10))
	_, err = f.Chunk(0)
	require.EqualError(t, err, "the program cartpole: reading 64 bytes at 0: EOF")
}

func TestOnlyRegularFilesArePrograms(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o700))
	for _, path := range []string{dir, pipe} {
		_, err := Identify(path)
		require.EqualError(t, err, "the program "+path+": it is not a regular file")
	}
	_, err := Identify(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestInstalled(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	script, plain, foreign := filepath.Join(dir, "script"), filepath.Join(dir, "plain"), filepath.Join(dir, "foreign")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700))
	content, err := os.ReadFile(self)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(plain, content, 0o600))
	require.NoError(t, os.WriteFile(foreign, elfFile(t, binary.BigEndian, func(h *elf.Header64) { h.Machine = uint16(elf.EM_S390) }), 0o700))

	i := Installed{}
	_, err = i.Find("cartpole")
	require.EqualError(t, err, "the program cartpole is not installed on this machine (none is): install it with --program cartpole=PATH")
	here := runtime.GOOS + "/" + runtime.GOARCH
	require.NoError(t, i.Install("cartpole="+self))
	for text, want := range map[string]string{
		"cartpole":                 "it must be NAME=PATH",
		"=" + self:                 "it must be NAME=PATH",
		"learner=":                 "it must be NAME=PATH",
		"a/b=" + self:              "the name a/b has a /",
		"cartpole=" + plain:        "the name cartpole is that of " + self + " already",
		"learner=" + dir:           "it is not a regular file",
		"learner=" + dir + "/none": "no such file or directory",
		"learner=" + script:        "it is a script, which has no platform: name an executable",
		"learner=" + plain:         "it can't be executed: permission denied; run: chmod +x " + plain,
		"learner=" + foreign:       "it is for linux/s390x, and this machine is " + here,
	} {
		err := i.Install(text)
		require.ErrorContains(t, err, fmt.Sprintf("--program %q: ", text))
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, os.Chmod(plain, 0o700))
	t.Chdir(dir)
	require.NoError(t, i.Install("learner=plain"))
	p, err := i.Find("learner")
	require.NoError(t, err)
	require.Equal(t, InstalledProgram{Name: "learner", Path: plain, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH}, p)
	cmd := exec.Command(p.Path)
	cmd.Env = append(os.Environ(), role+"=hello")
	require.NoError(t, cmd.Run())

	require.NoError(t, os.Chmod(plain, 0o600))
	_, err = i.Find("learner")
	require.EqualError(t, err, "the program learner, installed as "+plain+": it can't be executed: permission denied; run: chmod +x "+plain)
	_, err = i.Find("actor")
	require.EqualError(t, err, "the program actor is not installed on this machine (what is: cartpole, learner): install it with --program actor=PATH")
}
