package brain_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

// childDir is an environment variable. With it this test binary opens a Brain in that directory,
// registers nodes until it is killed, and prints each acknowledged one. Its nodes have places; it
// removes all but the first of each type: then it prints the path alone.
const childDir = "BRAIN_TEST_CHILD_DIR"

// childMachines is how many machines the child has, with eight GPUs each.
const childMachines = 3

func runChild() {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	b, err := brain.Open(brain.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	if err := b.JoinMachines(childMachines); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	fmt.Println("open")
	var mu sync.Mutex // keeps lines whole
	for i := range 8 {
		go func() {
			for {
				res, err := b.Service().Register(context.Background(), &brainv1.RegisterRequest{
					Type: fmt.Sprintf("type%c", 'a'+i), Place: needs(int64(i%3 + 1)),
				})
				if err != nil {
					fmt.Println("failed:", err)
					os.Exit(1)
				}
				node := res.GetNodes()[0]
				given := node.GetAllocation()
				mu.Lock()
				fmt.Println(node.GetPath(), node.GetNid(), given.GetMachine(), given.GetGpus())
				mu.Unlock()
				if node.GetIndex() == 0 {
					continue // it stays
				}
				if _, err := b.Service().Remove(context.Background(), &brainv1.RemoveRequest{Nids: []string{node.GetNid()}}); err != nil {
					fmt.Println("failed:", err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(node.GetPath())
				mu.Unlock()
			}
		}()
	}
	select {} // until killed
}

// child starts such a process and returns its output after it has opened the directory.
func child(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be dead already
		_ = cmd.Wait()         // killed
	})
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.Equal(t, "open", lines.Text())
	return cmd, lines
}

// lostByKill kills a Brain under load. It returns how many registrations were acknowledged, and
// which of them are lost, with their allocations.
func lostByKill(t *testing.T) (acknowledged int, lost []string) {
	t.Helper()
	dir := t.TempDir()
	cmd, lines := child(t, dir)
	nodes := make(map[string]string)
	removed := make(map[string]bool)
	for lines.Scan() {
		path, node, more := strings.Cut(lines.Text(), " ")
		switch {
		case !strings.Contains(path, "-"):
			require.NotContains(t, path, "failed", lines.Text())
		case !more:
			removed[path] = true // or the line was cut off, and this is another path
		case strings.HasSuffix(node, "]"):
			if nodes[path] = node; len(nodes) == 300 {
				require.NoError(t, cmd.Process.Kill())
			}
		}
	}
	require.GreaterOrEqual(t, len(nodes), 300, "the child ended by itself")
	_ = cmd.Wait() // killed

	b, err := brain.Open(brain.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	for path, node := range nodes {
		rec, err := b.Resolve(t.Context(), path)
		switch given := rec.GetAllocation(); {
		case err == nil && removed[path]:
			lost = append(lost, path+" (its removal)")
		case err == nil && fmt.Sprint(rec.GetNid(), " ", given.GetMachine(), " ", given.GetGpus()) != node:
			lost = append(lost, path+" (its allocation)")
		case err != nil && !strings.Contains(err.Error(), strings.Fields(node)[0]):
			lost = append(lost, path)
		}
	}
	requireAccounts(t, b)
	return len(nodes), lost
}

// requireAccounts requires that the accounts of a Brain that was restarted, once its machines are
// back, are those of its records.
func requireAccounts(t *testing.T, b *brain.Brain) {
	t.Helper()
	require.NoError(t, b.JoinMachines(childMachines))
	list, err := b.Service().List(t.Context(), &brainv1.ListRequest{})
	require.NoError(t, err)
	used := make(map[string]int64)
	taken := make(map[string]string)
	for _, rec := range list.GetNodes() {
		given := rec.GetAllocation()
		used[given.GetMachine()] += given.GetResources()["gpu"]
		for _, gpu := range given.GetGpus() {
			at := fmt.Sprint(given.GetMachine(), " ", gpu)
			require.Empty(t, taken[at], "two nodes have the GPU %s", at)
			taken[at] = rec.GetPath()
		}
	}
	require.NotEmpty(t, taken, "no node has stayed")
	machines, err := b.Service().ListMachines(t.Context(), &brainv1.ListMachinesRequest{})
	require.NoError(t, err)
	require.Len(t, machines.GetMachines(), childMachines)
	for _, use := range machines.GetMachines() {
		require.Equal(t, used[use.GetMachine().GetId()], use.GetUsed()["gpu"], "the accounts of a machine differ from the records")
	}
}
