package ps

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/services/ps/store"
)

// counted is an officer that counts what is fetched from it, by tag.
type counted struct {
	*officer

	mu      sync.Mutex // guards the fields below
	fetched map[string]int
	// held blocks fetches until it is closed; nil for none.
	held chan struct{}
}

// hold blocks fetches until release.
func (o *counted) hold() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held = make(chan struct{})
}

func (o *counted) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.held)
	o.held = nil
}

func (o *counted) Fetch(ctx context.Context, req *psv1.FetchRequest, stream psv1raylink.OfficerFetchServerStream) error {
	o.mu.Lock()
	held := o.held
	o.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return o.officer.Fetch(ctx, req, counting{stream, o})
}

type counting struct {
	psv1raylink.OfficerFetchServerStream

	o *counted
}

func (s counting) Send(res *psv1.FetchResponse) error {
	if v := res.GetVersion(); v != nil {
		s.o.mu.Lock()
		s.o.fetched[v.GetTag()]++
		s.o.mu.Unlock()
	}
	return s.OfficerFetchServerStream.Send(res)
}

// countHome has the officer of the captain's machine count.
func (s *system) countHome() *counted {
	m := s.machines[home]
	o := &counted{officer: m.officer, fetched: make(map[string]int)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[m.nid] = o
	return o
}

func (o *counted) of(tag string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fetched[tag]
}

// RLlib sent all policies where one had changed: https://github.com/ray-project/ray/issues/29973.
func TestOnlyTheChangedTagIsSent(t *testing.T) {
	s := newSystem(t, nil)
	o := s.countHome()
	s.enlist("other", nil)
	c := s.client(home)
	for i := range 20 {
		mustPush(t, c, "policy/"+strconv.Itoa(i), weights(i, 100_000), WaitFor(All))
	}
	for range 5 {
		mustPush(t, c, "policy/3", weights(99, 100_000), WaitFor(All))
	}
	for i := range 20 {
		want := 1
		if i == 3 {
			want = 6
		}
		require.Equal(t, want, o.of("policy/"+strconv.Itoa(i)), i)
	}
}

func TestEachMachineOfAChainSendsOnce(t *testing.T) {
	s := newSystem(t, nil)
	counts := map[string]*counted{home: s.countHome()}
	for _, name := range []string{"a", "b", "c", "d"} {
		s.enlist(name, func(x *officer) psv1raylink.OfficerNode {
			counts[name] = &counted{officer: x, fetched: make(map[string]int)}
			return counts[name]
		})
	}
	c := s.client(home)
	mustPush(t, c, "large", weights(1, defaultChainAbove+1), WaitFor(All))
	for name, o := range counts {
		want := 1
		if name == "d" {
			want = 0
		}
		require.Equal(t, want, o.of("large"), name)
	}
	mustPush(t, c, "small", weights(1, 1000), WaitFor(All))
	require.Equal(t, fanOut, counts[home].of("small"))
}

func TestOvertakenVersionsAreSkipped(t *testing.T) {
	s := newSystem(t, nil)
	o := s.countHome()
	o.hold()
	m := s.enlist("other", nil)
	c := s.client(home)
	for i := range 50 {
		mustPush(t, c, "w", weights(i, 3*store.ChunkSize))
	}
	require.Nil(t, m.officer.store.Newest("w"), "a slow officer delays no push")
	o.release()
	s.awaitEverywhere("w", 50)
	require.Less(t, o.of("w"), 50)
	s.eventually(func() bool { return m.officer.store.Usage().Drafts == 0 })
	requirePulled(t, s.client("other"), "w", weights(49, 3*store.ChunkSize), 50)
}

// An officer may fetch what its source is still receiving.
func TestUploadIsPassedOnAsItArrives(t *testing.T) {
	s := newSystem(t, nil, "a", "b")
	upload, err := s.handle.Upload(t.Context())
	require.NoError(t, err)
	parameters := weights(1, 4*store.ChunkSize)
	begin := &psv1.UploadBegin{Push: &psv1.PushRequest{Tag: "w", WaitFor: All}, Size: uint64(len(parameters))}
	require.NoError(t, upload.Send(&psv1.UploadRequest{Part: &psv1.UploadRequest_Begin{Begin: begin}}))
	for i := range 4 {
		data := parameters[i*store.ChunkSize : (i+1)*store.ChunkSize]
		require.NoError(t, upload.Send(&psv1.UploadRequest{Part: &psv1.UploadRequest_Chunk{
			Chunk: &psv1.Chunk{Index: uint32(i), Data: data, Checksum: store.Checksum(data)},
		}}))
		for _, name := range []string{"a", "b"} {
			s.eventually(func() bool { return s.machines[name].written() == i+1 })
		}
	}
	res, err := upload.CloseAndReceive()
	require.NoError(t, err)
	require.Equal(t, uint64(1), res.GetVersion().GetId())
	for _, name := range []string{"a", "b"} {
		require.Equal(t, uint64(1), s.machines[name].officer.store.Newest("w").GetId())
	}
}

// written is how many chunks of a draft the machine has.
func (m *machine) written() int {
	m.officer.mu.Lock()
	defer m.officer.mu.Unlock()
	for _, t := range m.officer.tags {
		for content := range t.fetches {
			if d := m.officer.store.Draft(content); d != nil {
				return d.Written()
			}
			return 0
		}
		for _, v := range t.state.GetComing() { // complete
			if d := m.officer.store.Draft(v.GetContent()); d != nil {
				return d.Written()
			}
		}
	}
	return 0
}

// damaging is an officer that damages the chunks that it sends.
type damaging struct{ *officer }

func (o damaging) Fetch(ctx context.Context, req *psv1.FetchRequest, stream psv1raylink.OfficerFetchServerStream) error {
	return o.officer.Fetch(ctx, req, damagingStream{stream})
}

type damagingStream struct {
	psv1raylink.OfficerFetchServerStream
}

func (s damagingStream) Send(res *psv1.FetchResponse) error {
	if data := res.GetChunk().GetData(); len(data) > 0 {
		data[len(data)/2] ^= 1 // a copy, since it is sent within this process
	}
	return s.OfficerFetchServerStream.Send(res)
}

func TestDamagedChunksAreFetchedFromAnotherSource(t *testing.T) {
	s := newSystem(t, nil)
	s.enlist("a", func(o *officer) psv1raylink.OfficerNode { return damaging{o} })
	s.enlist("b", nil)
	parameters := weights(1, defaultChainAbove+store.ChunkSize)
	mustPush(t, s.client(home), "w", parameters, WaitFor(All))
	requirePulled(t, s.client("b"), "w", parameters, 1)
}
