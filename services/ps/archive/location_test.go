package archive

import (
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestLocationsAreReadable(t *testing.T) {
	for tag, want := range map[string]string{
		"policy":        "policy",
		"policy/best":   "policy/best",
		"ppo_7-v1.2":    "ppo_7-v1.2",
		"MyModel":       "!my!model",
		"a b":           "a%20b",
		"../x":          "%2e./x",
		"/etc":          "!/etc",
		"a.json":        "a.json",
		"a.json/b":      "a%2ejson/b",
		"\x00":          "%00",
		"step%3":        "step%253",
		"a/.hidden/b":   "a/%2ehidden/b",
		"policy/latest": "policy/latest",
	} {
		where, err := locate(tag)
		require.NoError(t, err)
		assert.Equal(t, want, path.Join(where.folder, where.stem))
	}
}

// checkLocation checks one tag's location.
func checkLocation(t require.TestingT, tag string) string {
	where, err := locate(tag)
	require.NoError(t, err)
	whole := path.Join(where.folder, where.stem)
	got, ok := parseLocation(whole)
	require.True(t, ok, "%q of %q", whole, tag)
	require.Equal(t, tag, got)
	for name := range strings.SplitSeq(whole, "/") {
		require.NotEmpty(t, name)
		require.NotEqual(t, byte('.'), name[0], "hidden names are those of writers, . and ..")
		require.LessOrEqual(t, len(name), 191)
		require.Empty(t, strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_!%"), "only what every file system keeps apart")
	}
	for folder := where.folder; folder != "."; folder = path.Dir(folder) {
		require.True(t, mayHaveTags(folder), "%q of %q", folder, tag)
	}
	for name := range strings.SplitSeq(where.folder, "/") {
		for _, suffix := range []string{".json", ".bin", ".safetensors"} {
			require.False(t, strings.HasSuffix(name, suffix), "a folder %q could be a file", name)
		}
	}
	const id = "abcdefghijklmnopqrstuvwxyz"
	for _, name := range []string{where.part(id), where.partOfJSON(id), where.json(), where.content(formatSafetensors)} {
		require.LessOrEqual(t, len(path.Base(name)), 255)
	}
	stem, isContent, ok := parsePart(path.Base(where.part(id)))
	require.True(t, ok && isContent)
	require.Equal(t, where.stem, stem)
	stem, isContent, ok = parsePart(path.Base(where.partOfJSON(id)))
	require.True(t, ok && !isContent)
	require.Equal(t, where.stem, stem)
	for _, name := range []string{where.json(), where.content(formatSafetensors), where.content(formatBytes)} {
		_, _, ok := parsePart(path.Base(name))
		require.False(t, ok)
	}
	return whole
}

func TestTagsNeverShareALocation(t *testing.T) {
	seen := make(map[string]string)
	for _, tag := range oddTags {
		whole := checkLocation(t, tag)
		require.NotContains(t, seen, whole)
		seen[whole] = tag
	}
	part := rapid.OneOf(
		rapid.String(), rapid.StringMatching(`[.%!aA2e]{0,6}(\.json|\.bin|\.safetensors)?`), rapid.SampledFrom(oddTags),
		rapid.StringMatching(`[aB.%]{100,200}`),
	)
	tags := rapid.Map(rapid.SliceOfN(part, 1, 4), func(parts []string) string { return strings.Join(parts, "/") }).
		Filter(func(tag string) bool { return tag != "" && len(tag) <= MaxTag })
	rapid.Check(t, func(t *rapid.T) {
		a, b := tags.Draw(t, "a"), tags.Draw(t, "b")
		locationOfA, locationOfB := checkLocation(t, a), checkLocation(t, b)
		if a != b {
			require.NotEqual(t, locationOfA, locationOfB)
		}
	})
}

func FuzzLocate(f *testing.F) {
	for _, tag := range oddTags {
		f.Add(tag)
	}
	f.Fuzz(func(t *testing.T, tag string) {
		if _, err := locate(tag); err != nil {
			require.ErrorIs(t, err, ErrTag)
			return
		}
		checkLocation(t, tag)
	})
}

// FuzzParseLocation checks that of all paths, only that of a tag is taken for it.
func FuzzParseLocation(f *testing.F) {
	for _, name := range []string{"a", "a/b", "!a", "!", "!/!", "%2e", "a%/b", "a%", "%", "%2", "%zz", "..", "a/../b", "/a", "a/", "A", "", "a//b", "a%2ejson/b", "a.json/b"} {
		f.Add(name)
	}
	for _, tag := range oddTags {
		where, err := locate(tag)
		require.NoError(f, err)
		f.Add(path.Join(where.folder, where.stem))
	}
	f.Fuzz(func(t *testing.T, name string) {
		tag, ok := parseLocation(name)
		if ok {
			require.Equal(t, name, checkLocation(t, tag))
		}
		if stem, _, ok := parsePart(name); ok {
			require.True(t, strings.HasPrefix(name, "."+stem+"."))
		}
	})
}

func FuzzParseDescription(f *testing.F) {
	content := []byte("x")
	d, err := describe(versionOf("a/b", 5, content), formatBytes, "abcdefghijklmnopqrstuvwxyz")
	require.NoError(f, err)
	text, err := d.marshal()
	require.NoError(f, err)
	f.Add(text)
	f.Add([]byte(`{"tag":"a/b","checksum":"crc32c:00000000","format":"bytes","write":"abcdefghijklmnopqrstuvwxyz","pushed":"0001-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"tag":"a/b","id":-1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parseDescription(text, "a/b")
		if err != nil {
			return
		}
		require.Equal(t, "a/b", d.Tag)
		require.True(t, isID(d.Write))
		version := d.version()
		again, err := describe(version, d.Format, d.Write)
		require.NoError(t, err)
		text, err = again.marshal()
		if err != nil {
			require.ErrorIs(t, err, ErrVersion) // too long
			return
		}
		second, err := parseDescription(text, "a/b")
		require.NoError(t, err)
		require.Equal(t, d.ID, second.ID)
		require.Equal(t, d.Checksum, second.Checksum)
		require.Len(t, second.Info, len(d.Info))
	})
}
