package tunnel

import (
	"runtime"
	"strconv"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
)

// detailsOf returns an error block with n details, each with a type and a value of the given size.
func detailsOf(n, bytes int) []byte {
	b := appendInt(nil, int(connect.CodeInternal))
	b = appendString(b, "text")
	b = appendInt(b, n)
	for range n {
		b = appendBytes(b, make([]byte, bytes))
		b = appendBytes(b, make([]byte, bytes))
	}
	return b
}

// TestErrorDetailsAreParsedInLinearTime measures the bytes that parsing allocates. They once grew
// with the square of the number of details.
func TestErrorDetailsAreParsedInLinearTime(t *testing.T) {
	cost := func(n int) uint64 {
		block := detailsOf(n, 0)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p := parser{rest: block}
		_ = p.errorBlock()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	few, many := cost(maxDetails), cost(20_000)
	require.Less(t, many, 2*few, "%d details cost %d bytes, 20,000 cost %d", maxDetails, few, many)
}

func TestErrorDetailsBeyondLimitAreSkipped(t *testing.T) {
	err := connect.NewError(connect.CodeAborted, "text")
	for i := range maxDetails + 10 {
		err = err.WithDetail(&connect.ErrorDetail{Type: strconv.Itoa(i), Value: []byte{byte(i)}})
	}
	p := parser{rest: append(appendErrorBlock(nil, err, 64<<10), "rest"...)}
	got := p.errorBlock()
	require.NoError(t, p.err)
	require.Equal(t, "rest", string(p.rest))
	require.Equal(t, err.Details()[:maxDetails], got.Details())
	require.True(t, got.IsRemote())

	p = parser{rest: append(detailsOf(maxDetails+1, 1), "rest"...)}
	got = p.errorBlock()
	require.NoError(t, p.err)
	require.Equal(t, "rest", string(p.rest))
	require.Len(t, got.Details(), maxDetails)

	p = parser{rest: appendInt(appendString(appendInt(nil, 2), ""), 1000)}
	_ = p.errorBlock()
	require.ErrorIs(t, p.err, ErrProtocol)
}
