package rundir

import (
	"crypto/subtle"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Shorter nonces prove too little; longer ones are not made by this package.
const (
	minNonce = 32
	maxNonce = 128
)

// Proves reports whether dir is a host directory with this nonce, and so whether the peer that sent
// both can share files, memory and sockets with this process. machine is the peer's: nothing is
// shared with one that [IsElsewhere]. Neither dir nor nonce is trusted: a dir that is not private
// to this user proves nothing, nor does a nonce file that is not a small regular file, and symbolic
// links are not followed in either.
func Proves(machine, dir, nonce string) bool {
	if IsElsewhere(machine) || !filepath.IsAbs(dir) || len(nonce) < minNonce || len(nonce) > maxNonce || checkPrivate(dir) != nil {
		return false
	}
	// Opening neither blocks on a named pipe, nor follows a link, nor acquires a controlling
	// terminal.
	fd, err := open(filepath.Join(dir, nonceFile), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }() // only read
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != int64(len(nonce)) {
		return false
	}
	found := make([]byte, maxNonce+1)
	n, err := unix.Read(fd, found)
	return err == nil && subtle.ConstantTimeCompare(found[:n], []byte(nonce)) == 1
}
