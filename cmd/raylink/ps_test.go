package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// TestParameterServerIsConfigured shows that each incarnation of ps-0 has the configuration of the
// Brain that started it.
func TestParameterServerIsConfigured(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--ps-max-bytes", "1KiB")
	accepts := func(size int) bool {
		request := fmt.Sprintf(`{"tag": "a", "parameters": %q}`, base64.StdEncoding.EncodeToString(make([]byte, size)))
		_, stderr, exit := b.raylink(t, "call", "ps-0", "Push", request)
		if exit != 0 {
			require.Contains(t, stderr, fmt.Sprintf("%d bytes", size), "it was refused for another reason")
		}
		return exit == 0
	}
	kill := func() {
		t.Helper()
		pid := b.records(t)["ps-0"].GetHost().GetPid()
		require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
		gone(t, pid)
		require.Eventually(t, func() bool {
			now := b.records(t)["ps-0"].GetHost().GetPid()
			return now != 0 && now != pid
		}, patience, 10*time.Millisecond)
	}
	assert.True(t, accepts(1024))
	assert.False(t, accepts(1025))
	kill()
	assert.True(t, accepts(1024))
	assert.False(t, accepts(1025), "the next incarnation has the configuration too")

	pid := b.records(t)["ps-0"].GetHost().GetPid()
	b.end(syscall.SIGKILL)
	b = startBrain(t, b.data, b.address, "--ps-max-bytes", "2KiB")
	assert.Equal(t, pid, b.records(t)["ps-0"].GetHost().GetPid(), "it outlives Brain")
	assert.False(t, accepts(1025))
	kill()
	assert.True(t, accepts(2048), "an incarnation has the configuration of the Brain that starts it")
	assert.False(t, accepts(2049))
}

// TestSizesOfFlags shows the error for a size that can't be parsed.
func TestSizesOfFlags(t *testing.T) {
	var b brain
	_, stderr, exit := b.raylink(t, "brain", "--ps-max-bytes", "64MB")
	assert.Equal(t, exitUsage, exit)
	assert.Contains(t, stderr, `invalid argument "64MB" for "--ps-max-bytes" flag: "64MB" is not a size: write bytes, or a number and one of B, KiB, MiB, GiB, TiB, as in 64MiB`)
}

// TestParametersOfAnySize pushes and pulls parameters that exceed one message. The program holds a
// few chunks of them in memory.
func TestParametersOfAnySize(t *testing.T) {
	const size = 128 << 20
	dir := t.TempDir()
	file := filepath.Join(dir, "parameters")
	w, err := os.Create(file)
	require.NoError(t, err)
	_, err = io.CopyN(w, rand.NewChaCha8([32]byte{}), size+1) // the last chunk is short
	require.NoError(t, err)
	require.NoError(t, w.Close())
	b := startBrain(t, t.TempDir(), "127.0.0.1:0")
	used := filepath.Join(t.TempDir(), "memory")
	// Without the race detector, which keeps several bytes for each byte of a program.
	plain := filepath.Join(t.TempDir(), "raylink")
	out, err := exec.Command("go", "build", "-o", plain, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	run := func(in *os.File, args ...string) {
		t.Helper()
		cmd := exec.Command(os.Args[0], append([]string{plain}, args...)...)
		cmd.Env = environment("RAYLINK_BRAIN="+b.address, "TMPDIR="+dir, meterMode+"="+used)
		if in != nil {
			cmd.Stdin = in
		}
		_, stderr, exit := finish(t, cmd)
		require.Zero(t, exit, stderr)
		text, err := os.ReadFile(used)
		require.NoError(t, err)
		most, err := strconv.Atoi(string(text))
		require.NoError(t, err)
		assert.Less(t, most, size>>10, "KiB of memory")
		t.Logf("%v had at most %d KiB", args, most)
	}
	pulled := func(tag string) {
		t.Helper()
		path := filepath.Join(dir, tag)
		run(nil, "ps", "pull", tag, path)
		require.NoError(t, exec.Command("cmp", file, path).Run())
		require.NoError(t, os.Remove(path))
	}
	run(nil, "ps", "push", "file", file)
	pulled("file")

	// From a pipe, whose size is not known in advance.
	cat := exec.Command("cat", file)
	r, err := cat.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cat.Start())
	pipe, ok := r.(*os.File)
	require.True(t, ok)
	run(pipe, "ps", "push", "pipe", "-")
	require.NoError(t, cat.Wait())
	pulled("pipe")

	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "no temporary file is left")

	// Through a directory, which is mapped.
	_, stderr, exit := b.raylink(t, "ps", "save", dir, "file")
	require.Zero(t, exit, stderr)
	_, stderr, exit = b.raylink(t, "ps", "load", dir, "file")
	require.Zero(t, exit, stderr)
	pulled("file")
}

// TestPulledFileReplacesWhenComplete shows what is at a path while and after it is written.
func TestPulledFileReplacesWhenComplete(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "real")
	link := filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(path, []byte("before"), 0o600))
	require.NoError(t, os.Chmod(path, 0o640))
	require.NoError(t, os.Symlink("real", link))
	write := func(path, text string, err error) error {
		t.Helper()
		d := &destination{path: path}
		require.NoError(t, d.open())
		_, werr := d.Write([]byte(text))
		require.NoError(t, werr)
		return d.finish(err)
	}
	reads := func(want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 2, "nothing else is left")
	}
	failure := errors.New("the stream broke")
	require.Equal(t, failure, write(link, "after", failure))
	reads("before")
	require.NoError(t, write(link, "after", nil))
	reads("after")
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode(), "the mode is kept")
	target, err := os.Readlink(link)
	require.NoError(t, err)
	require.Equal(t, "real", target, "the link is kept")

	// Devices and pipes are written to in place.
	require.NoError(t, write(os.DevNull, "nothing", nil))
	info, err = os.Stat(os.DevNull)
	require.NoError(t, err)
	require.False(t, info.Mode().IsRegular())
	d := &destination{path: dir}
	require.ErrorContains(t, d.open(), "is a directory")
	require.NoError(t, d.finish(nil))
}

// TestDamagedParametersAreNotPulled has a captain send what no captain should.
func TestDamagedParametersAreNotPulled(t *testing.T) {
	const tag = "a"
	content := []byte("some parameters")
	version := &psv1.FetchResponse{Part: &psv1.FetchResponse_Version{Version: &psv1.Version{
		Tag: tag, Id: 1, Size: uint64(len(content)), Checksum: crc32.Checksum(content, castagnoli),
	}}}
	chunk := func(index uint32, data []byte, sum uint32) *psv1.FetchResponse {
		return &psv1.FetchResponse{Part: &psv1.FetchResponse_Chunk{Chunk: &psv1.Chunk{Index: index, Data: data, Checksum: sum}}}
	}
	good := func(index uint32, data []byte) *psv1.FetchResponse {
		return chunk(index, data, crc32.Checksum(data, castagnoli))
	}
	for name, test := range map[string]struct {
		sends []*psv1.FetchResponse
		says  string // empty if the parameters are accepted
	}{
		"whole":           {sends: []*psv1.FetchResponse{version, {}, good(0, content[:4]), {}, good(1, content[4:])}},
		"damaged":         {sends: []*psv1.FetchResponse{version, chunk(0, content, 1)}, says: "chunk 0 is damaged"},
		"out of order":    {sends: []*psv1.FetchResponse{version, good(1, content)}, says: "chunk 0 is damaged"},
		"incomplete":      {sends: []*psv1.FetchResponse{version, good(0, content[:4])}, says: "4 of 15 bytes arrived"},
		"too long":        {sends: []*psv1.FetchResponse{version, good(0, content), good(1, content)}, says: "more than the 15 bytes"},
		"another content": {sends: []*psv1.FetchResponse{version, good(0, []byte("same parameters"))}, says: "15 of 15 bytes arrived, with the checksum"},
		"no version":      {sends: []*psv1.FetchResponse{good(0, content)}, says: "before the version"},
		"nothing":         {says: "0 of 0 bytes arrived"},
	} {
		t.Run(name, func(t *testing.T) {
			server := connect.NewServer()
			c := &captain{}
			server.Register(connect.Method{Spec: c.spec("Fetch"), Handler: func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
				if err := stream.Receive(&psv1.FetchRequest{}); err != nil {
					return err
				}
				for _, res := range test.sends {
					if err := stream.Send(res); err != nil {
						return err
					}
				}
				return nil
			}})
			c.client = connect.NewClient(connectinprocess.New(server))
			var got bytes.Buffer
			_, err := c.fetch(t.Context(), tag, func(*psv1.Version) error { return nil }, &got)
			if test.says == "" {
				require.NoError(t, err)
				require.Equal(t, content, got.Bytes())
				return
			}
			require.ErrorContains(t, err, test.says)
			require.LessOrEqual(t, got.Len(), len(content))
		})
	}
}

// TestMachineThatLags stops the process that hosts a machine's officer.
func TestMachineThatLags(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--lease", "1m")
	far := startDriver(t, b, readerMode+"=1", "RAYLINK_MACHINE=far")
	push := func(args ...string) (stderr string, exit int) {
		t.Helper()
		cmd := exec.Command(filepath.Join(program, "raylink"), append([]string{"ps", "push", "a", "-", "--wait", "all"}, args...)...)
		cmd.Env = environment("RAYLINK_BRAIN=" + b.address)
		_, stderr, exit = finish(t, cmd)
		return stderr, exit
	}
	lags := func(row string) bool {
		t.Helper()
		stdout, stderr, exit := b.raylink(t, "ps", "officers")
		require.Zero(t, exit, stderr)
		return regexp.MustCompile(row).MatchString(stdout)
	}
	stderr, exit := push()
	require.Zero(t, exit, stderr)
	assert.True(t, lags(`\(home\) +ps-0/officer-0 +1 +0 +20`))
	assert.True(t, lags(`far +ps-0/officer-1 +1 +0 +20`))

	require.NoError(t, far.Process.Signal(syscall.SIGSTOP))
	stderr, exit = push("--timeout", "2s")
	assert.True(t, lags(`far +ps-0/officer-1 +1 +1 +a \(1 of 2\) +20`))
	require.NoError(t, far.Process.Signal(syscall.SIGCONT))
	assert.Equal(t, exitCall+int(connect.CodeDeadlineExceeded), exit, stderr)
	assert.Contains(t, stderr, `push "a": version 2 was pushed, but when the wait for all of 2 machines ended, 1 lacked it: far`)
	assert.Contains(t, stderr, "raylink.ps.v1.Lacking")
	require.Eventually(t, func() bool { return lags(`far +ps-0/officer-1 +1 +0 +20`) }, patience, 10*time.Millisecond)
}

// TestIDsContinueInANewSystem loads what another system has saved.
func TestIDsContinueInANewSystem(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("weights"), 0o600))
	run := func(b *brain, args ...string) string {
		t.Helper()
		stdout, stderr, exit := b.raylink(t, append([]string{"ps"}, args...)...)
		require.Zero(t, exit, stderr)
		return stdout
	}
	before := startBrain(t, t.TempDir(), "127.0.0.1:0")
	run(before, "push", "a", file)
	run(before, "push", "a", file, "--info", "step=2")
	run(before, "save", dir)
	after := startBrain(t, t.TempDir(), "127.0.0.1:0")
	assert.Contains(t, run(after, "load", dir), "a: version 2, 7 B")
	assert.Contains(t, run(after, "load", dir), "a: version 3, 7 B")
	assert.Contains(t, run(after, "tags"), "step=2")
}
