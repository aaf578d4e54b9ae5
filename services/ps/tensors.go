package ps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sync"

	"connectrpc.com/connect/v2"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/safetensors"
	"github.com/raylink/raylink/services/ps/store"
)

// PushTensors makes tensors the newest version of a tag, in the safetensors format. The caller may
// modify them once it has returned. They are not assembled in memory first: see [Client.Push]. It
// returns [safetensors.ErrTensor] if one is invalid.
func (c *Client) PushTensors(ctx context.Context, tag string, tensors []safetensors.Tensor, opts ...PushOption) (*psv1.Version, error) {
	header, ordered, _, err := safetensors.Layout(tensors, nil)
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "push %q: %v", tag, err).WithCause(err)
	}
	parts := append(make([][]byte, 0, 1+len(ordered)), header)
	for _, t := range ordered {
		parts = append(parts, t.Data)
	}
	return c.push(ctx, tag, parts, opts)
}

// tensors are the tensors of parameters, parsed at their first use. All copies of the parameters
// share them.
type tensors struct {
	once sync.Once
	file *safetensors.File
	err  error
}

func (t *tensors) parse(content []byte) (*safetensors.File, error) {
	t.once.Do(func() {
		if t.file == nil {
			t.file, t.err = safetensors.Parse(content)
		}
	})
	return t.file, t.err
}

func (p *Parameters) file() (*safetensors.File, error) {
	file, err := p.tensors.parse(p.bytes)
	if err != nil {
		return nil, fmt.Errorf("version %d of %q: %w", p.id, p.Version().GetTag(), err)
	}
	return file, nil
}

// Tensor returns a tensor of parameters in the safetensors format. Its Data are part of the
// parameters: see [Parameters.Bytes]. It returns [safetensors.ErrFormat] if the parameters have
// another format, and [safetensors.ErrNoTensor] if there is no such tensor.
func (p *Parameters) Tensor(name string) (safetensors.Tensor, error) {
	file, err := p.file()
	if err != nil {
		return safetensors.Tensor{}, err
	}
	t, err := file.Tensor(name)
	if err != nil {
		return safetensors.Tensor{}, fmt.Errorf("version %d of %q: %w", p.id, p.Version().GetTag(), err)
	}
	return t, nil
}

// Tensors returns all tensors, in the order of their data. See [Parameters.Tensor].
func (p *Parameters) Tensors() ([]safetensors.Tensor, error) {
	file, err := p.file()
	if err != nil {
		return nil, err
	}
	return file.Tensors(), nil
}

// errPattern means that a pattern of Tensors is malformed.
var errPattern = errors.New("malformed pattern")

// Tensors restricts a follower to tensors whose names match one of the patterns, in the syntax of
// [path.Match]. The parameters must have the safetensors format. Its versions have only those
// tensors, and no Bytes. On a machine without an officer only their chunks are transferred.
func Tensors(patterns ...string) FollowOption {
	return func(o *followOptions) { o.patterns = append(o.patterns, patterns...) }
}

// check checks the patterns.
func (o *followOptions) check() error {
	for _, p := range o.patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%w %q: %w", errPattern, p, err)
		}
	}
	return nil
}

// match reports whether a tensor is wanted.
func (o *followOptions) match(name string) bool {
	return slices.ContainsFunc(o.patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// pullIfNewer is PullIfNewer for a follower.
func (c *Client) pullIfNewer(ctx context.Context, tag string, have uint64, o followOptions) (*Parameters, bool, error) {
	if err := o.check(); err != nil {
		return nil, false, err
	}
	if len(o.patterns) == 0 {
		return c.PullIfNewer(ctx, tag, have)
	}
	if !c.Mapped() {
		return c.fetchTensors(ctx, tag, have, o)
	}
	p, newer, err := c.PullIfNewer(ctx, tag, have)
	if err != nil || !newer {
		return nil, false, err
	}
	file, err := p.file()
	if err != nil {
		return nil, false, errors.Join(err, p.Release())
	}
	wanted := slices.DeleteFunc(file.Tensors(), func(t safetensors.Tensor) bool { return !o.match(t.Name) })
	selected, err := safetensors.Collect(wanted, file.Metadata())
	if err != nil {
		return nil, false, errors.Join(err, p.Release())
	}
	return &Parameters{id: p.id, version: p.version, tensors: &tensors{file: selected}, release: p.Release}, true, nil
}

// errReplaced means that a version was replaced while it was fetched.
var errReplaced = errors.New("the version was replaced meanwhile")

// fetchTensors fetches the tensors of the newest version that a follower wants from the captain.
func (c *Client) fetchTensors(ctx context.Context, tag string, have uint64, o followOptions) (*Parameters, bool, error) {
	v, err := c.view(tag)
	if err != nil {
		return nil, false, err
	}
	for {
		version, file, err := c.fetchSelected(ctx, tag, have, o)
		if errors.Is(err, errReplaced) && ctx.Err() == nil {
			continue // with the newer one
		}
		if err != nil {
			return nil, false, c.noVersion(ctx, tag, err)
		}
		if version.GetId() <= have {
			return nil, false, nil
		}
		v.raise(version.GetId())
		return fetchedParameters(version, nil, &tensors{file: file}, func() error { return nil }), true, nil
	}
}

// fetchSelected fetches the header of the newest version, and then those chunks in which there are
// wanted tensors. It fetches nothing of a version that the caller has.
func (c *Client) fetchSelected(ctx context.Context, tag string, have uint64, o followOptions) (*psv1.Version, *safetensors.File, error) {
	var header []byte
	appendChunk := func(_ uint64, data []byte) { header = append(header, data...) }
	version, err := c.fetchRanges(ctx, &psv1.FetchRequest{Tag: tag, Have: have, Ranges: []*psv1.ChunkRange{{First: 0, Count: 1}}}, nil, appendChunk)
	if err != nil || version.GetId() <= have {
		return version, nil, err
	}
	size, err := safetensors.HeaderSize(header)
	if err != nil {
		return nil, nil, fmt.Errorf("version %d of %q: %w", version.GetId(), tag, err)
	}
	if chunks := store.Chunks(min(size, version.GetSize())); chunks > 1 {
		rest := []*psv1.ChunkRange{{First: 1, Count: uint32(chunks - 1)}} //nolint:gosec // bounded by MaxHeader
		if _, err := c.fetchRanges(ctx, &psv1.FetchRequest{Content: version.GetContent(), Ranges: rest}, version, appendChunk); err != nil {
			return nil, nil, err
		}
	}
	file, err := safetensors.ParseHeader(header, version.GetSize())
	if err != nil {
		return nil, nil, fmt.Errorf("version %d of %q: %w", version.GetId(), tag, err)
	}
	wanted, err := newSelection(file, size, o.match)
	if err != nil {
		return nil, nil, err
	}
	if len(wanted.ranges) > 0 {
		if _, err := c.fetchRanges(ctx, &psv1.FetchRequest{Content: version.GetContent(), Ranges: wanted.ranges}, version, wanted.write); err != nil {
			return nil, nil, err
		}
	}
	selected, err := safetensors.Collect(wanted.tensors, file.Metadata())
	return version, selected, err
}

// selection is the memory of some tensors of a version.
type selection struct {
	tensors []safetensors.Tensor
	// offsets are where the tensors begin in the parameters, ascending.
	offsets []uint64
	// ranges are the chunks in which there are tensors.
	ranges []*psv1.ChunkRange
}

// newSelection allocates the tensors that match. The data begin at an offset in the parameters.
func newSelection(file *safetensors.File, offset uint64, match func(name string) bool) (*selection, error) {
	s := &selection{}
	for _, t := range file.Tensors() {
		size, err := t.Size()
		if err != nil {
			return nil, err
		}
		begin := offset
		offset += size
		if !match(t.Name) {
			continue
		}
		t.Data = make([]byte, size)
		s.tensors = append(s.tensors, t)
		s.offsets = append(s.offsets, begin)
		if size > 0 {
			s.add(uint32(begin/store.ChunkSize), uint32((offset-1)/store.ChunkSize)) //nolint:gosec // bounded by the store's limits
		}
	}
	return s, nil
}

// add adds the chunks from first to last, of which those up to first-1 may be there.
func (s *selection) add(first, last uint32) {
	if n := len(s.ranges); n > 0 {
		r := s.ranges[n-1]
		if end := r.GetFirst() + r.GetCount(); first <= end {
			r.Count = max(end, last+1) - r.GetFirst()
			return
		}
	}
	s.ranges = append(s.ranges, &psv1.ChunkRange{First: first, Count: last - first + 1})
}

// write copies the part of each tensor that is in data, which begin at an offset in the parameters.
func (s *selection) write(offset uint64, data []byte) {
	end := offset + uint64(len(data))
	for i, t := range s.tensors {
		begin := s.offsets[i]
		from, to := max(begin, offset), min(begin+uint64(len(t.Data)), end)
		if from < to {
			copy(t.Data[from-begin:to-begin], data[from-offset:])
		}
	}
}

// fetchRanges fetches the request's chunks from the captain, and passes each to write with its
// offset in the parameters. The chunks must be those of want, unless that is nil. If the caller has
// the version, there are none.
func (c *Client) fetchRanges(
	ctx context.Context, req *psv1.FetchRequest, want *psv1.Version, write func(offset uint64, data []byte),
) (*psv1.Version, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req.Process = process
	replaced := func(err error) error {
		if want != nil && connect.CodeOf(err) == connect.CodeNotFound {
			return fmt.Errorf("%w: %w", errReplaced, err)
		}
		return err
	}
	stream, err := c.captain.Fetch(ctx, req)
	if err != nil {
		return nil, replaced(err)
	}
	defer func() { _ = stream.Close() }()
	var missing []uint32
	for _, r := range req.GetRanges() {
		for i := range r.GetCount() {
			missing = append(missing, r.GetFirst()+i)
		}
	}
	version := want
	damaged := func(index uint32) error {
		return connect.Errorf(connect.CodeDataLoss, "pull %q: chunk %d is damaged", version.GetTag(), index)
	}
	for {
		res, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, replaced(err)
		}
		if v := res.GetVersion(); v != nil && want == nil {
			version = v
			if v.GetId() == req.GetHave() || v.GetSize() == 0 {
				missing = nil
			}
		}
		chunk := res.GetChunk()
		if chunk == nil {
			continue
		}
		offset := uint64(chunk.GetIndex()) * store.ChunkSize
		size := min(version.GetSize()-min(offset, version.GetSize()), store.ChunkSize)
		if len(missing) == 0 || missing[0] != chunk.GetIndex() || uint64(len(chunk.GetData())) != size ||
			store.Checksum(chunk.GetData()) != chunk.GetChecksum() {
			return nil, damaged(chunk.GetIndex())
		}
		missing = missing[1:]
		write(offset, chunk.GetData())
	}
	if version == nil || len(missing) > 0 {
		return nil, connect.Errorf(connect.CodeDataLoss, "pull %q: %d chunks did not arrive", req.GetTag(), len(missing))
	}
	return version, nil
}
