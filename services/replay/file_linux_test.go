package replay

import (
	"encoding/binary"
	"hash/crc32"
	"os/signal"
	"syscall"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
)

// ringChecksum sets the checksum of a ring's header.
func ringChecksum(header []byte) {
	length := binary.LittleEndian.Uint32(header[12:])
	sum := crc32.Checksum(header[20:length], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(header[16:], sum)
}

// limitFiles makes writes beyond a size fail, as on a full disk, until the function that it returns
// is called.
func limitFiles(t *testing.T, size int64) func() {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before))
	restore := func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before)) }
	t.Cleanup(restore)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(size), Max: before.Max}))
	return restore
}

// encoded returns an error as another process gets it: with its code, text and details.
func encoded(t *testing.T, err error) error {
	t.Helper()
	var known *connect.Error
	require.ErrorAs(t, err, &known)
	bare := connect.NewError(known.Code(), known.Message())
	for _, detail := range known.Details() {
		bare = bare.WithDetail(detail)
	}
	return bare
}
