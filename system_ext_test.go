package raylink_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/storage"
)

func TestSystemHasAStorageAndAParameterServer(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	other := joined(t, rt)
	handle, err := storagev1raylink.FindStorage(ctx, other, runtime.Path("storage-0"))
	require.NoError(t, err)
	_, err = storage.Put(ctx, storage.New(handle), "episodes", int64(7))
	require.NoError(t, err)
	local, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	require.NoError(t, err)
	n, err := storage.Get[int64](ctx, storage.New(local), "episodes")
	require.NoError(t, err)
	assert.Equal(t, int64(7), n)

	captain, err := psv1raylink.FindCaptain(ctx, other, runtime.Path("ps-0"))
	require.NoError(t, err)
	client, err := ps.Open(ctx, captain)
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	assert.True(t, client.Mapped(), "on one machine parameters are read in place")
	_, err = client.Push(ctx, "policy", []byte("weights"))
	require.NoError(t, err)
	children, err := captain.Ref().Children(ctx)
	require.NoError(t, err)
	require.Len(t, children, 1)
	assert.Equal(t, "ps-0/officer-0", children[0].GetPath())
}

// A handle's Ref finds nodes, relative to its own node.
func TestRefFindsNodes(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	captain, err := psv1raylink.FindCaptain(ctx, joined(t, system(t)), runtime.Path("ps-0"))
	require.NoError(t, err)
	officer, err := psv1raylink.FindOfficer(ctx, captain.Ref(), runtime.Path("./officer-0"))
	require.NoError(t, err)
	again, err := psv1raylink.OfficerFrom(captain.Ref(), officer.Ref().NodeRef())
	require.NoError(t, err)
	assert.Equal(t, officer.Ref().NID(), again.Ref().NID())
	_, err = again.ListTags(ctx, nil)
	require.NoError(t, err)
}

// Streams without an end, such as a follower's, return when their node begins to stop.
func TestOpenStreamsDoNotDelayTheEndOfTheirNode(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	captain, err := psv1raylink.CreateCaptain(ctx, rt, nil)
	require.NoError(t, err)
	client, err := ps.Open(ctx, captain)
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	follower := client.Follow("policy")
	defer func() { require.NoError(t, follower.Close()) }()
	_, err = client.Push(ctx, "policy", []byte("weights"))
	require.NoError(t, err)
	<-follower.Changed()
	stream, err := captain.Watch(ctx, &psv1.WatchRequest{Tag: "policy"}) // the follower's may not be open yet
	require.NoError(t, err)
	defer stream.Close() //nolint:errcheck // it has ended
	_, err = stream.Receive()
	require.NoError(t, err)
	soon, cancel := context.WithTimeout(ctx, 5*time.Second) // less than open calls are waited for
	defer cancel()
	require.NoError(t, captain.Ref().Stop(soon), "an open stream delays the end")
	<-follower.Changed()
	require.ErrorIs(t, follower.Err(), ps.ErrEnded)
}

// TestStorageListsMessagesOfUnknownTypesAsJSON stores a message of a type that the storage's
// process does not know, as a program with a schema of its own may. It must not affect other
// entries over JSON.
func TestStorageListsMessagesOfUnknownTypesAsJSON(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	handle, err := storagev1raylink.FindStorage(ctx, joined(t, rt), runtime.Path("storage-0"))
	require.NoError(t, err)
	unknown := &anypb.Any{TypeUrl: "type.googleapis.com/elsewhere.Unknown", Value: []byte("\x0a\x05world")}
	for key, value := range map[string]*storagev1.Value{
		"a": {Kind: &storagev1.Value_Int64Value{Int64Value: 1}},
		"b": {Kind: &storagev1.Value_MessageValue{MessageValue: unknown}},
		"c": {Kind: &storagev1.Value_StringValue{StringValue: "last"}},
	} {
		_, err := handle.Put(ctx, &storagev1.PutRequest{Key: key, Value: value})
		require.NoError(t, err)
	}
	post := func(method, body string) string {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost,
			"http://"+rt.Address()+"/storage-0/raylink.storage.v1.Storage/"+method, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close() //nolint:errcheck // only read
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, res.StatusCode, "%s: %s", method, text)
		return string(text)
	}
	list := post("List", "{}")
	for _, part := range []string{`"a"`, `"b"`, `"last"`, unknown.GetTypeUrl(), "CgV3b3JsZA=="} {
		assert.Contains(t, list, part)
	}

	// A message that was read can be written back, and remains the same.
	var got struct {
		Value json.RawMessage `json:"value"`
	}
	require.NoError(t, json.Unmarshal([]byte(post("Get", `{"key": "b"}`)), &got))
	post("Put", `{"key": "d", "value": `+string(got.Value)+`}`)
	back, err := handle.Get(ctx, &storagev1.GetRequest{Key: "d"})
	require.NoError(t, err)
	assert.True(t, proto.Equal(unknown, back.GetValue().GetMessageValue()), "%v", back)
}

// secondMachine makes this test binary a process that joins a system as if from another machine:
// see TestMain.
const secondMachine = "RAYLINK_TEST_SECOND_MACHINE"

// useParameters opens a client of the parameter server, and keeps it until the process is killed.
func useParameters(ctx context.Context) error {
	captain, err := psv1raylink.FindCaptain(ctx, driver, runtime.Path("ps-0"))
	if err != nil {
		return err
	}
	if _, err := ps.Open(ctx, captain); err != nil {
		return err
	}
	select {}
}

// TestEachMachineHasOneOfficer has two processes on a simulated machine of their own, and kills the
// one that hosts its officer.
func TestEachMachineHasOneOfficer(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	captain, err := psv1raylink.FindCaptain(ctx, rt, runtime.Path("ps-0"))
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	hosts := shortDir(t)
	processes := make(map[int32]*exec.Cmd)
	for range 2 {
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), secondMachine+"=1", "RAYLINK_BRAIN="+rt.Address(), "RAYLINK_MACHINE=another", "RAYLINK_DATA="+t.TempDir(), "RAYLINK_RUNTIME_DIR="+hosts)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		processes[int32(cmd.Process.Pid)] = cmd
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	var home int32
	officer := func() bool {
		children, err := captain.Ref().Children(ctx)
		if err != nil || len(children) != 2 {
			return false
		}
		pid := children[1].GetHost().GetPid()
		if pid == home || pid == 0 {
			return false
		}
		home = pid
		return true
	}
	require.Eventually(t, officer, patience, 10*time.Millisecond, "the other machine got no officer")
	require.Contains(t, processes, home)
	files := func() *psv1.DirectoryResponse {
		found, err := captain.Locate(ctx, &psv1.LocateRequest{Machine: "another"})
		require.NoError(t, err)
		return found.GetDirectory()
	}
	require.Eventually(t, func() bool { return files() != nil }, patience, 10*time.Millisecond, "the officer has not enlisted")
	before := files()
	require.NoError(t, processes[home].Process.Kill())
	require.Eventually(t, officer, patience, 10*time.Millisecond, "no other process took over")
	require.Contains(t, processes, home)
	require.Eventually(t, func() bool { return files() != nil && files().GetNonce() != before.GetNonce() }, patience, 10*time.Millisecond)
	require.Equal(t, before.GetDirectory(), files().GetDirectory(), "the files of the dead process are taken over")
	require.NoError(t, processes[home].Process.Kill())
	require.Eventually(t, func() bool {
		found, err := captain.Locate(ctx, &psv1.LocateRequest{Machine: "another"})
		return err == nil && found.GetOfficer() == nil
	}, patience, 10*time.Millisecond, "the captain still has a session with an officer that has ended")
}
