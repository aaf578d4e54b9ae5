package ps

import (
	"context"
	"errors"
	"fmt"
	"math"
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
	"pgregory.net/rapid"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps/store"
)

// onEachMachine runs a test with clients on the captain's machine, on another one with an officer,
// and on one without.
func onEachMachine(t *testing.T, config *psv1.CaptainConfig, test func(t *testing.T, s *system, c *Client)) {
	t.Helper()
	for _, on := range []string{home, "other", "none"} {
		t.Run("machine "+on, func(t *testing.T) {
			s := newSystem(t, config, "other")
			c := s.client(on)
			require.Equal(t, on != "none", c.Mapped())
			test(t, s, c)
		})
	}
}

// sizes are of one message, of one chunk, and of several.
var sizes = []int{0, 1, inlineLimit, inlineLimit + 1, store.ChunkSize, store.ChunkSize + 1, 5*store.ChunkSize + 17}

func TestPushedParametersArePulled(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, s *system, c *Client) {
		_, err := c.Pull(t.Context(), "w")
		require.ErrorIs(t, err, ErrNoVersion)
		id, err := c.ID(t.Context(), "w")
		require.NoError(t, err)
		require.Zero(t, id)
		for i, size := range sizes {
			want := uint64(i + 1)
			require.Equal(t, want, mustPush(t, c, "w", weights(i, size), Info("size", strconv.Itoa(size))))
			// The pusher reads its own write at once.
			id, err := c.ID(t.Context(), "w")
			require.NoError(t, err)
			require.GreaterOrEqual(t, id, want-1)
			requirePulled(t, c, "w", weights(i, size), want)
			requirePulled(t, c, "w", weights(i, size), want)
			s.awaitEverywhere("w", want)
			for _, other := range []string{home, "other", "none"} {
				requirePulled(t, s.client(other), "w", weights(i, size), want)
			}
		}
		require.Equal(t, uint64(1), mustPush(t, c, "v/a b", []byte("other")))
		tags, err := c.Tags(t.Context())
		require.NoError(t, err)
		require.Len(t, tags, 2)
		require.Equal(t, "v/a b", tags[0].GetTag())
		meta, err := c.Meta(t.Context(), "w")
		require.NoError(t, err)
		require.Equal(t, map[string]string{"size": strconv.Itoa(sizes[len(sizes)-1])}, meta.GetInfo())
		_, err = c.Meta(t.Context(), "x")
		require.ErrorIs(t, err, ErrNoVersion)
		require.ErrorContains(t, err, `"w"`, "the error says what exists")

		require.NoError(t, c.Close())
		_, err = c.Pull(t.Context(), "w")
		require.ErrorIs(t, err, ErrClosed)
		_, err = c.ID(t.Context(), "w")
		require.ErrorIs(t, err, ErrClosed)
		_, err = c.Push(t.Context(), "w", nil)
		require.ErrorIs(t, err, ErrClosed)
	})
}

func TestPullIfNewerTransfersNothingWithoutNews(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, _ *system, c *Client) {
		_, _, err := c.PullIfNewer(t.Context(), "w", 0)
		require.ErrorIs(t, err, ErrNoVersion)
		mustPush(t, c, "w", weights(1, 1000))
		p, newer, err := c.PullIfNewer(t.Context(), "w", 0)
		require.NoError(t, err)
		require.True(t, newer)
		require.NoError(t, p.Release())
		p, newer, err = c.PullIfNewer(t.Context(), "w", 1)
		require.NoError(t, err)
		require.False(t, newer)
		require.Nil(t, p)
	})
}

func TestLatePushNeverReplacesNewerVersion(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, _ *system, c *Client) {
		for _, size := range []int{10, inlineLimit + 1} {
			tag := strconv.Itoa(size)
			require.Equal(t, uint64(10), mustPush(t, c, tag, weights(10, size), At(10)))
			for _, late := range []uint64{10, 9, 1} {
				_, err := c.Push(t.Context(), tag, weights(0, size), At(late))
				require.Equal(t, connect.CodeAborted, connect.CodeOf(err), "%v", err)
				require.ErrorContains(t, err, "10")
			}
			requirePulled(t, c, tag, weights(10, size), 10)
			require.Equal(t, uint64(11), mustPush(t, c, tag, weights(11, size)))
			requirePulled(t, c, tag, weights(11, size), 11)
		}
	})
}

func TestSlowReaderKeepsItsVersion(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, _ *system, c *Client) {
		want := weights(0, inlineLimit+100)
		mustPush(t, c, "w", want)
		p, err := c.Pull(t.Context(), "w")
		require.NoError(t, err)
		for i := range 20 {
			mustPush(t, c, "w", weights(i+1, inlineLimit+100))
			requirePulled(t, c, "w", weights(i+1, inlineLimit+100), uint64(i+2))
		}
		require.Equal(t, store.Checksum(want), store.Checksum(p.Bytes()))
		require.NoError(t, p.Release())
	})
}

func TestPusherMayModifyItsParameters(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, _ *system, c *Client) {
		for i, size := range sizes {
			mine := weights(i, size)
			mustPush(t, c, "w", mine)
			clear(mine)
			requirePulled(t, c, "w", weights(i, size), uint64(i+1))
		}
	})
}

func TestInvalidPushesChangeNothing(t *testing.T) {
	config := &psv1.CaptainConfig{MaxBytes: 100_000, MaxTotalBytes: 257_000, MaxTags: 2}
	onEachMachine(t, config, func(t *testing.T, _ *system, c *Client) {
		mustPush(t, c, "w", weights(1, 90_000))
		mustPush(t, c, "x", weights(1, 60_000))
		for name, push := range map[string]struct {
			tag  string
			size int
			info string
			code connect.Code
			says string
		}{
			"no tag":     {"", 1, "", connect.CodeInvalidArgument, "tag"},
			"bad tag":    {"a\nb", 1, "", connect.CodeInvalidArgument, "tag"},
			"too large":  {"w", 100_001, "", connect.CodeResourceExhausted, "100000"},
			"too much":   {"x", 100_000, "", connect.CodeResourceExhausted, `"w"`},
			"large info": {"w", 1, string(make([]byte, store.MaxDescription)), connect.CodeInvalidArgument, ""},
		} {
			_, err := c.Push(t.Context(), push.tag, make([]byte, push.size), Info("x", push.info))
			require.Equal(t, push.code, connect.CodeOf(err), "%s: %v", name, err)
			require.ErrorContains(t, err, push.says, name)
		}
		_, err := c.Push(t.Context(), "w", nil, At(math.MaxUint64))
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
		requirePulled(t, c, "w", weights(1, 90_000), 1)
		requirePulled(t, c, "x", weights(1, 60_000), 1)
		_, err = c.Push(t.Context(), "u", []byte("one tag too many"))
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err), "%v", err)
		require.Equal(t, uint64(2), mustPush(t, c, "w", weights(2, 90_000)))
		requirePulled(t, c, "w", weights(2, 90_000), 2)
	})
}

func TestWaitForAll(t *testing.T) {
	s := newSystem(t, nil, "a", "b")
	c := s.client(home)
	for i := range 10 {
		id := mustPush(t, c, "w", weights(i, 2*store.ChunkSize), WaitFor(All))
		for name, m := range s.machines {
			require.Equal(t, id, m.officer.store.Newest("w").GetId(), name)
		}
	}
}

// stalled is an officer that sends nothing, and fetches nothing, until it continues.
type stalled struct {
	*officer

	continues chan struct{}
	asked     atomic.Int64
}

func (o *stalled) Fetch(ctx context.Context, req *psv1.FetchRequest, stream psv1raylink.OfficerFetchServerStream) error {
	o.asked.Add(1)
	select {
	case <-o.continues:
	case <-ctx.Done():
		return ctx.Err()
	}
	return o.officer.Fetch(ctx, req, stream)
}

func TestStalledOfficerIsBypassed(t *testing.T) {
	s := newSystem(t, nil, "a")
	o := &stalled{continues: make(chan struct{})}
	s.enlist("b", func(x *officer) psv1raylink.OfficerNode { o.officer = x; return o })
	s.enlist("c", nil)
	s.enlist("d", nil)
	c := s.client(home)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := c.Push(ctx, "w", weights(1, defaultChainAbove+store.ChunkSize), WaitFor(All))
	close(o.continues)
	require.NoError(t, err)
	require.Equal(t, int64(1), o.asked.Load(), "only its neighbor asked it")
}

func TestLackingMachinesAreNamed(t *testing.T) {
	s := newSystem(t, nil, "a")
	// Machine b fetches from machine x, which is not there, so that it never gets anything.
	lost := s.enlist("b", nil)
	lost.officer.mu.Lock()
	lost.officer.find = func(*nodev1.NodeRef) (*psv1raylink.Officer, error) { return nil, errors.New("unreachable") }
	lost.officer.mu.Unlock()
	c := s.client(home)
	for _, size := range []int{10, 2 * store.ChunkSize} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		v, err := c.Push(ctx, "w", weights(1, size), WaitFor(All))
		cancel()
		var lacking *LackingError
		require.ErrorAs(t, err, &lacking)
		require.Equal(t, []string{"b"}, lacking.Machines)
		require.ErrorContains(t, err, ": b")
		require.NotNil(t, v, "the version was pushed")
		requirePulled(t, c, "w", weights(1, size), v.GetId())
		mustPush(t, c, "w", weights(2, size), WaitFor(Quorum))
	}
}

func TestCaptainsNextIncarnationForgetsNothing(t *testing.T) {
	s := newSystem(t, nil, "other")
	c := s.client(home)
	mustPush(t, c, "w", weights(1, 300_000))
	require.Equal(t, uint64(2), mustPush(t, c, "w", weights(2, 300_000), WaitFor(All)))
	mustPush(t, c, "v", []byte("small"))
	require.NoError(t, c.Delete(t.Context(), "v"))
	reader := s.client("other")
	requirePulled(t, reader, "w", weights(2, 300_000), 2)

	s.kill(home)
	// Readers go on while the captain is away.
	for _, c := range []*Client{c, reader} {
		id, err := c.ID(t.Context(), "w")
		require.NoError(t, err)
		require.Equal(t, uint64(2), id)
		requirePulled(t, c, "w", weights(2, 300_000), 2)
	}
	s.start()
	c2 := s.client(home)
	requirePulled(t, c2, "w", weights(2, 300_000), 2)
	require.Equal(t, uint64(3), mustPush(t, c2, "w", weights(3, 300_000)))
	require.Equal(t, uint64(2), mustPush(t, c2, "v", []byte("again")), "ids go on after Delete")
}

func TestNewestVersionOfAnyOfficerWins(t *testing.T) {
	s := newSystem(t, nil, "other")
	c := s.client(home)
	mustPush(t, c, "w", weights(1, 700_000))
	mustPush(t, c, "w", weights(2, 700_000), WaitFor(All))
	s.stop(home) // the captain's machine loses its files
	s.start()
	s.machines["other"].end()
	s.machines["other"].done.Wait()
	s.connect(s.machines["other"])
	s.eventually(func() bool { return s.captain.newest("w").GetId() == 2 })
	c2 := s.client(home)
	requirePulled(t, c2, "w", weights(2, 700_000), 2)
	require.Equal(t, uint64(3), mustPush(t, c2, "w", weights(3, 10)))
}

// The captain's machine loses its files, learns the last id of a deleted tag from an officer, and
// starts again without that officer.
func TestLastIDOfDeletedTagIsKept(t *testing.T) {
	s := newSystem(t, nil, "other")
	c := s.client(home)
	mustPush(t, c, "w", []byte("one"))
	mustPush(t, c, "w", []byte("two"), WaitFor(All))
	require.NoError(t, c.Delete(t.Context(), "w"))
	s.eventually(func() bool { return s.machines["other"].officer.store.Floors()["w"] == 2 })
	s.stop(home)
	s.start()
	s.machines["other"].end()
	s.machines["other"].done.Wait()
	s.connect(s.machines["other"])
	s.eventually(func() bool {
		s.captain.mu.Lock()
		defer s.captain.mu.Unlock()
		return s.captain.tags["w"] != nil && s.captain.tags["w"].last == 2
	})
	s.kill("other")
	s.kill(home)
	s.start()
	require.Equal(t, uint64(3), mustPush(t, s.client(home), "w", []byte("three")))
}

func TestOfficerThatComesBackCatchesUp(t *testing.T) {
	s := newSystem(t, nil, "a", "b")
	c := s.client(home)
	mustPush(t, c, "w", weights(1, 600_000), WaitFor(All))
	reader := s.client("b")
	held, err := reader.Pull(t.Context(), "w")
	require.NoError(t, err)
	s.kill("b")
	for i := range 5 {
		mustPush(t, c, "w", weights(i, 600_000))
	}
	requirePulled(t, reader, "w", weights(1, 600_000), 1)
	s.enlist("b", nil)
	s.awaitEverywhere("w", 6)
	require.Equal(t, store.Checksum(weights(1, 600_000)), store.Checksum(held.Bytes()))
	require.NoError(t, held.Release())
	requirePulled(t, reader, "w", weights(4, 600_000), 6)
}

// A client reads its own write although its machine's officer does not have it yet.
func TestReaderOfAnotherMachineReadsItsOwnWrite(t *testing.T) {
	s := newSystem(t, nil)
	o := s.countHome()
	s.enlist("other", nil)
	c := s.client("other")
	mustPush(t, s.client(home), "w", []byte("one"), WaitFor(All))
	requirePulled(t, c, "w", []byte("one"), 1)
	o.hold()
	defer o.release()
	mustPush(t, c, "w", []byte("two"))
	id, err := c.ID(t.Context(), "w")
	require.NoError(t, err)
	require.Equal(t, uint64(2), id)
	requirePulled(t, c, "w", []byte("two"), 2)
	require.Equal(t, uint64(1), s.machines["other"].officer.store.Newest("w").GetId(), "the captain has served the pull")
}

func TestFailedPublicationIsSeenNowhere(t *testing.T) {
	s := newSystem(t, nil, "other")
	c := s.client(home)
	mustPush(t, c, "w", []byte("one"), WaitFor(All))
	// The store refuses to publish a version that it has already.
	d, err := s.captain.reserve(&psv1.Version{Tag: "w", Size: 3, Content: "content"}, 0)
	require.NoError(t, err)
	require.NoError(t, d.WriteChunk(0, []byte("two"), store.Checksum([]byte("two"))))
	s.captain.mu.Lock()
	s.captain.tags["w"].last = 0
	s.captain.mu.Unlock()
	_, err = s.captain.commit(t.Context(), d, &psv1.PushRequest{Tag: "w"})
	require.Equal(t, connect.CodeAborted, connect.CodeOf(err), "%v", err)
	meta, err := c.Meta(t.Context(), "w")
	require.NoError(t, err)
	require.Equal(t, store.Checksum([]byte("one")), meta.GetChecksum())
}

// A pusher repeats a push whose response was lost.
func TestRepeatedPushBecomesOneVersion(t *testing.T) {
	s := newSystem(t, nil)
	req := &psv1.PushRequest{Tag: "w", Content: "content", Parameters: []byte("one")}
	for range 3 {
		res, err := s.handle.Push(t.Context(), req)
		require.NoError(t, err)
		require.Equal(t, uint64(1), res.GetVersion().GetId())
	}
	require.Equal(t, uint64(2), mustPush(t, s.client(home), "w", []byte("two")))
}

func TestDeletionIsSeenByOfficersThatSkippedTheVersion(t *testing.T) {
	s := newSystem(t, nil)
	o := s.countHome()
	o.hold()
	defer o.release()
	s.enlist("other", nil)
	c := s.client("other")
	require.Equal(t, uint64(1), mustPush(t, c, "w", []byte("one")))
	require.NoError(t, c.Delete(t.Context(), "w"))
	s.eventually(func() bool {
		id, err := c.ID(t.Context(), "w")
		return err == nil && id == 0
	})
}

func TestDuplicateAndDelete(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, s *system, c *Client) {
		require.NoError(t, errorsOf(c.Push(t.Context(), "policy", weights(1, 400_000), Info("step", "7"))))
		require.NoError(t, c.Duplicate(t.Context(), "policy", "policy/best"))
		requirePulled(t, c, "policy/best", weights(1, 400_000), 1)
		mustPush(t, c, "policy", weights(2, 400_000))
		requirePulled(t, c, "policy/best", weights(1, 400_000), 1)
		meta, err := c.Meta(t.Context(), "policy/best")
		require.NoError(t, err)
		require.Equal(t, "7", meta.GetInfo()["step"])

		held, err := c.Pull(t.Context(), "policy")
		require.NoError(t, err)
		require.NoError(t, c.Delete(t.Context(), "policy"))
		require.Equal(t, store.Checksum(weights(2, 400_000)), store.Checksum(held.Bytes()))
		require.NoError(t, held.Release())
		s.eventually(func() bool {
			id, err := c.ID(t.Context(), "policy")
			return err == nil && id == 0
		})
		require.ErrorIs(t, c.Delete(t.Context(), "policy"), ErrNoVersion)
		require.ErrorIs(t, c.Duplicate(t.Context(), "policy", "x"), ErrNoVersion)
		require.Equal(t, uint64(3), mustPush(t, c, "policy", weights(3, 400_000)), "ids go on")
		requirePulled(t, c, "policy", weights(3, 400_000), 3)
	})
}

func errorsOf[T any](_ T, err error) error { return err }

func TestFollowerSwapsInEachVersion(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, s *system, c *Client) {
		f := c.Follow("w")
		defer func() { require.NoError(t, f.Close()) }()
		require.Nil(t, f.Current())
		pusher := s.client(home)
		for i := range 5 {
			id := mustPush(t, pusher, "w", weights(i, 500_000))
			for p := (*Parameters)(nil); p == nil; {
				select {
				case <-f.Changed():
				case <-time.After(10 * time.Second):
					t.Fatal("the follower did not change")
				}
				if p = f.Current(); p.Version().GetId() < id {
					require.NoError(t, p.Release())
					p = nil
					continue
				}
				require.Equal(t, store.Checksum(weights(i, 500_000)), store.Checksum(p.Bytes()))
				require.NoError(t, p.Release())
			}
		}
		s.eventually(func() bool { lag, age := f.Staleness(); return lag == 0 && age < 2*time.Second })
		require.NoError(t, f.Err())
	})
}

func TestStalenessGrowsWhileTheCaptainIsAway(t *testing.T) {
	for _, on := range []string{home, "other"} {
		s := newSystem(t, nil, "other")
		c := s.client(on)
		mustPush(t, s.client(home), "w", weights(1, 10), WaitFor(All))
		f := c.Follow("w")
		<-f.Changed()
		s.kill(home)
		_, before := f.Staleness()
		s.eventually(func() bool { _, age := f.Staleness(); return age > before+200*time.Millisecond })
		p := f.Current()
		require.Equal(t, uint64(1), p.Version().GetId())
		require.NoError(t, p.Release())
		require.NoError(t, f.Close())
	}
}

func TestFilesWithWrongNonceAreNotMapped(t *testing.T) {
	s := newSystem(t, nil, "other")
	path := filepath.Join(s.machines["other"].officer.store.Directory(), nonceFile)
	require.NoError(t, os.WriteFile(path, []byte(newToken()), 0o600))
	require.False(t, s.client("other").Mapped())
}

func TestOfficersAreAsManyAsConfigured(t *testing.T) {
	s := newSystem(t, &psv1.CaptainConfig{MaxOfficers: 1}, "a")
	m := s.open("b")
	s.register(m)
	err := m.officer.session(t.Context(), s.handle, &nodev1.NodeRef{Nid: m.nid})
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "max_officers")
	officers, err := s.client(home).Officers(t.Context())
	require.NoError(t, err)
	require.Len(t, officers, 2)
	require.True(t, officers[0].GetHome())
}

func TestPusherThatDiesLeavesNothing(t *testing.T) {
	s := newSystem(t, nil, "other")
	for _, name := range []string{home, "other"} {
		o := s.machines[name].officer
		ctx, die := context.WithCancel(t.Context())
		stream, err := psv1raylink.NewLocalOfficer(o).Lend(ctx)
		require.NoError(t, err)
		require.NoError(t, stream.Send(&psv1.LendRequest{Part: &psv1.LendRequest_Reserve{Reserve: &psv1.Version{Tag: "w", Size: 1 << 20}}}))
		lent, err := stream.Receive()
		require.NoError(t, err)
		require.FileExists(t, lent.GetPath())
		die()
		s.eventually(func() bool { _, err := os.Stat(lent.GetPath()); return errors.Is(err, os.ErrNotExist) })
		_ = stream.Close()
	}
	ctx, die := context.WithCancel(t.Context())
	upload, err := s.handle.Upload(ctx)
	require.NoError(t, err)
	begin := &psv1.UploadBegin{Push: &psv1.PushRequest{Tag: "w"}, Size: 1 << 20}
	require.NoError(t, upload.Send(&psv1.UploadRequest{Part: &psv1.UploadRequest_Begin{Begin: begin}}))
	s.eventually(func() bool { return s.machines["other"].officer.store.Usage().Drafts == 1 })
	die()
	_ = upload.Close()
	for _, name := range []string{home, "other"} {
		s.eventually(func() bool { return s.machines[name].officer.store.Usage().Drafts == 0 })
	}
	mustPush(t, s.client("other"), "w", weights(1, 1<<20), WaitFor(All))
}

func TestClientsSeeVersionsInOrderWhileManyPush(t *testing.T) {
	onEachMachine(t, nil, func(t *testing.T, s *system, c *Client) {
		const pushers, each = 4, 30
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var pushing, pulling sync.WaitGroup
		for i := range pushers {
			pusher := s.client([]string{home, "other", "none"}[i%3])
			pushing.Go(func() {
				for k := range each {
					if _, err := pusher.Push(ctx, "w", make([]byte, 100_000*(k%2))); !assert.NoError(t, err) {
						cancel()
					}
				}
			})
		}
		for range 2 {
			pulling.Go(func() {
				for last := uint64(0); last < pushers*each && ctx.Err() == nil; {
					id, err := c.ID(ctx, "w")
					if err != nil || id < last {
						assert.Fail(t, "wrong id", "%d after %d: %v", id, last, err)
						cancel()
						return
					}
					if id == last {
						time.Sleep(time.Millisecond) //nolint:forbidigo // the loop of a user
						continue
					}
					p, err := c.Pull(ctx, "w")
					if err != nil || p.Version().GetId() < id {
						assert.Fail(t, "wrong version", "%v after id %d: %v", p, id, err)
						cancel()
						return
					}
					last = p.Version().GetId()
					assert.NoError(t, p.Release())
				}
			})
		}
		pushing.Wait()
		pulling.Wait()
		require.NoError(t, ctx.Err())
	})
}

func TestCaptainMatchesModel(t *testing.T) {
	s := newSystem(t, nil, "other")
	on := []string{home, "other", "none"}
	clients := map[string]*Client{home: s.client(home), "other": s.client("other"), "none": s.client("none")}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		tag := fmt.Sprintf("tag %d", run%100)
		last := s.captain.lastOf(tag)
		if s.captain.newest(tag) != nil {
			require.NoError(rt, clients[home].Delete(t.Context(), tag))
		}
		var newest uint64
		var content []byte
		rt.Repeat(map[string]func(*rapid.T){
			"push": func(rt *rapid.T) {
				var opts []PushOption
				version := uint64(0)
				if rapid.Bool().Draw(rt, "own number") {
					version = last + rapid.Uint64Range(0, 3).Draw(rt, "ahead")
					opts = append(opts, At(version))
				}
				bytes := weights(rapid.Int().Draw(rt, "seed"), rapid.SampledFrom(sizes).Draw(rt, "size"))
				v, err := clients[rapid.SampledFrom(on).Draw(rt, "client")].Push(t.Context(), tag, bytes, opts...)
				if version != 0 && version <= last {
					require.Equal(rt, connect.CodeAborted, connect.CodeOf(err))
					return
				}
				require.NoError(rt, err)
				if version == 0 {
					version = last + 1
				}
				require.Equal(rt, version, v.GetId())
				newest, last, content = version, version, bytes
			},
			"delete": func(rt *rapid.T) {
				err := clients[rapid.SampledFrom(on).Draw(rt, "client")].Delete(t.Context(), tag)
				if newest == 0 {
					require.ErrorIs(rt, err, ErrNoVersion)
					return
				}
				require.NoError(rt, err)
				newest = 0
			},
			"": func(rt *rapid.T) {
				c := clients[rapid.SampledFrom(on).Draw(rt, "reader")]
				var id uint64
				for deadline := time.Now().Add(10 * time.Second); ; {
					var err error
					id, err = c.ID(t.Context(), tag)
					require.NoError(rt, err)
					if id == newest {
						break
					}
					require.True(rt, time.Now().Before(deadline), "the reader on machine %s has version %d instead of %d", c.machine, id, newest)
				}
				p, err := c.Pull(t.Context(), tag)
				if newest == 0 {
					require.ErrorIs(rt, err, ErrNoVersion)
					return
				}
				require.NoError(rt, err)
				require.Equal(rt, store.Checksum(content), store.Checksum(p.Bytes()))
				require.NoError(rt, p.Release())
			},
		})
	})
}

func BenchmarkIDMapped(b *testing.B) {
	s := newSystem(b, nil)
	c := s.client(home)
	_, err := c.Push(b.Context(), "w", []byte("x"))
	require.NoError(b, err)
	for b.Loop() {
		if _, err := c.ID(b.Context(), "w"); err != nil {
			b.Fatal(err)
		}
	}
}
