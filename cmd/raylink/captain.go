package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/nodename"
)

// chunkSize is the size of the chunks in which parameters are sent.
const chunkSize = 256 << 10

// castagnoli is the polynomial of the checksums.
var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // never changes

// captain is a client of a parameter server's captain, by way of Brain's gateway.
type captain struct {
	*system

	node   string // the captain's path, alias or nid
	client *connect.Client
}

// captain connects to the captain that the flags name.
func (p *psApp) captain(ctx context.Context) (*captain, error) {
	s, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	rec, err := s.lookup(ctx, p.path)
	if err == nil && rec.GetService() != psv1raylink.CaptainName {
		err = usagef("%s is a node of type %s (%s): --captain takes the captain of a parameter server (%s)",
			rec.GetPath(), rec.GetType(), rec.GetService(), psv1raylink.CaptainName)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s.captain(p.path), nil
}

// captain returns a client of the captain with the given path, alias or nid.
func (s *system) captain(node string) *captain {
	return &captain{system: s, node: node, client: s.client(node)}
}

// spec describes a method of captains.
func (c *captain) spec(method protoreflect.Name) connect.Spec {
	m := psv1.File_raylink_ps_v1_ps_proto.Services().ByName("Captain").Methods().ByName(method)
	return connect.Spec{StreamType: shapeOf(m), Schema: m, Procedure: nodename.Procedure(psv1raylink.CaptainName, string(method))}
}

// call calls a method that the captain answers from memory.
func (c *captain) call(ctx context.Context, method protoreflect.Name, req, res proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	spec := c.spec(method)
	if err := c.client.CallUnary(ctx, spec, req, res); err != nil {
		return nameDeadline(err, c.node, spec.Procedure)
	}
	return nil
}

// tags returns the newest version of each tag, sorted by tag.
func (c *captain) tags(ctx context.Context) ([]*psv1.Version, error) {
	res := &psv1.ListTagsResponse{}
	err := c.call(ctx, "ListTags", &psv1.ListTagsRequest{}, res)
	return res.GetVersions(), err
}

// fetch writes the newest parameters of a tag to w, and returns their version. It calls begin with
// it before the first write. It returns the errors of begin and w as they are. If there is an
// error after begin was called, the version is returned too.
func (c *captain) fetch(ctx context.Context, tag string, begin func(*psv1.Version) error, w io.Writer) (*psv1.Version, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.client.CallServerStream(ctx, c.spec("Fetch"), &psv1.FetchRequest{Tag: tag})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var (
		version *psv1.Version
		next    uint32
		written uint64
		sum     uint32
	)
	res := &psv1.FetchResponse{}
	for {
		proto.Reset(res)
		err := stream.Receive(res)
		switch {
		case errors.Is(err, io.EOF) && version != nil && written == version.GetSize() && sum == version.GetChecksum():
			return version, nil
		case errors.Is(err, io.EOF):
			return version, connect.Errorf(connect.CodeDataLoss, "pull %q: %d of %d bytes arrived, with the checksum %08x instead of %08x",
				tag, written, version.GetSize(), sum, version.GetChecksum())
		case err != nil:
			return version, err
		}
		chunk := res.GetChunk()
		switch {
		case version == nil:
			if version = res.GetVersion(); version == nil {
				return nil, connect.Errorf(connect.CodeInternal, "pull %q: the captain sent a chunk before the version", tag)
			}
			if err := begin(version); err != nil {
				return version, err
			}
			continue
		case chunk == nil: // the captain shows that it responds
			continue
		case chunk.GetIndex() != next || crc32.Checksum(chunk.GetData(), castagnoli) != chunk.GetChecksum():
			return version, connect.Errorf(connect.CodeDataLoss, "pull %q: chunk %d is damaged", tag, next)
		case uint64(len(chunk.GetData())) > version.GetSize()-written:
			return version, connect.Errorf(connect.CodeDataLoss, "pull %q: more than the %d bytes of the version arrived", tag, version.GetSize())
		}
		if _, err := w.Write(chunk.GetData()); err != nil {
			return version, err
		}
		next++
		written += uint64(len(chunk.GetData()))
		sum = crc32.Update(sum, castagnoli, chunk.GetData())
	}
}

// upload pushes parameters that r has, of the given size, and returns their version.
func (c *captain) upload(ctx context.Context, push *psv1.PushRequest, size uint64, r io.Reader) (*psv1.Version, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.client.CallClientStream(ctx, c.spec("Upload"))
	if err != nil {
		return nil, err
	}
	defer func() {
		cancel() // a stream that is closed first would have ended without an error for the captain
		_ = stream.Close()
	}()
	if err := sendChunks(stream, push, size, r); err != nil && !errors.Is(err, errRefused) {
		return nil, &localError{fmt.Errorf("push %q: %w", push.GetTag(), err)}
	}
	if err := stream.CloseSend(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	res := &psv1.PushResponse{}
	if err := stream.Receive(res); err != nil {
		return nil, err
	}
	return res.GetVersion(), nil
}

// errRefused means that the captain has ended an upload; its response has the reason.
var errRefused = errors.New("the captain has ended the upload")

// sendChunks sends the messages of an upload. It returns errRefused, or why the parameters can't be
// read.
func sendChunks(stream connect.ClientStream, push *psv1.PushRequest, size uint64, r io.Reader) error {
	err := stream.Send(&psv1.UploadRequest{Part: &psv1.UploadRequest_Begin{Begin: &psv1.UploadBegin{Push: push, Size: size}}})
	buffer := make([]byte, min(size, chunkSize))
	index := uint32(0)
	for left := size; err == nil && left > 0; index++ {
		chunk := buffer[:min(left, chunkSize)]
		if n, err := io.ReadFull(r, chunk); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("only %d of %d bytes are there: the file changes while it is read", size-left+uint64(n), size) //nolint:gosec // n >= 0
		} else if err != nil {
			return err
		}
		left -= uint64(len(chunk))
		err = stream.Send(&psv1.UploadRequest{Part: &psv1.UploadRequest_Chunk{
			Chunk: &psv1.Chunk{Index: index, Data: chunk, Checksum: crc32.Checksum(chunk, castagnoli)},
		}})
	}
	if err != nil {
		return errRefused
	}
	return nil
}
