package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

const (
	// The versions of Brain's protocol that this program speaks.
	minVersion, maxVersion = 1, 1
	// answerTimeout bounds the questions that Brain and hosts answer out of memory.
	answerTimeout = 5 * time.Second
	// maxMessage bounds one message, in bytes: what hosts take by default.
	maxMessage = 64 << 20
)

// system is a running system, as it is reached from outside: everything goes by HTTP through Brain's gateway.
type system struct {
	address string
	http    *http.Client
	token   string
	brain   brainv1connect.BrainServiceClient
	// root is Brain itself.
	root *nodev1.NodeRef
}

// open finds Brain and agrees on a version with it.
func (a *app) open(ctx context.Context) (*system, error) {
	address := a.address()
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, usagef("Brain's address, %q, is not of the form HOST:PORT", address)
	}
	token, err := a.secret()
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	dialer := &net.Dialer{Timeout: answerTimeout}
	s := &system{
		address: address,
		token:   token,
		// No proxy: Brain and hosts are in the user's own network, and a token is nobody else's business.
		http: &http.Client{Transport: &http.Transport{Protocols: protocols, DialContext: dialer.DialContext}},
	}
	s.brain = brainv1connect.NewBrainServiceClient(s.client(""))
	hctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	hello, err := s.brain.Hello(hctx, &brainv1.HelloRequest{MinVersion: minVersion, MaxVersion: maxVersion})
	if err != nil {
		s.close()
		if ctx.Err() != nil {
			return nil, ctx.Err() // the user's own deadline, or interrupt
		}
		return nil, noBrain(address, err)
	}
	s.root = hello.GetRoot()
	return s, nil
}

func (s *system) close() { s.http.CloseIdleConnections() }

// client calls the node that a path, an alias or an nid names; "" is Brain's registry.
func (s *system) client(node string) *connect.Client {
	base := url.URL{Scheme: "http", Host: s.address}
	if node != "" {
		parts := strings.Split(node, "/")
		for i, part := range parts {
			parts[i] = url.PathEscape(part)
		}
		base.Path, base.RawPath = "/"+node, "/"+strings.Join(parts, "/")
	}
	transport := connecthttp.NewTransport(s.http, base.String(), connecthttp.WithReadMaxBytes(maxMessage), connecthttp.WithSendMaxBytes(maxMessage))
	return connect.NewClient(transport, s.authorize)
}

// authorize shows the token with every call.
func (s *system) authorize(next connect.ClientFunc) connect.ClientFunc {
	if s.token == "" {
		return next
	}
	return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
		if info, ok := connect.CallInfoForClientContext(ctx); ok {
			info.RequestHeader().Set("Authorization", "Bearer "+s.token)
		}
		return next(ctx, spec)
	}
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

// noBrain says what is wrong with what should be a Brain.
func noBrain(address string, err error) error {
	const where = "give Brain's address by --brain or RAYLINK_BRAIN, or start one with `raylink brain`"
	text := reason(err)
	switch code := connect.CodeOf(err); {
	case errors.Is(err, context.DeadlineExceeded) || code == connect.CodeDeadlineExceeded:
		return brainErrorf(err, "what is at %s does not answer within %v: %s", address, answerTimeout, where)
	case code == connect.CodeUnauthenticated, code == connect.CodePermissionDenied, code == connect.CodeFailedPrecondition:
		refusal := brainErrorf(err, "Brain at %s refuses: %s", address, text)
		refusal.code = code
		return refusal
	case refused(err):
		return brainErrorf(err, "nobody answers at %s (%s): %s", address, text, where)
	case code == connect.CodeUnimplemented, code == connect.CodeNotFound:
		return brainErrorf(err, "what answers at %s is no Brain (%s): %s", address, text, where)
	}
	return brainErrorf(err, "what is at %s does not answer as a Brain does (%s): %s", address, text, where)
}

// refused says whether there was no connection at all.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
