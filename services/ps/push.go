package ps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/services/ps/store"
)

// PushOption configures a push.
type PushOption func(*psv1.PushRequest)

// Info adds an entry to the version's information: its step, for example. All entries together with
// the tag have at most 64 KiB.
func Info(key, value string) PushOption {
	return func(r *psv1.PushRequest) {
		if r.Info == nil {
			r.Info = make(map[string]string)
		}
		r.Info[key] = value
	}
}

// At gives the push the pusher's own version number. The push fails with the code Aborted unless
// the number is above the newest version's.
func At(id uint64) PushOption { return func(r *psv1.PushRequest) { r.Version = id } }

// Levels of [WaitFor].
const (
	// Home is the captain's machine. The version survives the death of any process.
	Home = psv1.WaitFor_WAIT_FOR_HOME
	// Quorum is more than half of the machines that have an officer, the captain's among them.
	Quorum = psv1.WaitFor_WAIT_FOR_QUORUM
	// All is every machine that has an officer. The version survives the loss of all but one.
	All = psv1.WaitFor_WAIT_FOR_ALL
)

// WaitFor selects the machines that have the version before the push returns. Default: [Home]. If
// the context ends first, the push returns its version and a [*LackingError].
func WaitFor(level psv1.WaitFor) PushOption {
	return func(r *psv1.PushRequest) { r.WaitFor = level }
}

// LackingError means that a version was pushed, but the push's context ended before all the
// machines had it that it waited for.
type LackingError struct {
	// Version is the version. Its distribution goes on.
	Version *psv1.Version
	// Machines are those that lacked it.
	Machines []string

	err error
}

// Error says which machines lacked the version.
func (e *LackingError) Error() string { return e.err.Error() }

// Unwrap returns the error of the call, which has the code DeadlineExceeded.
func (e *LackingError) Unwrap() error { return e.err }

// inlineLimit is the size up to which a push is one call with the parameters in its message.
const inlineLimit = 64 << 10

// Push makes parameters the newest version of a tag. The caller may modify them once it has
// returned.
//
// On a machine with an officer whose memory this process shares, they are copied once, into that
// memory. While the captain is away the push waits for it until ctx ends.
func (c *Client) Push(ctx context.Context, tag string, parameters []byte, opts ...PushOption) (*psv1.Version, error) {
	return c.push(ctx, tag, [][]byte{parameters}, opts)
}

// push pushes the parts as one version.
func (c *Client) push(ctx context.Context, tag string, parts [][]byte, opts []PushOption) (*psv1.Version, error) {
	req := &psv1.PushRequest{Tag: tag, Content: newToken()}
	for _, opt := range opts {
		opt(req)
	}
	if err := store.CheckTag(tag); err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "push: %v", err).WithCause(err)
	}
	v, err := c.view(tag)
	if err != nil {
		return nil, err
	}
	var size uint64
	for _, part := range parts {
		size += uint64(len(part))
	}
	pause := backoff.Backoff{First: 10 * time.Millisecond, Max: 500 * time.Millisecond}
	for {
		version, err := c.tryPush(ctx, req, parts, size)
		if version != nil {
			v.raise(version.GetId())
		}
		// A push that is repeated has the same content, so that it becomes one version.
		if err == nil || !isAway(err) || endedForGood(c.captain.Ref()) {
			return version, c.pushError(err)
		}
		if pause.Wait(ctx) != nil {
			return nil, awayError(ctx, tag, err)
		}
	}
}

// isAway reports whether an error means that captain or officer are being started again.
func isAway(err error) bool {
	code := connect.CodeOf(err)
	return code == connect.CodeUnavailable || errors.Is(err, errOfficerAway)
}

// awayError is the error of a push whose context has ended while the captain was away.
func awayError(ctx context.Context, tag string, err error) error {
	code := connect.CodeDeadlineExceeded
	if errors.Is(ctx.Err(), context.Canceled) {
		code = connect.CodeCanceled
	}
	return connect.Errorf(code, "push %q: the captain was away until the push's context ended: %v", tag, err).WithCause(ctx.Err())
}

// errOfficerAway means that the machine's officer could not be used.
var errOfficerAway = errors.New("the machine's officer is away")

func (c *Client) pushError(err error) error {
	if err == nil {
		return nil
	}
	if endedForGood(c.captain.Ref()) {
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	return err
}

func (c *Client) tryPush(ctx context.Context, req *psv1.PushRequest, parts [][]byte, size uint64) (*psv1.Version, error) {
	if size <= inlineLimit {
		inline := &psv1.PushRequest{
			Tag: req.GetTag(), Info: maps.Clone(req.GetInfo()), Version: req.GetVersion(), WaitFor: req.GetWaitFor(), Content: req.GetContent(),
			Parameters: slices.Concat(parts...),
		}
		return pushed(c.captain.Push(ctx, inline))
	}
	if f := c.files.Load(); f != nil && f.officer != nil && f.served() {
		version, err := c.pushMapped(ctx, f, req, parts, size)
		if !errors.Is(err, errOfficerAway) {
			return version, err
		}
		c.recheck(nil) // the officer may have another node by now
	}
	return c.upload(ctx, req, parts, size)
}

// pushed converts the response to a push.
func pushed(res *psv1.PushResponse, err error) (*psv1.Version, error) {
	if err == nil {
		return res.GetVersion(), nil
	}
	var e *connect.Error
	if !errors.As(err, &e) {
		return nil, err
	}
	for _, detail := range e.Details() {
		msg, derr := connectproto.UnmarshalErrorDetail(detail)
		if derr != nil {
			continue
		}
		if lacking, ok := msg.(*psv1.Lacking); ok {
			return lacking.GetVersion(), &LackingError{Version: lacking.GetVersion(), Machines: lacking.GetMachines(), err: err}
		}
	}
	return nil, err
}

// pushMapped writes the parameters into the memory of the machine's officer.
func (c *Client) pushMapped(ctx context.Context, f *files, req *psv1.PushRequest, parts [][]byte, size uint64) (*psv1.Version, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	away := func(err error) error {
		if code := connect.CodeOf(err); ctx.Err() == nil && (code == connect.CodeUnavailable || code == connect.CodeNotFound || code == connect.CodeCanceled) {
			return fmt.Errorf("%w: %w", errOfficerAway, err)
		}
		return err
	}
	stream, err := f.officer.Lend(ctx)
	if err != nil {
		return nil, away(err)
	}
	defer func() { _ = stream.Close() }()
	reserve := draftOf(req, size, req.GetContent())
	if err := stream.Send(&psv1.LendRequest{Part: &psv1.LendRequest_Reserve{Reserve: reserve}}); err != nil {
		_, err = stream.Receive()
		return nil, away(err)
	}
	lent, err := stream.Receive()
	if err != nil {
		return nil, away(err)
	}
	sum, err := store.Fill(lent.GetPath(), parts...)
	if errors.Is(err, store.ErrDiscarded) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errOfficerAway, err) // its node has ended meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("push %q: write into the officer's memory: %w", req.GetTag(), err)
	}
	if err := stream.Send(&psv1.LendRequest{Part: &psv1.LendRequest_Seal{Seal: sum}}); err != nil {
		_, err = stream.Receive()
		return nil, away(err)
	}
	// The officer's response is not waited for: the captain waits for the parameters.
	version, err := pushed(c.captain.Push(ctx, &psv1.PushRequest{
		Tag: req.GetTag(), Info: maps.Clone(req.GetInfo()), Version: req.GetVersion(), WaitFor: req.GetWaitFor(),
		Lent: &psv1.Lent{Machine: c.machine, Content: lent.GetContent(), Size: size, Checksum: sum},
	}))
	if version == nil {
		return nil, away(err)
	}
	// The officer keeps the parameters until it learns of the version.
	for ended := stream.CloseSend(); ended == nil; {
		_, ended = stream.Receive()
	}
	return version, err
}

// upload sends the parameters to the captain.
func (c *Client) upload(ctx context.Context, req *psv1.PushRequest, parts [][]byte, size uint64) (*psv1.Version, error) {
	stream, err := c.captain.Upload(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	begin := &psv1.PushRequest{Tag: req.GetTag(), Info: maps.Clone(req.GetInfo()), Version: req.GetVersion(), WaitFor: req.GetWaitFor(), Content: req.GetContent()}
	err = stream.Send(&psv1.UploadRequest{Part: &psv1.UploadRequest_Begin{Begin: &psv1.UploadBegin{Push: begin, Size: size}}})
	index := uint32(0)
	for chunk := range chunksOf(parts) {
		if err != nil {
			break // the response has the reason
		}
		err = stream.Send(&psv1.UploadRequest{Part: &psv1.UploadRequest_Chunk{
			Chunk: &psv1.Chunk{Index: index, Data: chunk, Checksum: store.Checksum(chunk)},
		}})
		index++
	}
	return pushed(stream.CloseAndReceive())
}

// chunksOf iterates over the chunks of the concatenated parts. A chunk that spans parts is a copy.
func chunksOf(parts [][]byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		var rest []byte
		for _, part := range parts {
			if len(rest) > 0 {
				n := min(len(part), store.ChunkSize-len(rest))
				rest, part = append(rest, part[:n]...), part[n:]
				if len(rest) < store.ChunkSize {
					continue
				}
				if !yield(rest) {
					return
				}
			}
			for len(part) >= store.ChunkSize {
				if !yield(part[:store.ChunkSize]) {
					return
				}
				part = part[store.ChunkSize:]
			}
			rest = slices.Clone(part)
		}
		if len(rest) > 0 {
			yield(rest)
		}
	}
}
