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
// registers nodes until it is killed, and prints each acknowledged one.
const childDir = "BRAIN_TEST_CHILD_DIR"

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
	fmt.Println("open")
	var mu sync.Mutex // keeps lines whole
	for i := range 8 {
		go func() {
			for {
				res, err := b.Service().Register(context.Background(), &brainv1.RegisterRequest{Type: fmt.Sprintf("type%c", 'a'+i)})
				if err != nil {
					fmt.Println("failed:", err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(res.GetNodes()[0].GetPath(), res.GetNodes()[0].GetNid())
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
// which of them are lost.
func lostByKill(t *testing.T) (acknowledged int, lost []string) {
	t.Helper()
	dir := t.TempDir()
	cmd, lines := child(t, dir)
	nodes := make(map[string]string)
	for lines.Scan() {
		path, nid, whole := strings.Cut(lines.Text(), " ")
		if !whole || len(nid) != 36 {
			continue // the kill cut the line off
		}
		if nodes[path] = nid; len(nodes) == 300 {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	require.GreaterOrEqual(t, len(nodes), 300, "the child ended by itself")
	_ = cmd.Wait() // killed

	b, err := brain.Open(brain.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	for path, nid := range nodes {
		if rec, err := b.Resolve(t.Context(), path); err != nil || rec.GetNid() != nid {
			lost = append(lost, path)
		}
	}
	return len(nodes), lost
}
