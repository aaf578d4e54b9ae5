package ps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a captain with its officers, in this process.
type server struct {
	t       testing.TB
	captain *captain
	handle  *psv1raylink.Captain
	local   *officer

	// officers are those that may enlist, by nid.
	officers map[string]*psv1raylink.Officer
}

func newServer(t testing.TB, config *psv1.CaptainConfig) *server {
	t.Helper()
	machine, err := rundir.Machine()
	require.NoError(t, err)
	s := &server{t: t, officers: map[string]*psv1raylink.Officer{}}
	life, end := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	s.captain = newCaptain(config, machine, slog.New(slog.DiscardHandler), func(task func(context.Context) error) {
		tasks.Go(func() { _ = task(life) }) // life ends with the test
	})
	s.captain.find = func(req *psv1.EnlistRequest) (*psv1raylink.Officer, error) {
		return s.officers[req.GetOfficer().GetNid()], nil
	}
	t.Cleanup(func() { end(); tasks.Wait() })
	s.handle = psv1raylink.NewLocalCaptain(s.captain)
	s.local = s.officer(filepath.Join(t.TempDir(), "local"), machine)
	require.NoError(t, s.captain.enlistLocal(t.Context(), psv1raylink.NewLocalOfficer(s.local)))
	return s
}

func (s *server) officer(directory, machine string) *officer {
	s.t.Helper()
	o, err := newOfficer(directory, &psv1.OfficerConfig{Machine: machine})
	if errors.Is(err, store.ErrUnsupported) {
		s.t.Skip(err)
	}
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, o.close()) })
	return o
}

// enlist adds the officer of another machine.
func (s *server) enlist(machine string, o psv1raylink.OfficerNode, mapped *officer) {
	s.t.Helper()
	nid := strconv.Itoa(len(s.officers))
	s.officers[nid] = psv1raylink.NewLocalOfficer(o)
	_, err := s.handle.Enlist(s.t.Context(), &psv1.EnlistRequest{
		Machine: machine, Officer: &nodev1.NodeRef{Nid: nid}, Directory: mapped.directory(), Versions: mapped.store.Versions(),
	})
	require.NoError(s.t, err)
}

// client returns a client on a machine; "" means the captain's.
func (s *server) client(machine string) *Client {
	s.t.Helper()
	c, err := Open(s.t.Context(), s.handle)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, c.Close()) })
	if machine != "" {
		c.machine = machine
		require.NoError(s.t, c.locate(s.t.Context()))
	}
	return c
}

func pushed(t *testing.T, c *Client, tag, parameters string) uint64 {
	t.Helper()
	v, err := c.Push(t.Context(), tag, []byte(parameters), map[string]string{"is": parameters})
	require.NoError(t, err)
	return v.GetId()
}

func requirePulled(t *testing.T, c *Client, tag, want string, id uint64) {
	t.Helper()
	p, err := c.Pull(t.Context(), tag)
	require.NoError(t, err)
	require.Equal(t, want, string(p.Bytes()))
	require.Equal(t, id, p.Version().GetId())
	require.Equal(t, want, p.Version().GetInfo()["is"])
	require.Equal(t, store.Checksum(p.Bytes()), p.Version().GetChecksum())
	require.NoError(t, p.Release())
	require.NoError(t, p.Release())
}

// mappedAndThroughCaptain runs a test with mapped files, and through the captain.
func mappedAndThroughCaptain(t *testing.T, test func(t *testing.T, c *Client)) {
	t.Helper()
	t.Run("mapped", func(t *testing.T) {
		c := newServer(t, nil).client("")
		require.True(t, c.Mapped())
		test(t, c)
	})
	t.Run("through the captain", func(t *testing.T) {
		c := newServer(t, nil).client("machine without officer")
		require.False(t, c.Mapped())
		test(t, c)
	})
}

func TestPushedParametersArePulled(t *testing.T) {
	mappedAndThroughCaptain(t, func(t *testing.T, c *Client) {
		_, err := c.Pull(t.Context(), "w")
		require.ErrorIs(t, err, ErrNoVersion)
		id, err := c.ID(t.Context(), "w")
		require.NoError(t, err)
		require.Zero(t, id)

		require.Equal(t, uint64(1), pushed(t, c, "w", "one"))
		requirePulled(t, c, "w", "one", 1)
		require.Equal(t, uint64(2), pushed(t, c, "w", "two"))
		requirePulled(t, c, "w", "two", 2)
		requirePulled(t, c, "w", "two", 2)
		require.Equal(t, uint64(1), pushed(t, c, "v", ""))
		requirePulled(t, c, "v", "", 1)
		id, err = c.ID(t.Context(), "w")
		require.NoError(t, err)
		require.Equal(t, uint64(2), id)

		tags, err := c.Tags(t.Context())
		require.NoError(t, err)
		require.Len(t, tags, 2)
		require.Equal(t, "v", tags[0].GetTag())
		require.Equal(t, uint64(3), tags[1].GetSize())

		require.NoError(t, c.Close())
		_, err = c.Pull(t.Context(), "w")
		require.ErrorIs(t, err, store.ErrClosed)
		_, err = c.ID(t.Context(), "w")
		require.ErrorIs(t, err, store.ErrClosed)
	})
}

func TestLatePushNeverReplacesNewerVersion(t *testing.T) {
	mappedAndThroughCaptain(t, func(t *testing.T, c *Client) {
		ctx := t.Context()
		_, err := c.PushVersion(ctx, "w", 10, []byte("ten"), map[string]string{"is": "ten"})
		require.NoError(t, err)
		for _, late := range []uint64{10, 9, 1} {
			_, err = c.PushVersion(ctx, "w", late, []byte("late"), nil)
			require.Equal(t, connect.CodeAborted, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, "10")
		}
		requirePulled(t, c, "w", "ten", 10)
		require.Equal(t, uint64(11), pushed(t, c, "w", "eleven"))
		requirePulled(t, c, "w", "eleven", 11)
	})
}

func TestSlowReaderKeepsItsVersion(t *testing.T) {
	mappedAndThroughCaptain(t, func(t *testing.T, c *Client) {
		pushed(t, c, "w", "version being read...")
		p, err := c.Pull(t.Context(), "w")
		require.NoError(t, err)
		for i := range 20 {
			pushed(t, c, "w", fmt.Sprintf("%021d", i))
		}
		require.Equal(t, "version being read...", string(p.Bytes()))
		require.NoError(t, p.Release())
	})
}

func TestPullDoesNotCopyMappedParameters(t *testing.T) {
	c := newServer(t, nil).client("")
	pushed(t, c, "w", "parameters")
	first, err := c.Pull(t.Context(), "w")
	require.NoError(t, err)
	second, err := c.Pull(t.Context(), "w")
	require.NoError(t, err)
	require.Same(t, &first.Bytes()[0], &second.Bytes()[0])
	require.NoError(t, first.Release())
	require.Equal(t, "parameters", string(second.Bytes()), "releases are independent")
	require.NoError(t, second.Release())
}

func TestPusherMayModifyItsParameters(t *testing.T) {
	mappedAndThroughCaptain(t, func(t *testing.T, c *Client) {
		weights, info := []byte("before"), map[string]string{"is": "before"}
		_, err := c.Push(t.Context(), "w", weights, info)
		require.NoError(t, err)
		copy(weights, "after!")
		info["is"] = "after"
		requirePulled(t, c, "w", "before", 1)
	})
}

func TestInvalidPushesChangeNothing(t *testing.T) {
	s := newServer(t, &psv1.CaptainConfig{MaxBytes: 10, MaxTags: 1})
	c := s.client("")
	pushed(t, c, "w", "one")
	for name, push := range map[string]struct {
		tag  string
		size int
		info map[string]string
		code connect.Code
	}{
		"no tag":     {"", 1, nil, connect.CodeInvalidArgument},
		"bad tag":    {"a\nb", 1, nil, connect.CodeInvalidArgument},
		"too large":  {"w", 11, nil, connect.CodeResourceExhausted},
		"too many":   {"v", 1, nil, connect.CodeResourceExhausted},
		"large info": {"w", 1, map[string]string{"x": string(make([]byte, store.MaxDescription))}, connect.CodeInvalidArgument},
	} {
		_, err := c.Push(t.Context(), push.tag, make([]byte, push.size), push.info)
		require.Equal(t, push.code, connect.CodeOf(err), "%s: %v", name, err)
	}
	requirePulled(t, c, "w", "one", 1)
	require.Equal(t, uint64(2), pushed(t, c, "w", "two"))
}

// slowOfficer blocks until released, and can fail a number of times.
type slowOfficer struct {
	*officer

	release chan struct{}
	stores  atomic.Int64
	fails   atomic.Int64
}

func (o *slowOfficer) Store(ctx context.Context, req *psv1.StoreRequest) (*psv1.StoreResponse, error) {
	o.stores.Add(1)
	select {
	case <-o.release:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if o.fails.Add(-1) >= 0 {
		return nil, connect.NewError(connect.CodeUnavailable, "busy")
	}
	return o.officer.Store(ctx, req)
}

func eventually(t *testing.T, what func() bool) {
	t.Helper()
	require.Eventually(t, what, 10*time.Second, time.Millisecond)
}

func TestSlowOfficerDoesNotDelayPushesAndGetsNewest(t *testing.T) {
	s := newServer(t, nil)
	c := s.client("")
	pushed(t, c, "w", "pushed before the officer enlisted")
	o := &slowOfficer{officer: s.officer(filepath.Join(t.TempDir(), "remote"), "remote"), release: make(chan struct{})}
	o.fails.Store(2)
	s.enlist("remote", o, o.officer)
	remote := s.client("remote")
	require.True(t, remote.Mapped())

	for i := range 50 {
		pushed(t, c, "w", strconv.Itoa(i))
	}
	requirePulled(t, c, "w", "49", 51)
	_, err := remote.Pull(t.Context(), "w")
	require.ErrorIs(t, err, ErrNoVersion)

	close(o.release)
	eventually(t, func() bool { return o.store.Last("w") == 51 })
	requirePulled(t, remote, "w", "49", 51)
	require.Less(t, o.stores.Load(), int64(50), "superseded versions were skipped")
}

func TestRestartedCaptainRestoresFromOfficer(t *testing.T) {
	s := newServer(t, nil)
	c := s.client("")
	pushed(t, c, "w", "one")
	pushed(t, c, "w", "two")

	restarted := newServer(t, nil)
	restarted.local = s.local
	require.NoError(t, restarted.captain.enlistLocal(t.Context(), psv1raylink.NewLocalOfficer(s.local)))
	c2 := restarted.client("")
	requirePulled(t, c2, "w", "two", 2)
	require.Equal(t, uint64(3), pushed(t, c2, "w", "three"))
	requirePulled(t, c, "w", "three", 3)
	requirePulled(t, restarted.client("remote without officer"), "w", "three", 3)
}

func TestIDOfOfficersVersionIsNotReused(t *testing.T) {
	s := newServer(t, nil)
	// As if the captain was killed during a push: the officer has a version unknown to the captain.
	_, err := s.local.store.Put(&psv1.Version{Tag: "w", Id: 7}, []byte("seven"))
	require.NoError(t, err)
	c := s.client("")
	require.Equal(t, uint64(8), pushed(t, c, "w", "eight"))
	requirePulled(t, c, "w", "eight", 8)
	_, err = s.local.store.Put(&psv1.Version{Tag: "v", Id: 7}, []byte("seven"))
	require.NoError(t, err)
	_, err = c.PushVersion(t.Context(), "v", 6, []byte("six"), nil)
	require.Equal(t, connect.CodeAborted, connect.CodeOf(err), "%v", err)
}

func TestClientFollowsNextOfficer(t *testing.T) {
	s := newServer(t, nil)
	o := s.officer(filepath.Join(t.TempDir(), "first"), "remote")
	s.enlist("remote", o, o)
	c, remote := s.client(""), s.client("remote")
	pushed(t, c, "w", "one")
	eventually(t, func() bool { return o.store.Last("w") == 1 })
	requirePulled(t, remote, "w", "one", 1)
	mapped, err := remote.Pull(t.Context(), "w")
	require.NoError(t, err)

	require.NoError(t, o.store.Close()) // as if killed
	expire := func() { remote.checked.Add(-int64(recheckInterval)) }
	expire()
	next := s.officer(filepath.Join(t.TempDir(), "second"), "remote")
	s.enlist("remote", next, next)
	eventually(t, func() bool { return next.store.Last("w") == 1 })
	requirePulled(t, remote, "w", "one", 1)
	pushed(t, c, "w", "two")
	eventually(t, func() bool { return next.store.Last("w") == 2 })
	expire()
	requirePulled(t, remote, "w", "two", 2)
	require.True(t, remote.Mapped())
	require.Equal(t, "one", string(mapped.Bytes()), "pulled parameters outlive the officer")
	require.NoError(t, mapped.Release())

	require.NoError(t, os.Remove(filepath.Join(next.store.Directory(), nonceFile)))
	require.NoError(t, next.store.Close())
	expire()
	requirePulled(t, remote, "w", "two", 2)
	require.False(t, remote.Mapped(), "the client calls the captain instead")
}

func TestFilesWithWrongNonceAreNotMapped(t *testing.T) {
	s := newServer(t, nil)
	o := s.officer(filepath.Join(t.TempDir(), "remote"), "remote")
	s.enlist("remote", o, o)
	require.NoError(t, os.WriteFile(filepath.Join(o.store.Directory(), nonceFile), []byte(newNonce()), 0o600))
	require.False(t, s.client("remote").Mapped())
}

func TestOfficerServesItsParameters(t *testing.T) {
	s := newServer(t, nil)
	c := s.client("")
	pushed(t, c, "w", "one")
	h := psv1raylink.NewLocalOfficer(s.local)
	ctx := t.Context()
	res, err := h.Pull(ctx, &psv1.PullRequest{Tag: "w"})
	require.NoError(t, err)
	require.Equal(t, "one", string(res.GetParameters()))
	res, err = h.Pull(ctx, &psv1.PullRequest{Tag: "w", Have: 1})
	require.NoError(t, err)
	require.True(t, res.GetUnchanged())
	_, err = h.Pull(ctx, &psv1.PullRequest{Tag: "v"})
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	_, err = h.Store(ctx, &psv1.StoreRequest{})
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	tags, err := h.ListTags(ctx, nil)
	require.NoError(t, err)
	require.Len(t, tags.GetVersions(), 1)
	_, err = s.handle.Enlist(ctx, nil)
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
}

func TestClientsSeeVersionsInOrderWhileManyPush(t *testing.T) {
	mappedAndThroughCaptain(t, func(t *testing.T, c *Client) {
		const pushers, each = 4, 50
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var pushing, pulling sync.WaitGroup
		for range pushers {
			pushing.Go(func() {
				for range each {
					if _, err := c.Push(ctx, "w", make([]byte, 100), nil); !assert.NoError(t, err) {
						cancel()
					}
				}
			})
		}
		for range 2 {
			pulling.Go(func() {
				for last := uint64(0); last < pushers*each && ctx.Err() == nil; {
					id, err := c.ID(ctx, "w")
					require.NoError(t, err)
					require.GreaterOrEqual(t, id, last)
					if id == last {
						continue
					}
					p, err := c.Pull(ctx, "w")
					require.NoError(t, err)
					require.GreaterOrEqual(t, p.Version().GetId(), id)
					last = p.Version().GetId()
					require.NoError(t, p.Release())
				}
			})
		}
		pushing.Wait()
		pulling.Wait()
		require.NoError(t, ctx.Err())
	})
}

func TestCaptainMatchesModel(t *testing.T) {
	s := newServer(t, nil)
	clients := []*Client{s.client(""), s.client("remote without officer")}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		tag := fmt.Sprintf("tag %d", run)
		var newest uint64
		var content string
		rt.Repeat(map[string]func(*rapid.T){
			"push": func(rt *rapid.T) {
				version := rapid.Uint64Range(0, 30).Draw(rt, "version")
				bytes := rapid.StringN(0, 8, -1).Draw(rt, "parameters")
				v, err := rapid.SampledFrom(clients).Draw(rt, "client").PushVersion(t.Context(), tag, version, []byte(bytes), nil)
				if version != 0 && version <= newest {
					require.Equal(rt, connect.CodeAborted, connect.CodeOf(err))
					return
				}
				require.NoError(rt, err)
				if version == 0 {
					version = newest + 1
				}
				require.Equal(rt, version, v.GetId())
				newest, content = version, bytes
			},
			"": func(rt *rapid.T) {
				c := rapid.SampledFrom(clients).Draw(rt, "reader")
				id, err := c.ID(t.Context(), tag)
				require.NoError(rt, err)
				require.Equal(rt, newest, id)
				p, err := c.Pull(t.Context(), tag)
				if newest == 0 {
					require.ErrorIs(rt, err, ErrNoVersion)
					return
				}
				require.NoError(rt, err)
				require.Equal(rt, content, string(p.Bytes()))
				require.NoError(rt, p.Release())
			},
		})
	})
}

func BenchmarkIDMapped(b *testing.B) {
	s := newServer(b, nil)
	c := s.client("")
	_, err := c.Push(b.Context(), "w", []byte("x"), nil)
	require.NoError(b, err)
	for b.Loop() {
		if _, err := c.ID(b.Context(), "w"); err != nil {
			b.Fatal(err)
		}
	}
}
