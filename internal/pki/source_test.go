package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// renewals is a CA as a host sees it, and how it behaves.
type renewals struct {
	ca    *CA
	grant Grant
	start time.Time

	mu    sync.Mutex // guards all below
	fail  error
	times []time.Duration // of the requests, from the start of the test
	keys  map[string]bool
}

func newRenewals(t *testing.T) *renewals {
	t.Helper()
	return &renewals{
		ca: newCA(t), grant: Grant{HostID: "host-1", Role: RoleJoin, TokenID: tokenA}, start: time.Now(), keys: make(map[string]bool),
	}
}

func (r *renewals) renew(_ context.Context, csr []byte) ([][]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = append(r.times, time.Since(r.start))
	r.keys[string(csr)] = true
	if r.fail != nil {
		return nil, r.fail
	}
	return r.ca.Sign(csr, r.grant)
}

func (r *renewals) failWith(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// requests returns when certificates were requested.
func (r *renewals) requests() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.times)
}

// run runs a source until the test ends it, or it ends.
func (r *renewals) run(t *testing.T, report func(error)) (source *Source, ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	source, err := NewSource(issue(t, r.ca, r.grant), Trust{Roots: r.ca.Roots}, r.renew, report)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	t.Cleanup(func() { cancel(errors.New("the test is over")) })
	return source, done
}

func TestCertificatesAreRenewedUnderConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRenewals(t)
		brain := issue(t, r.ca, Grant{HostID: "brain", Role: RoleAdmin, Lifetime: 30 * 24 * time.Hour})
		source, _ := r.run(t, func(err error) { t.Error(err) })
		client := clientConfig(t, source.Certificate, Trust{Roots: r.ca.Roots})
		server := serverConfig(t, fixed(brain), Trust{Roots: r.ca.Roots})
		for range 10 * 24 {
			advance(time.Hour)
			c, s := connect(t, client, server)
			require.NoError(t, c.err)
			require.NoError(t, s.err)
		}
		// Two thirds of a day and 5 minutes, of which 5 minutes were before the start; and 5 %
		// more.
		lifetime := 24*time.Hour + clockSkew
		from, to := lifetime*2/3-clockSkew, lifetime*2/3+lifetime/20-clockSkew+time.Second
		last := time.Duration(0)
		requests := r.requests()
		for _, at := range requests {
			require.GreaterOrEqual(t, at-last, from-time.Second)
			require.LessOrEqual(t, at-last, to)
			last = at
		}
		require.InDelta(t, 15, len(requests), 1)
		require.Len(t, r.keys, len(requests), "each certificate has a new key")
	})
}

func TestRenewalsAreSpread(t *testing.T) {
	ca := newCA(t)
	leaf := issue(t, ca, Grant{HostID: "host", Role: RoleJoin}).Leaf
	times := make(map[time.Time]bool)
	for range 100 {
		times[renewalTime(leaf)] = true
	}
	require.Greater(t, len(times), 90)
}

// TestRenewalIsRepeatedUntilTheCertificateExpires has a CA that is away.
func TestRenewalIsRepeatedUntilTheCertificateExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRenewals(t)
		r.failWith(errors.New("Brain is away"))
		var reports []error
		source, ended := r.run(t, func(err error) { reports = append(reports, err) })
		advance(24*time.Hour - time.Second)
		synctest.Wait()
		times := r.requests()
		require.Len(t, reports, len(times))
		require.EqualError(t, reports[0], "renewing the certificate of the host host-1, which is valid until 2000-01-02T00:00:00Z: Brain is away")
		require.Greater(t, len(times), 30)
		require.Less(t, len(times), 120)
		for i := 1; i < len(times); i++ {
			pause := times[i] - times[i-1]
			bound := min(firstPause<<min(i-1, 20), longestPause)
			require.GreaterOrEqual(t, pause, bound/2)
			require.LessOrEqual(t, pause, bound)
		}
		_, err := source.Certificate()
		require.NoError(t, err)
		advance(2 * time.Second)
		const want = "the certificate of this host, host-1, was valid until 2000-01-02T00:00:00Z: it has expired, and " +
			"renewing the certificate of the host host-1, which is valid until 2000-01-02T00:00:00Z: Brain is away"
		_, err = source.Certificate()
		require.EqualError(t, err, want)
		require.ErrorIs(t, err, ErrExpired)
		require.EqualError(t, <-ended, want)
		// Both sides of a connection with it.
		brain := issue(t, r.ca, Grant{HostID: "brain", Role: RoleAdmin})
		c, s := connect(t, clientConfig(t, source.Certificate, Trust{Roots: r.ca.Roots}), serverConfig(t, fixed(brain), Trust{Roots: r.ca.Roots}))
		require.ErrorContains(t, c.err, want)
		require.Error(t, s.err)
		c, s = connect(t, clientConfig(t, fixed(brain), Trust{Roots: r.ca.Roots}), serverConfig(t, source.Certificate, Trust{Roots: r.ca.Roots}))
		require.ErrorContains(t, s.err, want)
		require.ErrorContains(t, Explain(c.err), "the peer failed by itself, such as with a certificate that has expired and could not be renewed: "+
			"its log has the reason: remote error: tls: internal error")
	})
}

func TestRenewalSucceedsAfterFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRenewals(t)
		r.failWith(errors.New("Brain is away"))
		source, _ := r.run(t, nil)
		advance(20 * time.Hour)
		r.failWith(nil)
		advance(10 * time.Minute)
		cert, err := source.Certificate()
		require.NoError(t, err)
		require.Greater(t, time.Until(cert.Leaf.NotAfter), 23*time.Hour)
		require.Nil(t, source.lastErr.Load())
	})
}

// TestUselessRenewalsAreRefused has a CA that signs other certificates than it was asked for.
func TestUselessRenewalsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, other := newRenewals(t), newCA(t)
		first := issue(t, r.ca, r.grant)
		for _, c := range []struct {
			want  string
			renew Renew
		}{
			{"the new one is valid until 2000-01-01T01:00:00Z only", func(_ context.Context, csr []byte) ([][]byte, error) {
				return r.ca.Sign(csr, Grant{HostID: "host-1", Role: RoleJoin, Lifetime: time.Hour})
			}},
			{"it is not of a CA that is trusted here", func(_ context.Context, csr []byte) ([][]byte, error) { return other.Sign(csr, r.grant) }},
			{"it is for another key", func(context.Context, []byte) ([][]byte, error) { return first.Certificate, nil }},
			{"context deadline exceeded", func(ctx context.Context, _ []byte) ([][]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}},
		} {
			source, err := NewSource(first, Trust{Roots: r.ca.Roots}, c.renew, nil)
			require.NoError(t, err)
			require.ErrorContains(t, source.attempt(t.Context(), first.Leaf), c.want)
			cert, err := source.Certificate()
			require.NoError(t, err)
			require.Same(t, first, cert)
		}
		_, err := NewSource(&tls.Certificate{}, Trust{}, r.renew, nil)
		require.EqualError(t, err, "the certificate of a host has no parsed leaf")
		_, err = NewSource(&tls.Certificate{Leaf: r.ca.Certificate()}, Trust{}, r.renew, nil)
		require.EqualError(t, err, "the certificate can't be renewed: it has no identity of the form raylink://host/<host id>?role=<role>")
	})
}

// TestSourceEndsWithItsContext ends it while it waits, and during a renewal.
func TestSourceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRenewals(t)
		stopped := errors.New("stopped")
		for _, renewing := range []bool{false, true} {
			ctx, cancel := context.WithCancelCause(t.Context())
			source, err := NewSource(issue(t, r.ca, r.grant), Trust{Roots: r.ca.Roots}, func(ctx context.Context, _ []byte) ([][]byte, error) {
				require.True(t, renewing)
				cancel(stopped)
				return nil, ctx.Err()
			}, nil)
			require.NoError(t, err)
			if !renewing {
				time.AfterFunc(time.Hour, func() { cancel(stopped) })
			}
			require.ErrorIs(t, source.Run(ctx), stopped)
		}
	})
}
