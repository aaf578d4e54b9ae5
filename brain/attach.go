package brain

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/raylink/raylink/brain/internal/lease"
	"github.com/raylink/raylink/brain/internal/tree"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// received is one message from a stream, or the error that ended it.
type received[M any] struct {
	msg M
	err error
}

// receiving turns a stream's Receive, which only the stream's end interrupts, into a channel. Its
// goroutine ends with the stream, which ends when the handler returns.
func receiving[M any](ctx context.Context, receive func() (M, error)) <-chan received[M] {
	messages := make(chan received[M])
	go func() {
		for {
			msg, err := receive()
			select {
			case messages <- received[M]{msg, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return messages
}

// Attach holds a host's lease.
func (s *service) Attach(ctx context.Context, stream brainv1connect.BrainServiceAttachServerStream) error {
	b := s.brain
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, err := stream.Receive()
	if err != nil {
		return streamEnd(err)
	}
	host := first.GetHost()
	if err := tree.CheckText(first); err != nil {
		return err
	}
	if err := tree.CheckHost("host", host); err != nil {
		return err
	}
	if err := tree.CheckMachine(host, first.GetMachine()); err != nil {
		return err
	}
	peer, err := b.mayAttach(ctx, host)
	if err != nil {
		return err
	}
	session, err := b.leases.Attach(ctx, host)
	if err != nil {
		return err
	}
	// A stream that ends without a goodbye has broken.
	defer session.Broken()

	unknown, err := b.attach(ctx, session, first)
	if err != nil {
		return err
	}
	b.opts.Logger.Debug("host attached", "host", host.GetId(), "pid", host.GetPid(), "machine", host.GetMachine(), "unknown", len(unknown), "keeps", first.GetMachine().GetName())
	policy, changed := b.policy()
	answer := &brainv1.AttachResponse{Lease: durationpb.New(b.opts.Lease), Unknown: unknown, Web: b.opts.Web, Access: policy}
	if err := stream.Send(answer); err != nil {
		return streamEnd(err)
	}
	if first.GetGoodbye() {
		return b.goodbye(ctx, session, first)
	}

	messages := receiving(ctx, stream.Receive)
	for {
		select {
		case in := <-messages:
			if in.err != nil {
				return streamEnd(in.err)
			}
			if in.msg.GetGoodbye() {
				in.msg.Host = host
				return b.goodbye(ctx, session, in.msg)
			}
			session.Renew()
			if in.msg.GetLeaving() {
				if err := b.leave(ctx, session, host); err != nil {
					return err
				}
			}
			if err := stream.Send(&brainv1.AttachResponse{Lease: durationpb.New(b.opts.Lease), Leaving: in.msg.GetLeaving()}); err != nil {
				return streamEnd(err)
			}
		case <-changed:
			if b.isRevoked(peer) {
				return b.expel(ctx, host, peer)
			}
			policy, changed = b.policy()
			if err := stream.Send(&brainv1.AttachResponse{Lease: durationpb.New(b.opts.Lease), Access: policy}); err != nil {
				return streamEnd(err)
			}
		case <-session.Over():
			return session.Err()
		case <-ctx.Done():
			return fmt.Errorf("hold a lease: %w", context.Cause(ctx))
		}
	}
}

// attach admits a host, and the machine that it keeps. It returns which of its nodes are no longer
// its own.
func (b *Brain) attach(ctx context.Context, session *lease.Session, first *brainv1.AttachRequest) ([]string, error) {
	var unknown []string
	err := b.change(ctx, func(x *tree.Txn) error {
		select {
		case <-session.Over():
			// The host was declared dead, or has attached again. Its end has been recorded, or the
			// other stream declares its machine: nothing would end what is declared here.
			return session.Err()
		default:
		}
		unknown = x.HostBack(first.GetHost(), first.GetNodes())
		return x.Keep(first.GetHost(), first.GetMachine())
	})
	if err != nil {
		return nil, err
	}
	return unknown, nil
}

// leave ends the declaration of a host's machine: the host is going to end, and its nodes with it.
func (b *Brain) leave(ctx context.Context, session *lease.Session, host *nodev1.HostInfo) error {
	return b.change(ctx, func(x *tree.Txn) error {
		select {
		case <-session.Over():
			return session.Err() // another stream may have declared the machine since
		default:
		}
		return x.Keep(host, nil)
	})
}

// goodbye ends a host gracefully.
func (b *Brain) goodbye(ctx context.Context, session interface{ Goodbye() }, last *brainv1.AttachRequest) error {
	// The host need not wait for the response to its goodbye.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.opts.Lease)
	defer cancel()
	err := b.change(ctx, func(x *tree.Txn) error {
		x.HostEnded(last.GetHost())
		return nil
	})
	if err != nil {
		return err
	}
	session.Goodbye()
	return nil
}

// streamEnd is the result of a handler whose stream has ended: nil if the other side has closed it.
func streamEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return connect.NewError(connect.CodeOf(err), "the stream has broken").WithCause(err)
}
