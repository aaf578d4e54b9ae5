package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/nodeurl"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/runtime/tunnel"
)

const (
	// The range of versions of Brain's protocol that this program speaks.
	minVersion, maxVersion = 1, 1
	// answerTimeout bounds requests that Brain and hosts answer from memory.
	answerTimeout = 5 * time.Second
	// maxMessage bounds one message, in bytes: the hosts' default.
	maxMessage = 64 << 20
)

// system is a client of a running system. All requests go by HTTP through Brain's gateway, on
// connections on which both sides have proven that they know the token, which is never sent.
type system struct {
	address string
	http    *http.Client
	token   string
	brain   brainv1connect.BrainServiceClient
	// root is Brain's own reference.
	root *nodev1.NodeRef
}

// connect finds Brain, connects to it and negotiates a version.
func (a *app) connect(ctx context.Context) (*system, error) {
	address, err := a.address(ctx)
	if err != nil {
		return nil, err
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, usagef("Brain's address, %q, is not of the form HOST:PORT", address)
	}
	token, unknown := a.secret(address)
	if unknown != nil && !errors.Is(unknown, rundir.ErrNoToken) {
		return nil, unknown
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := runtime.NewHTTPTransport(token, protocols)
	if files := a.files(); files[0] != "" {
		if transport, err = runtime.NewOwnPKITransport(token, protocols, files[0], files[1], files[2]); err != nil {
			return nil, &localError{err}
		}
	}
	connectTo := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		nc, err := connectTo(ctx, network, address)
		if err == nil && unknown != nil {
			return nil, errors.Join(&openError{unknown}, nc.Close())
		}
		return nc, err
	}
	s := &system{address: address, token: token, http: &http.Client{Transport: transport}}
	s.brain = brainv1connect.NewBrainServiceClient(s.client(""))
	hctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	hello, err := s.brain.Hello(hctx, &brainv1.HelloRequest{MinVersion: minVersion, MaxVersion: maxVersion})
	if err != nil {
		s.close()
		if ctx.Err() != nil {
			return nil, ctx.Err() // the user's own deadline, or interrupt
		}
		return nil, noBrain(address, err, unknown)
	}
	s.root = hello.GetRoot()
	return s, nil
}

func (s *system) close() { s.http.CloseIdleConnections() }

// client returns a client of the node with the given path, alias or nid; "" is Brain's registry.
func (s *system) client(node string) *connect.Client {
	base := nodeurl.Route{Node: node}.URL(s.address).String()
	transport := connecthttp.NewTransport(s.http, base, connecthttp.WithReadMaxBytes(maxMessage), connecthttp.WithSendMaxBytes(maxMessage))
	return connect.NewClient(transport)
}

// lookup finds a node by path, alias or nid.
func (s *system) lookup(ctx context.Context, node string) (*nodev1.NodeRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	res, err := s.brain.Lookup(ctx, &brainv1.LookupRequest{Where: &brainv1.Where{By: &brainv1.Where_Any{Any: node}}})
	if err != nil {
		return nil, err
	}
	return res.GetNode(), nil
}

// openError reports a system without a token that was not expected to be open.
type openError struct{ unknown error }

// Error implements error.
func (e *openError) Error() string {
	return "it asks for no token, so any user of the machine could have started it: give --open (RAYLINK_OPEN=1) if it is meant to be open; " + e.unknown.Error()
}

// refusedBy converts a failed handshake at Brain's address to an error, or returns nil for other
// errors.
func refusedBy(address string, err, unknown error) *brainError {
	if open, ok := errors.AsType[*openError](err); ok {
		return &brainError{connect.CodeUnauthenticated, "Brain at " + address + " is not used: " + open.Error(), err}
	}
	failed, ok := errors.AsType[*tunnel.HandshakeError](err)
	if !ok {
		return nil
	}
	text := failed.Message
	switch failed.Reason { //nolint:exhaustive // the others are refusals
	case tunnel.ReasonUnproven:
		return &brainError{failed.Code, "Brain at " + address + " is not used: " + text, err}
	case tunnel.ReasonNotAPeer:
		return brainErrorf(err, "the process at %s is not a Brain (%s): %s", address, text, whereBrainIs)
	case tunnel.ReasonLost:
		return brainErrorf(err, "the process at %s does not answer as a Brain does (%s): %s", address, text, whereBrainIs)
	}
	if unknown != nil && failed.Code == connect.CodeUnauthenticated {
		text = unknown.Error() + "; give it by --token-file or RAYLINK_TOKEN"
	}
	return &brainError{failed.Code, "Brain at " + address + " refuses: " + text, err}
}

const whereBrainIs = "give Brain's address by --brain or RAYLINK_BRAIN, or start one with `raylink brain`"

// noBrain converts the error of a request to Brain. unknown is the cause of a missing token, or
// nil.
func noBrain(address string, err, unknown error) error {
	const where = whereBrainIs
	if refusal := refusedBy(address, err, unknown); refusal != nil && !errors.Is(err, context.DeadlineExceeded) {
		return refusal
	}
	text := connecterr.Text(err)
	switch code := connect.CodeOf(err); {
	case errors.Is(err, context.DeadlineExceeded) || code == connect.CodeDeadlineExceeded:
		return brainErrorf(err, "the process at %s does not answer within %v: %s", address, answerTimeout, where)
	case code == connect.CodeUnauthenticated, code == connect.CodePermissionDenied, code == connect.CodeFailedPrecondition:
		refusal := brainErrorf(err, "Brain at %s refuses: %s", address, text)
		refusal.code = code
		return refusal
	case refused(err):
		return brainErrorf(err, "no process answers at %s (%s): %s", address, text, where)
	case code == connect.CodeUnimplemented, code == connect.CodeNotFound:
		return brainErrorf(err, "the process at %s is not a Brain (%s): %s", address, text, where)
	}
	return brainErrorf(err, "the process at %s does not answer as a Brain does (%s): %s", address, text, where)
}

// refused reports whether no connection could be made.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
