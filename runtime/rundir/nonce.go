package rundir

import (
	"crypto/subtle"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Nonces that are shorter prove too little, longer ones are not ours.
const (
	minNonce = 32
	maxNonce = 128
)

// Proves says whether dir is a host directory with this nonce, and so whether the peer that named
// both can share files and sockets with this process. Both are taken for what they are, words from
// the wire: a dir that is not a directory of this user alone proves nothing, nor does a nonce file
// that is not a small regular file, and neither is followed if it is a symbolic link.
func Proves(dir, nonce string) bool {
	if !filepath.IsAbs(dir) || len(nonce) < minNonce || len(nonce) > maxNonce || checkPrivate(dir) != nil {
		return false
	}
	// Opening neither blocks on a named pipe nor follows a link, nor makes a terminal ours.
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
