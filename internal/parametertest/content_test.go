package parametertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/ps/store"
)

// Parameters begin with the push's token and their size. The rest repeats a block of words that
// depends on these and the tag.
const (
	contentHeader = 16
	// blockSize is no divisor of a chunk's size: equal places of two chunks differ.
	blockSize = 65528
)

// block returns the block of a push.
func block(tag string, token uint64, size int) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(tag))
	word := h.Sum64() ^ token*0xff51afd7ed558ccd ^ uint64(size)*0xc4ceb9fe1a85ec53
	b := make([]byte, blockSize)
	for i := 0; i < len(b); i += 8 {
		word += 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(b[i:], word)
	}
	return b
}

// content returns the parameters of a push. The size is at least that of the header.
func content(tag string, token uint64, size int) []byte {
	b := make([]byte, max(size, contentHeader))
	binary.LittleEndian.PutUint64(b, token)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(b)))
	part := block(tag, token, len(b))
	for rest := b[contentHeader:]; len(rest) > 0; {
		rest = rest[copy(rest, part):]
	}
	return b
}

// verify checks that parameters are exactly those of one push of the tag, and returns its token.
func verify(tag string, b []byte) (uint64, error) {
	if len(b) < contentHeader {
		return 0, fmt.Errorf("%q: %d bytes are no parameters of this test", tag, len(b))
	}
	token := binary.LittleEndian.Uint64(b)
	if size := binary.LittleEndian.Uint64(b[8:]); size != uint64(len(b)) {
		return 0, fmt.Errorf("%q: the parameters of push %x have %d bytes, not %d", tag, token, len(b), size)
	}
	part := block(tag, token, len(b))
	for rest := b[contentHeader:]; len(rest) > 0; {
		n := min(len(rest), len(part))
		if !bytes.Equal(rest[:n], part[:n]) {
			return 0, fmt.Errorf("%q: the parameters of push %x are torn in the %d bytes at %d of %d",
				tag, token, n, len(b)-len(rest), len(b))
		}
		rest = rest[n:]
	}
	return token, nil
}

// verifyVersion also checks the checksum and the description.
func verifyVersion(tag string, p *ps.Parameters) (uint64, error) {
	v := p.Version()
	token, err := verify(tag, p.Bytes())
	if err != nil {
		return 0, fmt.Errorf("version %d of %w", v.GetId(), err)
	}
	if v.GetTag() != tag || v.GetSize() != uint64(len(p.Bytes())) {
		return 0, fmt.Errorf("version %d of %q is described as %d bytes of %q", v.GetId(), tag, v.GetSize(), v.GetTag())
	}
	if sum := store.Checksum(p.Bytes()); sum != v.GetChecksum() {
		return 0, fmt.Errorf("version %d of %q has checksum %08x, not %08x", v.GetId(), tag, sum, v.GetChecksum())
	}
	return token, nil
}

func TestVerifyDetectsTornAndMixedParameters(t *testing.T) {
	for _, size := range []int{0, 16, 17, 24, 1000, 70000, 600000} {
		b := content("a", 7, size)
		token, err := verify("a", b)
		require.NoError(t, err)
		require.Equal(t, uint64(7), token)
		if len(b) == contentHeader {
			continue
		}
		_, err = verify("b", b)
		require.Error(t, err, "of another tag")
		for _, at := range []int{contentHeader, len(b) / 2, len(b) - 1} {
			torn := content("a", 7, size)
			copy(torn[max(at, contentHeader):], content("a", 8, size)[max(at, contentHeader):])
			if bytes.Equal(torn, b) { // a single byte may be the same
				continue
			}
			_, err = verify("a", torn)
			require.Error(t, err, "%d bytes, mixed from byte %d", size, at)
		}
	}
}
