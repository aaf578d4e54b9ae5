package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

// damageLogs overwrites a part of each file of a storage that has its writes. The returned function
// restores the directory from a copy.
func damageLogs(t *testing.T, directory string) (restore func()) {
	t.Helper()
	saved := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(saved, os.DirFS(directory)))
	files, err := filepath.Glob(filepath.Join(directory, "*"))
	require.NoError(t, err)
	damaged := 0
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		if ext := filepath.Ext(file); ext != ".log" && ext != ".sst" || len(content) == 0 {
			continue
		}
		clear(content[len(content)/4 : len(content)/2])
		require.NoError(t, os.WriteFile(file, content, 0o600))
		damaged++
	}
	require.Positive(t, damaged, "%v", files)
	return func() {
		require.NoError(t, os.RemoveAll(directory))
		require.NoError(t, os.CopyFS(directory, os.DirFS(saved)))
	}
}

// TestDamagedStorage damages the data of storage-0 while its process is dead: first below a running
// Brain, then before Brain starts.
func TestDamagedStorage(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	ctx := patient(t)
	rt := member(t, b)
	store, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	require.NoError(t, err)
	kv := storage.New(store)
	for i := range 200 {
		_, err := storage.Put(ctx, kv, fmt.Sprint("key/", i), strings.Repeat("x", 100), storage.Sync())
		require.NoError(t, err)
	}
	status, err := store.Status(ctx, nil)
	require.NoError(t, err)
	directory := status.GetDirectory()
	pid := store.Ref().Record().GetHost().GetPid()

	// Brain is stopped, so that it does not start the node again before its data are damaged.
	require.NoError(t, b.Process.Signal(syscall.SIGSTOP))
	require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
	gone(t, pid)
	restore := damageLogs(t, directory)
	require.NoError(t, b.Process.Signal(syscall.SIGCONT))
	what := "the data in the directory " + directory + " are damaged"
	require.Eventually(t, func() bool {
		rec := b.records(t)["storage-0"]
		return rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD && strings.Contains(rec.GetCause(), what)
	}, patience, 10*time.Millisecond, "the node's state does not say what is damaged")
	require.Eventually(t, func() bool { // also between two attempts
		_, stderr, exit := b.raylink(t, "storage", "get", "key/0")
		return exit != 0 && strings.Contains(stderr, what)
	}, patience, 10*time.Millisecond, "a caller does not get to know what is damaged")
	require.Contains(t, b.stderr.String(), what)
	_, err = contractv1raylink.CreateProbe(ctx, rt, nil)
	require.NoError(t, err, "the rest of the system goes on")

	// A Brain that finds it so does not begin to serve.
	b.end(syscall.SIGTERM)
	cmd := exec.Command(filepath.Join(program, "raylink"), "brain", "--data", b.data, "--listen", b.address)
	cmd.Env = environment()
	_, stderr, exit := finish(t, cmd)
	require.NotZero(t, exit)
	require.Contains(t, stderr, "raylink: creating the system's own nodes: the storage: starting storage-0: ")
	require.Contains(t, stderr, what)
	restore()
	b = startBrain(t, b.data, b.address)
	stdout, stderr, exit := b.raylink(t, "storage", "get", "key/199")
	require.Zero(t, exit, stderr)
	require.Equal(t, strings.Repeat("x", 100)+"\n", stdout)
}

// TestRestartedStorageInMemory kills storage-0, whose data are only in memory, under a watcher.
func TestRestartedStorageInMemory(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--storage-durability", "memory")
	ctx := patient(t)
	rt := member(t, b)
	store, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	require.NoError(t, err)
	kv := storage.New(store)
	id, err := storage.Put(ctx, kv, "k", 0)
	require.NoError(t, err)
	var lost *storage.HistoryLostError
	for change, err := range kv.Watch(ctx, "", storage.Since(id-1)) {
		if err != nil {
			require.ErrorAs(t, err, &lost)
			continue
		}
		require.Equal(t, id, change.GetId())
		pid := store.Ref().Record().GetHost().GetPid()
		require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
		gone(t, pid)
		for written := 0; written < 5; { // more than it had before
			if _, err := storage.Put(ctx, kv, "k", written); err == nil {
				written++
			}
			require.NoError(t, ctx.Err())
		}
	}
	require.NotNil(t, lost, "the watch ended without an error")
	require.Greater(t, lost.Oldest, id)
	_, err = storage.Put(ctx, kv, "k", 1, storage.IfID(id))
	var condition *storage.ConditionError
	require.ErrorAs(t, err, &condition, "an id from before is that of no write")
}
