package ps

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps/safetensors"
	"github.com/raylink/raylink/services/ps/store"
)

// model returns tensors of several sizes, among them one of several chunks, that differ for each
// seed.
func model(seed int) []safetensors.Tensor {
	tensor := func(name string, size int) safetensors.Tensor {
		return safetensors.Tensor{Name: name, DType: "U8", Shape: []int{size}, Data: weights(seed+len(name), size)}
	}
	return []safetensors.Tensor{
		tensor("actor/0.weight", 3*store.ChunkSize+100), tensor("actor/0.bias", 7), tensor("actor/none", 0),
		tensor("critic/0.weight", 5*store.ChunkSize), tensor("critic/0.bias", 9), tensor("step", 8),
	}
}

func requireModel(t testing.TB, p *Parameters, want []safetensors.Tensor) {
	t.Helper()
	for _, tensor := range want {
		got, err := p.Tensor(tensor.Name)
		require.NoError(t, err)
		require.Equal(t, store.Checksum(tensor.Data), store.Checksum(got.Data), tensor.Name)
		require.Equal(t, tensor.Shape, got.Shape)
		require.Equal(t, tensor.DType, got.DType)
	}
	tensors, err := p.Tensors()
	require.NoError(t, err)
	require.Len(t, tensors, len(want))
}

func TestPushedTensorsArePulled(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, s *system, c *Client) {
		version, err := c.PushTensors(t.Context(), "w", model(1), Info("step", "100"))
		require.NoError(t, err)
		require.Equal(t, map[string]string{"step": "100"}, version.GetInfo())
		s.awaitEverywhere("w", 1)
		for _, on := range []string{home, "other", "none"} {
			p, err := s.client(on).Pull(t.Context(), "w")
			require.NoError(t, err)
			requireModel(t, p, model(1))
			_, err = p.Tensor("actor/1.weight")
			require.ErrorIs(t, err, safetensors.ErrNoTensor)
			require.ErrorContains(t, err, `version 1 of "w"`)
			require.ErrorContains(t, err, `"actor/0.weight"`)
			content, err := safetensors.Marshal(model(1), nil)
			require.NoError(t, err)
			require.Equal(t, store.Checksum(content), store.Checksum(p.Bytes()), "the bytes are the file")
			require.NoError(t, p.Release())
		}
		_, err = c.PushTensors(t.Context(), "w", []safetensors.Tensor{{Name: "a", DType: "F32", Shape: []int{2}}})
		require.ErrorIs(t, err, safetensors.ErrTensor)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	})
}

func TestTensorsOfOtherContentAreRefused(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, _ *system, c *Client) {
		mustPush(t, c, "w", weights(1, 100))
		p, err := c.Pull(t.Context(), "w")
		require.NoError(t, err)
		for range 2 {
			_, err = p.Tensor("a")
			require.ErrorIs(t, err, safetensors.ErrFormat)
			_, err = p.Tensors()
			require.ErrorIs(t, err, safetensors.ErrFormat)
			require.ErrorContains(t, err, `version 1 of "w"`)
		}
		require.NoError(t, p.Release())
	})
}

// follows waits for a version.
func follows(t *testing.T, s *system, f *Follower, id uint64) *Parameters {
	t.Helper()
	var p *Parameters
	s.eventually(func() bool {
		if p = f.Current(); p == nil || p.Version().GetId() == id {
			return p != nil
		}
		require.NoError(t, p.Release())
		return false
	})
	return p
}

func TestFollowerOfTensorsHasOnlyThose(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, s *system, c *Client) {
		f := c.Follow("w", Tensors("actor/*", "st?p"))
		for id := range uint64(3) {
			tensors := model(int(id))
			_, err := s.client(home).PushTensors(t.Context(), "w", tensors)
			require.NoError(t, err)
			p := follows(t, s, f, id+1)
			requireModel(t, p, []safetensors.Tensor{tensors[0], tensors[1], tensors[2], tensors[5]})
			assert.Nil(t, p.Bytes())
			_, err = p.Tensor("critic/0.weight")
			require.ErrorIs(t, err, safetensors.ErrNoTensor)
			require.NoError(t, p.Release())
		}
		// A version that has another format is skipped, and the next one is followed.
		mustPush(t, s.client(home), "w", weights(1, 100))
		_, err := s.client(home).PushTensors(t.Context(), "w", model(9))
		require.NoError(t, err)
		p := follows(t, s, f, 5)
		requireModel(t, p, []safetensors.Tensor{model(9)[0], model(9)[1], model(9)[2], model(9)[5]})
		require.NoError(t, p.Release())
		require.NoError(t, f.Close())
	})
}

func TestMalformedPatternEndsTheFollower(t *testing.T) {
	s := newSystem(t, nil)
	f := s.client(home).Follow("w", Tensors("a", "[b"))
	<-f.Changed()
	require.ErrorContains(t, f.Err(), `malformed pattern "[b"`)
	require.NoError(t, f.Close())
}

// intercepted is a captain whose fetches a test observes or changes.
type intercepted struct {
	*captain

	fetch func(req *psv1.FetchRequest)
	// send returns what to send instead of a chunk; nil for nothing. It is read by calls that have
	// ended for their caller.
	send atomic.Pointer[func(chunk *psv1.Chunk) *psv1.Chunk]
}

type interceptedStream struct {
	psv1raylink.CaptainFetchServerStream

	by *intercepted
}

func (s *interceptedStream) Send(res *psv1.FetchResponse) error {
	if chunk := res.GetChunk(); chunk != nil && s.by.send.Load() != nil {
		if chunk = (*s.by.send.Load())(chunk); chunk == nil {
			return nil
		}
		res = &psv1.FetchResponse{Part: &psv1.FetchResponse_Chunk{Chunk: chunk}}
	}
	return s.CaptainFetchServerStream.Send(res)
}

func (c *intercepted) Fetch(ctx context.Context, req *psv1.FetchRequest, stream psv1raylink.CaptainFetchServerStream) error {
	if c.fetch != nil {
		c.fetch(req)
	}
	return c.captain.Fetch(ctx, req, &interceptedStream{stream, c})
}

// intercept has all further clients of a system use an intercepted captain.
func intercept(s *system) *intercepted {
	c := &intercepted{captain: s.captain}
	s.handle = psv1raylink.NewLocalCaptain(c)
	return c
}

func TestDamagedChunksOfTensorsAreRefused(t *testing.T) {
	s := newSystem(t, nil)
	by := intercept(s)
	c := s.client("none")
	_, err := s.client(home).PushTensors(t.Context(), "w", model(1))
	require.NoError(t, err)
	for name, send := range map[string]func(chunk *psv1.Chunk) *psv1.Chunk{
		"damaged":   func(chunk *psv1.Chunk) *psv1.Chunk { chunk.Data[len(chunk.GetData())-1]++; return chunk },
		"truncated": func(chunk *psv1.Chunk) *psv1.Chunk { return chunkOf(chunk.GetIndex(), chunk.GetData()[1:]) },
		"longer":    func(chunk *psv1.Chunk) *psv1.Chunk { return chunkOf(chunk.GetIndex(), append(chunk.GetData(), 0)) },
		"exchanged": func(chunk *psv1.Chunk) *psv1.Chunk { return chunkOf(chunk.GetIndex()^1, chunk.GetData()) },
		"far":       func(chunk *psv1.Chunk) *psv1.Chunk { return chunkOf(math.MaxUint32, chunk.GetData()) },
		"missing":   func(*psv1.Chunk) *psv1.Chunk { return nil },
	} {
		for _, from := range []uint32{0, 2} {
			change := func(chunk *psv1.Chunk) *psv1.Chunk {
				if chunk.GetIndex() < from {
					return chunk
				}
				chunk.Data = slices.Clone(chunk.GetData())
				return send(chunk)
			}
			by.send.Store(&change)
			_, _, err := c.pullIfNewer(t.Context(), "w", 0, followOptions{patterns: []string{"critic/*"}})
			require.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), "%s: %v", name, err)
		}
	}
	by.send.Store(nil)
	p, _, err := c.pullIfNewer(t.Context(), "w", 0, followOptions{patterns: []string{"critic/*"}})
	require.NoError(t, err)
	requireModel(t, p, model(1)[3:5])
	require.NoError(t, p.Release())
}

func chunkOf(index uint32, data []byte) *psv1.Chunk {
	return &psv1.Chunk{Index: index, Data: data, Checksum: store.Checksum(data)}
}

func TestTensorsOfAReplacedVersionAreNotMixed(t *testing.T) {
	s := newSystem(t, nil)
	by := intercept(s)
	c, pusher := s.client("none"), s.client(home)
	pushed := 0
	push := func() {
		_, err := pusher.PushTensors(t.Context(), "w", model(pushed))
		require.NoError(t, err)
		pushed++
	}
	push()
	replaced := 0
	by.fetch = func(req *psv1.FetchRequest) {
		if req.GetContent() != "" && replaced < 3 {
			// Between the header and the data.
			replaced++
			for range 10 {
				push()
			}
		}
	}
	p, newer, err := c.pullIfNewer(t.Context(), "w", 0, followOptions{patterns: []string{"critic/*"}})
	require.NoError(t, err)
	require.True(t, newer)
	require.Equal(t, 3, replaced)
	require.Equal(t, uint64(31), p.Version().GetId())
	requireModel(t, p, model(30)[3:5])
	require.NoError(t, p.Release())
}

func TestOnlyChunksOfWantedTensorsAreTransferred(t *testing.T) {
	s := newSystem(t, nil)
	by := intercept(s)
	var sent atomic.Int64
	count := func(chunk *psv1.Chunk) *psv1.Chunk { sent.Add(1); return chunk }
	by.send.Store(&count)
	c := s.client("none")
	require.False(t, c.Mapped())
	var tensors []safetensors.Tensor
	for i := range 5000 {
		// The header takes several chunks.
		tensors = append(tensors, safetensors.Tensor{Name: fmt.Sprintf("small/%d/%s", i, strings.Repeat("x", 100)), DType: "U8", Shape: []int{1}, Data: []byte{byte(i)}})
	}
	for i := range 20 {
		tensors = append(tensors, safetensors.Tensor{Name: fmt.Sprintf("large/%02d", i), DType: "F32", Shape: []int{store.ChunkSize / 2}, Data: weights(i, 2*store.ChunkSize)})
	}
	_, err := s.client(home).PushTensors(t.Context(), "w", tensors)
	require.NoError(t, err)
	header, _, size, err := safetensors.Layout(tensors, nil)
	require.NoError(t, err)
	require.Greater(t, len(header), 2*store.ChunkSize)
	for _, test := range []struct {
		patterns []string
		want     []safetensors.Tensor
		chunks   int
	}{
		{[]string{"large/07"}, tensors[5007:5008], 3},
		{[]string{"large/07", "large/09", "large/08"}, tensors[5007:5010], 7},
		{[]string{"large/0[02]"}, []safetensors.Tensor{tensors[5000], tensors[5002]}, 6},
		{[]string{"small/7/*"}, tensors[7:8], 1},
		{[]string{"small/?/*"}, tensors[:10], 1},
		{[]string{"none"}, nil, 0},
		{[]string{"*", "*/*", "*/*/*"}, tensors, store.Chunks(size-uint64(len(header))) + 1},
	} {
		sent.Store(0)
		p, newer, err := c.pullIfNewer(t.Context(), "w", 0, followOptions{patterns: test.patterns})
		require.NoError(t, err)
		require.True(t, newer)
		requireModel(t, p, test.want)
		assert.LessOrEqual(t, int(sent.Load()), store.Chunks(uint64(len(header)))+test.chunks, "%q", test.patterns)
		require.NoError(t, p.Release())
	}
	sent.Store(0)
	p, newer, err := c.pullIfNewer(t.Context(), "w", 1, followOptions{patterns: []string{"*/*"}})
	require.NoError(t, err)
	require.False(t, newer)
	require.Nil(t, p)
	require.Zero(t, sent.Load(), "nothing is transferred of a version that the follower has")
}

func TestSelectionsAreFilledByTheirChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 3), rapid.IntRange(store.ChunkSize-2, store.ChunkSize+2), rapid.IntRange(0, 3*store.ChunkSize)), 0, 6).
			Draw(t, "sizes")
		wanted := rapid.SliceOfN(rapid.Bool(), len(sizes), len(sizes)).Draw(t, "wanted")
		var tensors, want []safetensors.Tensor
		for i, size := range sizes {
			name := strconv.Itoa(i)
			tensors = append(tensors, safetensors.Tensor{Name: name, DType: "U8", Shape: []int{size}, Data: weights(i, size)})
			if wanted[i] {
				want = append(want, tensors[i])
			}
		}
		content, err := safetensors.Marshal(tensors, nil)
		require.NoError(t, err)
		header, err := safetensors.HeaderSize(content)
		require.NoError(t, err)
		file, err := safetensors.ParseHeader(content[:header], uint64(len(content)))
		require.NoError(t, err)
		s, err := newSelection(file, header, func(name string) bool {
			i, err := strconv.Atoi(name)
			require.NoError(t, err)
			return wanted[i]
		})
		require.NoError(t, err)
		next := uint32(0)
		for _, r := range s.ranges {
			require.True(t, next == 0 || r.GetFirst() > next, "ranges that touch are one")
			require.Positive(t, r.GetCount())
			for next = r.GetFirst(); next < r.GetFirst()+r.GetCount(); next++ {
				offset := int(next) * store.ChunkSize
				s.write(uint64(offset), content[offset:min(offset+store.ChunkSize, len(content))])
			}
		}
		require.Len(t, s.tensors, len(want))
		for i, tensor := range want {
			require.Equal(t, tensor.Name, s.tensors[i].Name)
			require.Equal(t, store.Checksum(tensor.Data), store.Checksum(s.tensors[i].Data))
		}
	})
}
