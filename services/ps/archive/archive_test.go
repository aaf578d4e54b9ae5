package archive

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/safetensors"
)

// tensorContent returns content in the safetensors format.
func tensorContent(t testing.TB, size int, fill byte) []byte {
	t.Helper()
	content, err := safetensors.Marshal([]safetensors.Tensor{
		{Name: "w", DType: "U8", Shape: []int{size}, Data: bytes.Repeat([]byte{fill}, size)},
	}, map[string]string{"made": "here"})
	require.NoError(t, err)
	return content
}

func versionOf(tag string, id uint64, content []byte) *psv1.Version {
	return &psv1.Version{
		Tag: tag, Id: id, Size: uint64(len(content)), Checksum: checksum(content),
		Info:   map[string]string{"step": strconv.FormatUint(id, 10)},
		Pushed: timestamppb.New(time.Date(2026, 11, 26, 20, 30, 0, 123456789, time.UTC)),
	}
}

// save saves content as a version.
func save(t testing.TB, directory, tag string, id uint64, content []byte) {
	t.Helper()
	require.NoError(t, Write(directory, versionOf(tag, id, content), content))
}

// requireSaved requires that a version is what a directory has of a tag.
func requireSaved(t testing.TB, directory, tag string, id uint64, content []byte) {
	t.Helper()
	version, got, release, err := Read(directory, tag)
	require.NoError(t, err)
	require.True(t, proto.Equal(versionOf(tag, id, content), version), "%v", version)
	require.True(t, bytes.Equal(content, got))
	require.NoError(t, release())
}

// readError returns the error of a Read that must fail.
func readError(directory, tag string) error {
	_, _, release, err := Read(directory, tag)
	if err == nil {
		return release()
	}
	return err
}

// files returns the paths of a directory's files and folders, sorted. Folders end with a slash.
func files(t testing.TB, directory string) []string {
	t.Helper()
	var names []string
	require.NoError(t, filepath.WalkDir(directory, func(name string, e fs.DirEntry, err error) error {
		if err == nil && name != directory {
			name = strings.TrimPrefix(name, directory+"/")
			if e.IsDir() {
				name += "/"
			}
			names = append(names, name)
		}
		return err
	}))
	return names
}

func TestSavedVersionsAreRead(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "made", "on demand")
	tensors, other := tensorContent(t, 100, 7), []byte("not tensors")
	save(t, directory, "policy/best", 5, tensors)
	save(t, directory, "policy", 1<<60, other)
	save(t, directory, "nothing", 1, nil)
	requireSaved(t, directory, "policy/best", 5, tensors)
	requireSaved(t, directory, "policy", 1<<60, other)
	requireSaved(t, directory, "nothing", 1, nil)
	assert.Equal(t, []string{
		"nothing.bin", "nothing.json", "policy/", "policy/best.json", "policy/best.safetensors", "policy.bin", "policy.json",
	}, files(t, directory))
	tags, err := List(directory)
	require.NoError(t, err)
	assert.Equal(t, []string{"nothing", "policy", "policy/best"}, tags)

	got, err := os.ReadFile(filepath.Join(directory, "policy", "best.safetensors"))
	require.NoError(t, err)
	assert.Equal(t, tensors, got, "the file is the content and nothing else")
	text, err := os.ReadFile(filepath.Join(directory, "policy", "best.json"))
	require.NoError(t, err)
	var described map[string]any
	require.NoError(t, json.Unmarshal(text, &described))
	delete(described, "write")
	assert.Equal(t, map[string]any{
		"tag": "policy/best", "id": 5.0, "size": float64(len(tensors)), "info": map[string]any{"step": "5"},
		"pushed": "2026-11-26T20:30:00.123456789Z", "checksum": fmt.Sprintf("crc32c:%08x", checksum(tensors)), "format": "safetensors",
	}, described)
}

func TestNewVersionReplacesOldOne(t *testing.T) {
	directory := t.TempDir()
	contents := [][]byte{tensorContent(t, 10, 1), []byte("bytes"), tensorContent(t, 20, 2), tensorContent(t, 5, 3), []byte("more"), []byte("x")}
	for i, content := range contents {
		save(t, directory, "a/b", uint64(i+1), content)
		requireSaved(t, directory, "a/b", uint64(i+1), content)
		require.Len(t, files(t, directory), 3, "the old content's file is removed, also if its format differs")
	}
}

func TestReleasedContentLeavesNoMappingOrFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("skipped: it needs /proc")
	}
	directory := t.TempDir()
	content := tensorContent(t, 1<<20, 1)
	open := func() (files, mappings int) {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		for _, e := range entries {
			if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, directory) {
				files++
			}
		}
		maps, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		return files, strings.Count(string(maps), directory)
	}
	save(t, directory, "a", 1, content)
	_, _, release, err := Read(directory, "a")
	require.NoError(t, err)
	openFiles, mappings := open()
	assert.Zero(t, openFiles)
	assert.Equal(t, 1, mappings)
	require.NoError(t, release())
	require.NoError(t, os.Truncate(filepath.Join(directory, "a.safetensors"), 3))
	err = readError(directory, "a")
	require.ErrorIs(t, err, ErrDamaged)
	openFiles, mappings = open()
	assert.Zero(t, openFiles)
	assert.Zero(t, mappings)
}

func TestContentIsNotCopied(t *testing.T) {
	directory := t.TempDir()
	content := tensorContent(t, 64<<20, 1)
	version := versionOf("a", 1, content)
	allocated := func(do func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	assert.Less(t, allocated(func() { require.NoError(t, Write(directory, version, content)) }), uint64(1<<20))
	assert.Less(t, allocated(func() {
		_, _, release, err := Read(directory, "a")
		require.NoError(t, err)
		require.NoError(t, release())
	}), uint64(1<<20))
}

// oddTags are tags that must neither leave the directory nor share a path.
var oddTags = []string{
	".", "..", "...", "/", "//", "/etc/passwd", "../x", "../../x", "a/../../x", "a/..", "a/.", "a/", "/a", "a", "a//b", "a/b", "a.b",
	"A", "aA", "AA", "a/B", "é", "e\u0301", "É", "%2e", "%2e%2e", "%", "a%", "%41", "!", "!a", "!!", "a\x00b", "\x00", "a\\b", "a b", " ", "a ", "a:b",
	"a.json", "a.json/b", "a.bin", "a.bin/b", "a.safetensors", "a.safetensors/b", "a%2ejson/b", "a.part", ".a", ".a.json", "~", "~root", "-rf", "*", "con", "\U0001f600",
	"\n", "\x7f", "\u202e", "\u2028", strings.Repeat("x", 190), strings.Repeat("x", 191), strings.Repeat("x", 190) + "/x",
	strings.Repeat("x", 191) + "/x", strings.Repeat("X", 512), strings.Repeat("/", 500), strings.Repeat(".", 500), strings.Repeat("é", 512),
	"." + strings.Repeat("aaaaaaaaaaaaaaaaaaaaaaaaaa", 1) + ".part", "policy", "policy/best", "Policy/best",
}

func TestOddTagsStayInTheDirectoryAndApart(t *testing.T) {
	outside := t.TempDir()
	directory := filepath.Join(outside, "archive")
	for i, tag := range oddTags {
		save(t, directory, tag, uint64(i+1), []byte(tag))
	}
	for i, tag := range oddTags {
		requireSaved(t, directory, tag, uint64(i+1), []byte(tag))
	}
	tags, err := List(directory)
	require.NoError(t, err)
	assert.Equal(t, slices.Sorted(slices.Values(oddTags)), tags)
	entries, err := os.ReadDir(outside)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing is written outside")
	count := 0
	for _, name := range files(t, directory) {
		if !strings.HasSuffix(name, "/") {
			count++
		}
		assert.LessOrEqual(t, len(filepath.Base(name)), maxName+len(".safetensors"))
	}
	assert.Equal(t, 2*len(oddTags), count)
}

func TestInvalidArgumentsAreRefused(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "archive")
	content := []byte("content")
	for name, test := range map[string]struct {
		change func(*psv1.Version)
		want   error
	}{
		"no tag":         {func(v *psv1.Version) { v.Tag = "" }, ErrTag},
		"long tag":       {func(v *psv1.Version) { v.Tag = strings.Repeat("x", MaxTag+1) }, ErrTag},
		"invalid tag":    {func(v *psv1.Version) { v.Tag = "a\xff" }, ErrTag},
		"wrong size":     {func(v *psv1.Version) { v.Size++ }, ErrVersion},
		"wrong checksum": {func(v *psv1.Version) { v.Checksum++ }, ErrVersion},
		"invalid info":   {func(v *psv1.Version) { v.Info = map[string]string{"k": "\xff"} }, ErrVersion},
		"long info":      {func(v *psv1.Version) { v.Info = map[string]string{"k": strings.Repeat("x", 1<<20)} }, ErrVersion},
		"invalid time":   {func(v *psv1.Version) { v.Pushed.Nanos = -1 }, ErrVersion},
	} {
		t.Run(name, func(t *testing.T) {
			version := versionOf("a", 1, content)
			test.change(version)
			require.ErrorIs(t, Write(directory, version, content), test.want)
		})
	}
	if entries, err := os.ReadDir(directory); err == nil {
		assert.Empty(t, entries)
	}
	err := readError(directory, "")
	require.ErrorIs(t, err, ErrTag)
}

func TestUnknownTagsErrorListsWhatExists(t *testing.T) {
	directory := t.TempDir()
	err := readError(directory, "policy")
	require.ErrorIs(t, err, ErrNoTag)
	require.ErrorContains(t, err, `read tag "policy" in `+directory+`: nothing was saved under the tag; there are none`)
	save(t, directory, "policy/best", 1, nil)
	save(t, directory, "policy", 1, nil)
	err = readError(directory, "policy/bset")
	require.ErrorIs(t, err, ErrNoTag)
	require.ErrorContains(t, err, `there are "policy", "policy/best"`)
	err = readError(directory, "policies/best")
	require.ErrorIs(t, err, ErrNoTag)
}

func TestSafetensorsOfOtherProgramsAreRead(t *testing.T) {
	directory := t.TempDir()
	content := tensorContent(t, 10, 1)
	require.NoError(t, os.Mkdir(filepath.Join(directory, "policy"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "policy", "best.safetensors"), content, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "config.json"), []byte("{}"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "notes.bin"), content, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "Other.safetensors"), content, 0o600))
	tags, err := List(directory)
	require.NoError(t, err)
	assert.Equal(t, []string{"policy/best"}, tags, "other files have no tag")
	version, got, release, err := Read(directory, "policy/best")
	require.NoError(t, err)
	assert.Equal(t, content, append([]byte{}, got...))
	assert.True(t, proto.Equal(&psv1.Version{
		Tag: "policy/best", Size: uint64(len(content)), Checksum: checksum(content), Info: map[string]string{"made": "here"},
	}, version), "%v", version)
	require.NoError(t, release())

	require.NoError(t, os.WriteFile(filepath.Join(directory, "policy", "best.safetensors"), content[1:], 0o600))
	err = readError(directory, "policy/best")
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorIs(t, err, safetensors.ErrFormat)
	err = readError(directory, "notes")
	require.ErrorIs(t, err, ErrNoTag)
}

func TestDamagedFilesAreRefused(t *testing.T) {
	content := tensorContent(t, 1000, 1)
	edit := func(name string, change func([]byte) []byte) func(t *testing.T, directory string) {
		return func(t *testing.T, directory string) {
			name := filepath.Join(directory, "a", name)
			b, err := os.ReadFile(name)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(name, change(b), 0o600))
		}
	}
	replace := func(old, replacement string) func(t *testing.T, directory string) {
		return edit("b.json", func(b []byte) []byte {
			require.Contains(t, string(b), old)
			return bytes.Replace(b, []byte(old), []byte(replacement), 1)
		})
	}
	for name, test := range map[string]struct {
		damage func(t *testing.T, directory string)
		says   string
	}{
		"a changed byte":        {edit("b.safetensors", func(b []byte) []byte { b[len(b)-1]++; return b }), "remove a/b.json"},
		"truncated content":     {edit("b.safetensors", func(b []byte) []byte { return b[:len(b)-1] }), "bytes, not"},
		"longer content":        {edit("b.safetensors", func(b []byte) []byte { return append(b, 0) }), "bytes, not"},
		"empty content":         {edit("b.safetensors", func([]byte) []byte { return nil }), "0 bytes, not"},
		"empty JSON":            {edit("b.json", func([]byte) []byte { return nil }), "a/b.json"},
		"truncated JSON":        {edit("b.json", func(b []byte) []byte { return b[:len(b)/2] }), "a/b.json"},
		"JSON of another value": {edit("b.json", func([]byte) []byte { return []byte("[]") }), "a/b.json"},
		"deep JSON":             {edit("b.json", func([]byte) []byte { return bytes.Repeat([]byte(`{"info":`), 100_000) }), "a/b.json"},
		"long JSON":             {edit("b.json", func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 1<<20)...) }), "more than 1048576 bytes"},
		"no UTF-8":              {replace("step", "st\xffp"), "not UTF-8"},
		"another tag":           {replace("a/b", "a/c"), `the tag "a/c"`},
		"another size":          {replace(`"size": `, `"size": 1`), "bytes, not"},
		"a negative size":       {replace(`"size": `, `"size": -`), "a/b.json"},
		"a size over int64":     {replace(`"size": `, `"size": 1000000000000000`), "invalid size"},
		"an id over int64":      {replace(`"id": `, `"id": 1844674407370955161`), "invalid id"},
		"another checksum":      {replace("crc32c:", "crc32c:0"), "eight digits"},
		"no checksum":           {replace("checksum", "checks"), "checksum"},
		"another format":        {replace(`"format": "`, `"format": "../`), "unknown format"},
		"the other format":      {replace(`"format": "safetensors"`, `"format": "bytes"`), "no a/b.bin"},
		"a path as write":       {replace(`"write": "`, `"write": "../../../../x`), "invalid id"},
		"a late time":           {replace("2026-", "99999-"), "a/b.json"},
		"no content": {func(t *testing.T, directory string) {
			require.NoError(t, os.Remove(filepath.Join(directory, "a", "b.safetensors")))
		}, "no a/b.safetensors"},
		"a pipe as content": {func(t *testing.T, directory string) {
			require.NoError(t, os.Remove(filepath.Join(directory, "a", "b.safetensors")))
			require.NoError(t, unix.Mkfifo(filepath.Join(directory, "a", "b.safetensors"), 0o600))
		}, "not a regular file"},
		"a folder as JSON": {func(t *testing.T, directory string) {
			require.NoError(t, os.Remove(filepath.Join(directory, "a", "b.json")))
			require.NoError(t, os.Mkdir(filepath.Join(directory, "a", "b.json"), 0o700))
		}, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			save(t, directory, "a/b", 1, content)
			test.damage(t, directory)
			err := readError(directory, "a/b")
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, test.says)
			assert.Less(t, len(err.Error()), 1000)
		})
	}
}

func TestDamagedFilesCanBeReplaced(t *testing.T) {
	directory := t.TempDir()
	content := tensorContent(t, 1000, 1)
	for name, text := range map[string]string{"a.json": "{", "a.safetensors": "x", ".a.aaaaaaaaaaaaaaaaaaaaaaaaaa.part": "x"} {
		require.NoError(t, os.WriteFile(filepath.Join(directory, name), []byte(text), 0o600))
	}
	save(t, directory, "a", 1, content)
	requireSaved(t, directory, "a", 1, content)
	assert.Len(t, files(t, directory), 2)
}

func TestLinksOutOfTheDirectoryAreNotFollowed(t *testing.T) {
	outside, directory := t.TempDir(), t.TempDir()
	content := tensorContent(t, 10, 1)
	save(t, outside, "x", 1, content)
	before := files(t, outside)
	require.NoError(t, os.Symlink(outside, filepath.Join(directory, "out")))
	require.NoError(t, os.Symlink(filepath.Join(outside, "x.json"), filepath.Join(directory, "x.json")))
	require.NoError(t, os.Symlink(filepath.Join(outside, "x.safetensors"), filepath.Join(directory, "x.safetensors")))

	require.Error(t, Write(directory, versionOf("out/x", 2, content), content))
	err := readError(directory, "out/x")
	require.Error(t, err)
	err = readError(directory, "x")
	require.Error(t, err)
	// A file's link is replaced, not followed.
	save(t, directory, "x", 2, content)
	requireSaved(t, directory, "x", 2, content)
	requireSaved(t, outside, "x", 1, content)
	assert.Equal(t, before, files(t, outside))
	assert.NoError(t, os.Remove(filepath.Join(directory, "out")), "it is still a link")
}

func TestFoldersOfOtherProgramsAreKept(t *testing.T) {
	directory := t.TempDir()
	for _, name := range []string{"a.safetensors", "b.bin", "c.json"} {
		require.NoError(t, os.Mkdir(filepath.Join(directory, name), 0o700))
	}
	before := files(t, directory)
	for _, tag := range []string{"a", "b", "c"} {
		require.Error(t, Write(directory, versionOf(tag, 1, nil), nil))
		require.Equal(t, before, files(t, directory), "the state is as before")
	}
}

// begun returns a write that has taken its first step.
func begun(t *testing.T, directory, tag string, id uint64, content []byte) *writer {
	t.Helper()
	root, err := os.OpenRoot(directory)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, root.Close()) })
	where, err := locate(tag)
	require.NoError(t, err)
	described, err := describe(versionOf(tag, id, content), format(content), strings.Repeat(string(rune('a'+id)), idLength))
	require.NoError(t, err)
	w := &writer{root: root, where: where, described: described}
	require.NoError(t, w.begin(content))
	return w
}

// A crash can come between any two steps, and within the last.
func TestEveryCrashLeavesOneCompleteVersion(t *testing.T) {
	formats := map[bool][]byte{true: tensorContent(t, 10, 1), false: []byte("old")}
	for _, from := range []bool{true, false} {
		for _, to := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v to %v", from, to), func(t *testing.T) {
				directory, old := t.TempDir(), formats[from]
				content := tensorContent(t, 20, 2)
				if !to {
					content = []byte("new content")
				}
				last := []byte("last")
				after := func(id uint64, want []byte) {
					t.Helper()
					requireSaved(t, directory, "a/b", id, want)
					tags, err := List(directory)
					require.NoError(t, err)
					require.Equal(t, []string{"a/b"}, tags)
				}
				save(t, directory, "a/b", 1, old)
				w := begun(t, directory, "a/b", 2, content)
				after(1, old)
				require.NoError(t, w.commit())
				after(2, content)
				// The next write crashes too.
				begun(t, directory, "a/b", 3, last)
				after(2, content)
				// Within the last step: the content has its name, but the old one's file is left.
				require.NoError(t, os.WriteFile(filepath.Join(directory, w.where.content(formatBytes)), old, 0o600))
				require.NoError(t, os.WriteFile(filepath.Join(directory, w.where.content(w.described.Format)), content, 0o600))
				after(2, content)
				save(t, directory, "a/b", 4, last)
				after(4, last)
				require.Len(t, files(t, directory), 3)
			})
		}
	}
}

func TestFirstWriteThatCrashesLeavesNothingToRead(t *testing.T) {
	directory := t.TempDir()
	w := begun(t, directory, "a/b", 1, []byte("x"))
	tags, err := List(directory)
	require.NoError(t, err)
	assert.Empty(t, tags)
	err = readError(directory, "a/b")
	require.ErrorIs(t, err, ErrNoTag)
	require.NoError(t, w.commit())
	requireSaved(t, directory, "a/b", 1, []byte("x"))
	tags, err = List(directory)
	require.NoError(t, err)
	assert.Equal(t, []string{"a/b"}, tags, "its content does not have its name yet")
}

func TestWriteRemovesWhatCrashedOnesLeft(t *testing.T) {
	for _, committed := range []bool{false, true} {
		directory := t.TempDir()
		w := begun(t, directory, "a", 1, tensorContent(t, 10, 1))
		if committed {
			require.NoError(t, w.commit())
		}
		save(t, directory, "a", 2, []byte("x"))
		assert.Equal(t, []string{"a.bin", "a.json"}, files(t, directory))
	}
}

// numbered returns the content of a version, from which its id can be read; some has the
// safetensors format.
func numbered(t testing.TB, id uint64) []byte {
	t.Helper()
	random := rand.New(rand.NewPCG(id, 0))
	data := binary.LittleEndian.AppendUint64(nil, id)
	for range random.IntN(50_000) {
		data = append(data, byte(id))
	}
	if id%3 == 0 {
		return data
	}
	content, err := safetensors.Marshal([]safetensors.Tensor{{Name: "w", DType: "U8", Shape: []int{len(data)}, Data: data}}, nil)
	require.NoError(t, err)
	return content
}

func TestReadersBesideWritersSeeCompleteVersions(t *testing.T) {
	directory := t.TempDir()
	const writers, each = 2, 40
	save(t, directory, "a", 0, numbered(t, 0))
	done := make(chan struct{})
	var readers, writing sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				version, content, release, err := Read(directory, "a")
				if !assert.NoError(t, err) { //nolint:testifylint // not the test's goroutine
					return
				}
				assert.True(t, bytes.Equal(numbered(t, version.GetId()), content), "mixed versions")
				assert.NoError(t, release())
			}
		})
	}
	for i := range writers {
		writing.Go(func() {
			for j := range each {
				id := uint64(writers*j + i + 1)
				content := numbered(t, id)
				assert.NoError(t, Write(directory, versionOf("a", id, content), content))
			}
		})
	}
	writing.Wait()
	close(done)
	readers.Wait()
	assert.Len(t, files(t, directory), 2)
}
