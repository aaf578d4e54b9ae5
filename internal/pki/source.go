package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	// renewalJitter is the share of the lifetime by which renewals are spread, so that hosts which
	// have joined together don't renew together.
	renewalJitter = 20 // one twentieth
	// Pauses between attempts to renew grow from the first to the longest.
	firstPause   = time.Second
	longestPause = 10 * time.Minute
	// attemptTimeout bounds one attempt to renew.
	attemptTimeout = time.Minute
	// clockCheck is how long a wait trusts the monotonic clock, which stands still while a machine
	// is suspended: certificates end by the wall clock.
	clockCheck = time.Minute
)

// Renew requests a certificate: it sends the request to the CA by a connection with the certificate
// that is still valid, and returns the chain of [CA.Sign].
type Renew func(ctx context.Context, csr []byte) (chain [][]byte, err error)

// Source holds a host's certificate, and renews it. Its methods may be used concurrently.
// Connections that are open stay as they are when the certificate is renewed.
type Source struct {
	hostID string
	trust  Trust
	renew  Renew
	report func(error)

	current atomic.Pointer[tls.Certificate]
	lastErr atomic.Pointer[error] // of the last attempt to renew; nil if it succeeded
}

// NewSource makes a source of a certificate from [Request.Accept]. Renewed certificates are
// accepted by trust. report is called, by Run, with the error of each attempt to renew that failed;
// it may be nil.
func NewSource(first *tls.Certificate, trust Trust, renew Renew, report func(error)) (*Source, error) {
	if first.Leaf == nil {
		return nil, errors.New("the certificate of a host has no parsed leaf")
	}
	peer, err := peerIn(first.Leaf)
	if err != nil {
		return nil, fmt.Errorf("the certificate can't be renewed: %w", err)
	}
	if report == nil {
		report = func(error) {}
	}
	s := &Source{hostID: peer.HostID, trust: trust, renew: renew, report: report}
	s.current.Store(first)
	return s, nil
}

// Certificate returns the current certificate, for [ClientConfig] and [ServerConfig]. It fails if
// that has expired: then the error has the reason why it could not be renewed.
func (s *Source) Certificate() (*tls.Certificate, error) {
	cert := s.current.Load()
	if time.Now().After(cert.Leaf.NotAfter) {
		return nil, s.expired(cert.Leaf)
	}
	return cert, nil
}

func (s *Source) expired(leaf *x509.Certificate) error {
	err := fmt.Errorf("the certificate of this host, %s, was valid until %s: %w", s.hostID, formatTime(leaf.NotAfter), ErrExpired)
	if last := s.lastErr.Load(); last != nil {
		err = fmt.Errorf("%w, and %w", err, *last)
	}
	return err
}

// Run renews the certificate whenever two thirds of its lifetime are over. An attempt that fails is
// repeated after a pause, which doubles from a second to ten minutes, until the certificate
// expires. Run blocks until then, and returns why; or until ctx ends, and returns its cause.
func (s *Source) Run(ctx context.Context) error {
	for {
		leaf := s.current.Load().Leaf
		if err := waitUntil(ctx, renewalTime(leaf)); err != nil {
			return err
		}
		if err := s.renewBefore(ctx, leaf); err != nil {
			return err
		}
	}
}

// renewalTime returns a time between two thirds of a certificate's lifetime and a twentieth more.
func renewalTime(leaf *x509.Certificate) time.Time {
	lifetime := leaf.NotAfter.Sub(leaf.NotBefore)
	jitter := rand.N(max(lifetime/renewalJitter, 1)) //nolint:gosec // jitter needs no secrecy
	return leaf.NotBefore.Add(lifetime/3*2 + jitter)
}

// renewBefore attempts to renew until it succeeds, or the current certificate expires.
func (s *Source) renewBefore(ctx context.Context, leaf *x509.Certificate) error {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := s.attempt(ctx, leaf)
		if err == nil {
			s.lastErr.Store(nil)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = fmt.Errorf("renewing the certificate of the host %s, which is valid until %s: %w", s.hostID, formatTime(leaf.NotAfter), err)
		s.lastErr.Store(&err)
		s.report(err)
		next := time.Now().Add(pause/2 + rand.N(pause/2)) //nolint:gosec // jitter needs no secrecy
		if next.After(leaf.NotAfter) {
			next = leaf.NotAfter
		}
		if err := waitUntil(ctx, next); err != nil {
			return err
		}
		if !time.Now().Before(leaf.NotAfter) {
			return s.expired(leaf)
		}
	}
}

// attempt renews once, with a new key.
func (s *Source) attempt(ctx context.Context, leaf *x509.Certificate) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	request, err := NewRequest(s.hostID)
	if err != nil {
		return err
	}
	chain, err := s.renew(ctx, request.CSR())
	if err != nil {
		return err
	}
	cert, err := request.Accept(chain, s.trust)
	if err != nil {
		return err
	}
	if !cert.Leaf.NotAfter.After(leaf.NotAfter) {
		return fmt.Errorf("the new one is valid until %s only", formatTime(cert.Leaf.NotAfter))
	}
	s.current.Store(cert)
	return nil
}

// waitUntil blocks until a time of the wall clock, or returns the cause of the context's end.
func waitUntil(ctx context.Context, when time.Time) error {
	for {
		// Without the monotonic part of time.Now, which would be used for the difference.
		left := when.Sub(time.Now().Round(0))
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(min(left, clockCheck))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}
