package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tcpSocket is a socket of this machine, as /proc/net/tcp lists it.
type tcpSocket struct {
	local, remote netip.AddrPort
	listens       bool
	inode         string
}

// tcpSockets returns the machine's IPv4 sockets.
func tcpSockets() ([]tcpSocket, error) {
	raw, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	sockets := make([]tcpSocket, 0, len(lines))
	for _, line := range lines[1:] { // without the heading
		fields := strings.Fields(line)
		if len(fields) < 10 {
			return nil, fmt.Errorf("/proc/net/tcp: unknown format: %q", line)
		}
		local, err1 := parseAddrPort(fields[1])
		remote, err2 := parseAddrPort(fields[2])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("/proc/net/tcp: %q: %w", line, err)
		}
		sockets = append(sockets, tcpSocket{local: local, remote: remote, listens: fields[3] == "0A", inode: fields[9]})
	}
	return sockets, nil
}

// parseAddrPort parses an address as in 0100007F:1F90, whose first part is in the processor's byte
// order: little-endian on the platforms that RayLink supports.
func parseAddrPort(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw) != 4 {
		return netip.AddrPort{}, fmt.Errorf("invalid address %q", text)
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("invalid port in %q: %w", text, err)
	}
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], binary.LittleEndian.Uint32(raw))
	return netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(number)), nil
}

// socketInodes returns the inodes of a process's sockets.
func socketInodes(pid int) (map[string]bool, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	inodes := make(map[string]bool)
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed by now
		}
		if err != nil {
			return nil, err
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes, nil
}

// listenerOf returns an address at which a process listens.
func listenerOf(pid int) (netip.AddrPort, error) {
	sockets, err := tcpSockets()
	if err != nil {
		return netip.AddrPort{}, err
	}
	own, err := socketInodes(pid)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, s := range sockets {
		if s.listens && own[s.inode] {
			return s.local, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("process %d listens at no address", pid)
}

// processStat is what /proc says of a process.
type processStat struct {
	parent int
	cpu    time.Duration
}

// cpuTick is the unit of times in /proc, on all platforms that RayLink supports.
const cpuTick = 10 * time.Millisecond

// processes returns the processes of the machine.
func processes() (map[int]processStat, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	all := make(map[int]processStat, len(stats))
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// PID (NAME) STATE PPID, and as fields 14 and 15 the times in user and kernel mode.
		// NAME may contain anything.
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		pid, err1 := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, err2 := strconv.Atoi(fields[1])
		user, err3 := strconv.Atoi(fields[11])
		kernel, err4 := strconv.Atoi(fields[12])
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all[pid] = processStat{parent: parent, cpu: time.Duration(user+kernel) * cpuTick}
	}
	return all, nil
}

// family returns processes with all of their children, and theirs.
func family(of map[int]processStat, pids ...int) []int {
	all := slices.Clone(pids)
	for i := 0; i < len(all); i++ {
		for child, stat := range of {
			if stat.parent == all[i] {
				all = append(all, child)
			}
		}
	}
	return all
}

// cpuOf returns the CPU time that processes and their children have used, in steps of [cpuTick].
func cpuOf(pids ...int) (time.Duration, error) {
	of, err := processes()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, pid := range family(of, pids...) {
		sum += of[pid].cpu
	}
	return sum, nil
}
