package ps

import (
	"encoding/binary"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/store"
)

// feed is a stream whose messages come from a peer that sends anything. What it is sent is dropped.
type feed[In proto.Message, Out any] struct {
	messages [][]byte
	empty    func() In
}

func (s *feed[In, Out]) Receive() (In, error) {
	m := s.empty()
	if len(s.messages) == 0 {
		return m, io.EOF
	}
	err := proto.Unmarshal(s.messages[0], m)
	s.messages = s.messages[1:]
	return m, err
}

func (s *feed[In, Out]) Send(Out) error { return nil }

// split returns the messages in fuzzed bytes, each preceded by its size.
func split(b []byte) [][]byte {
	var all [][]byte
	for len(b) > 0 {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			break
		}
		all = append(all, b[n:n+int(size)])
		b = b[n+int(size):]
	}
	return all
}

// seed is the inverse of split.
func seed(messages ...proto.Message) []byte {
	var all []byte
	for _, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		all = append(binary.AppendUvarint(all, uint64(len(b))), b...)
	}
	return all
}

func seedChunk(i int, data []byte) *psv1.Chunk {
	return &psv1.Chunk{Index: uint32(i), Data: data, Checksum: store.Checksum(data)}
}

// requireIntact checks that the tag "kept" is as it was, and that nothing is left over.
func (s *system) requireIntact() {
	s.t.Helper()
	requirePulled(s.t, s.client(home), "kept", []byte("kept"), 1)
	require.Zero(s.t, s.machines[home].officer.store.Usage().Drafts)
}

func FuzzUpload(f *testing.F) {
	data := weights(1, 1000)
	begin := &psv1.UploadRequest{Part: &psv1.UploadRequest_Begin{Begin: &psv1.UploadBegin{Push: &psv1.PushRequest{Tag: "w"}, Size: 1000}}}
	chunk := &psv1.UploadRequest{Part: &psv1.UploadRequest_Chunk{Chunk: seedChunk(0, data)}}
	f.Add(seed(begin, chunk))
	f.Add(seed(begin, chunk, chunk))
	f.Add(seed(begin))
	f.Add(seed(chunk))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSystem(t, &psv1.CaptainConfig{MaxBytes: 1 << 20})
		mustPush(t, s.client(home), "kept", []byte("kept"))
		stream := &feed[*psv1.UploadRequest, any]{messages: split(b), empty: func() *psv1.UploadRequest { return &psv1.UploadRequest{} }}
		res, err := s.captain.Upload(t.Context(), stream)
		if err == nil {
			v := res.GetVersion()
			p, err := s.client(home).Pull(t.Context(), v.GetTag())
			require.NoError(t, err)
			require.Equal(t, v.GetChecksum(), store.Checksum(p.Bytes()))
			require.NoError(t, p.Release())
		}
		if res.GetVersion().GetTag() != "kept" {
			s.requireIntact()
		}
	})
}

func FuzzEnlist(f *testing.F) {
	hello := &psv1.Hello{
		Machine: "m", Officer: &nodev1.NodeRef{Nid: "n"}, Directory: &psv1.DirectoryResponse{Directory: "d"},
		Versions: []*psv1.Version{{Tag: "w", Id: 3, Size: 10, Content: "c"}}, Deleted: map[string]uint64{"v": 4},
	}
	f.Add(seed(&psv1.EnlistRequest{Hello: hello}, &psv1.EnlistRequest{Stored: &psv1.Version{Tag: "w", Id: 4}}))
	f.Add(seed(&psv1.EnlistRequest{}))
	hello.Versions = nil
	f.Add(seed(&psv1.EnlistRequest{Hello: hello}, &psv1.EnlistRequest{Stored: &psv1.Version{Tag: "w", Id: 4}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSystem(t, &psv1.CaptainConfig{MaxBytes: 1 << 20})
		mustPush(t, s.client(home), "kept", []byte("kept"))
		stream := &feed[*psv1.EnlistRequest, *psv1.EnlistResponse]{messages: split(b), empty: func() *psv1.EnlistRequest { return &psv1.EnlistRequest{} }}
		_ = s.captain.Enlist(t.Context(), stream)
		s.requireIntact()
		require.Empty(t, s.captain.sessions)
		for tag, record := range s.captain.tags {
			require.GreaterOrEqual(t, record.last, record.newest.GetId(), tag)
		}
	})
}

func FuzzStates(f *testing.F) {
	v := &psv1.Version{Tag: "w", Id: 3, Size: 10, Content: "c"}
	f.Add(seed(&psv1.EnlistResponse{State: &psv1.TagState{Tag: "w", Newest: v, Last: 3, Sources: []*nodev1.NodeRef{{Nid: "n"}, nil}}}, &psv1.EnlistResponse{}))
	f.Add(seed(&psv1.EnlistResponse{State: &psv1.TagState{Tag: "w", Coming: []*psv1.Version{v}}}, &psv1.EnlistResponse{State: &psv1.TagState{Tag: "w"}}))
	f.Add(seed(&psv1.EnlistResponse{State: &psv1.TagState{Tag: "a\nb", Last: 1 << 63}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSystem(t, &psv1.CaptainConfig{MaxBytes: 1 << 20}, "other")
		m := s.machines["other"]
		mustPush(t, s.client(home), "kept", []byte("kept"), WaitFor(All))
		for _, b := range split(b) {
			res := &psv1.EnlistResponse{}
			if proto.Unmarshal(b, res) == nil && res.GetState() != nil && res.GetState().GetTag() != "kept" {
				m.officer.apply(res.GetState())
			}
		}
		requirePulled(t, s.client("other"), "kept", []byte("kept"), 1)
	})
}

func FuzzFetchedParameters(f *testing.F) {
	data := weights(1, 1000)
	v := &psv1.FetchResponse{Part: &psv1.FetchResponse_Version{Version: &psv1.Version{Tag: "w", Id: 2, Size: 1000, Checksum: store.Checksum(data)}}}
	chunk := &psv1.FetchResponse{Part: &psv1.FetchResponse_Chunk{Chunk: seedChunk(0, data)}}
	f.Add(seed(v, chunk))
	f.Add(seed(v, &psv1.FetchResponse{}, chunk, chunk))
	f.Add(seed(chunk))
	f.Add(seed(&psv1.FetchResponse{Part: &psv1.FetchResponse_Version{Version: &psv1.Version{Size: 1 << 62}}}, chunk))
	f.Fuzz(func(t *testing.T, b []byte) {
		stream := &feed[*psv1.FetchResponse, any]{messages: split(b), empty: func() *psv1.FetchResponse { return &psv1.FetchResponse{} }}
		have := &fetched{version: &psv1.Version{Tag: "w", Id: 1}, bytes: []byte("one")}
		got, err := receiveVersion("w", stream.Receive, have)
		if err == nil {
			require.Len(t, got.bytes, int(got.version.GetSize()))
		}
	})
}
