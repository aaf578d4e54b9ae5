package programs

import (
	"bytes"
	"debug/elf"
	"debug/macho"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
)

// PlatformError means that a program is for another platform than that of the machine.
type PlatformError struct {
	// Name, GOOS and GOARCH are the program's.
	Name, GOOS, GOARCH string
	// MachineGOOS and MachineGOARCH are the machine's.
	MachineGOOS, MachineGOARCH string
}

// Error names both platforms.
func (e *PlatformError) Error() string {
	return fmt.Sprintf("the program %s is for %s/%s, and this machine is %s/%s: start it there, or install it with --program %s=PATH",
		e.Name, e.GOOS, e.GOARCH, e.MachineGOOS, e.MachineGOARCH, e.Name)
}

// CheckPlatform returns a [PlatformError] unless the program is for the platform of a machine.
func (id Identity) CheckPlatform(goos, goarch string) error {
	if id.GOOS == goos && id.GOARCH == goarch {
		return nil
	}
	return &PlatformError{Name: id.Name, GOOS: id.GOOS, GOARCH: id.GOARCH, MachineGOOS: goos, MachineGOARCH: goarch}
}

// checkHere is CheckPlatform for this machine.
func (id Identity) checkHere() error { return id.CheckPlatform(runtime.GOOS, runtime.GOARCH) }

// platform reads from an executable file which platform it is for.
func platform(file io.ReaderAt) (goos, goarch string, err error) {
	var magic [4]byte
	if n, err := file.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return "", "", err
	} else if bytes.HasPrefix(magic[:n], []byte("#!")) {
		return "", "", errors.New("it is a script, which has no platform: name an executable")
	}
	switch little, big := binary.LittleEndian.Uint32(magic[:]), binary.BigEndian.Uint32(magic[:]); {
	case string(magic[:]) == elf.ELFMAG:
		goarch, err = elfArch(file)
		return "linux", goarch, err
	case big == macho.MagicFat:
		return "", "", errors.New("it is a universal file, for several platforms: name one that is for a single platform")
	case little == macho.Magic64 || little == macho.Magic32:
		goarch, err = machoArch(file)
		return "darwin", goarch, err
	}
	return "", "", errors.New("it is no executable of a known format (ELF or Mach-O)")
}

// elfArch returns the architecture of an executable for Linux.
func elfArch(file io.ReaderAt) (string, error) {
	f, err := elf.NewFile(file)
	if err != nil {
		return "", err
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN { // position-independent executables are ET_DYN
		return "", fmt.Errorf("it is an ELF file, but no executable (%v)", f.Type)
	}
	// Linkers for Linux write either one.
	if f.OSABI != elf.ELFOSABI_NONE && f.OSABI != elf.ELFOSABI_LINUX {
		return "", fmt.Errorf("it is an ELF file, but not for Linux (%v)", f.OSABI)
	}
	little := f.ByteOrder == binary.LittleEndian
	switch wide := f.Class == elf.ELFCLASS64; {
	case f.Machine == elf.EM_X86_64 && wide:
		return "amd64", nil
	case f.Machine == elf.EM_AARCH64 && wide && little:
		return "arm64", nil
	case f.Machine == elf.EM_386:
		return "386", nil
	case f.Machine == elf.EM_ARM && little:
		return "arm", nil
	case f.Machine == elf.EM_RISCV && wide:
		return "riscv64", nil
	case f.Machine == elf.EM_PPC64 && little:
		return "ppc64le", nil
	case f.Machine == elf.EM_S390 && wide:
		return "s390x", nil
	}
	return "", fmt.Errorf("it is an ELF file for an unknown processor (%v, %v, %v)", f.Machine, f.Class, f.Data)
}

// machoArch returns the architecture of an executable for darwin.
func machoArch(file io.ReaderAt) (string, error) {
	f, err := macho.NewFile(file)
	if err != nil {
		return "", err
	}
	if f.Type != macho.TypeExec {
		return "", fmt.Errorf("it is a Mach-O file, but no executable (%v)", f.Type)
	}
	switch f.Cpu {
	case macho.CpuAmd64:
		return "amd64", nil
	case macho.CpuArm64:
		return "arm64", nil
	default:
		return "", fmt.Errorf("it is a Mach-O file for an unknown processor (%v)", f.Cpu)
	}
}
