package machine

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseLabels(t *testing.T) {
	t.Parallel()
	l, err := ParseLabels("zone=a", "role=trainer", "spot=", "example.com/Disk_type=nvme.2-x")
	require.NoError(t, err)
	assert.Equal(t, Labels{"role": "trainer", "zone": "a", "spot": "", "example.com/Disk_type": "nvme.2-x"}, l)
	assert.Equal(t, "example.com/Disk_type=nvme.2-x,role=trainer,spot=,zone=a", l.String())
	require.NoError(t, l.Check())

	l, err = ParseLabels()
	require.NoError(t, err)
	assert.Equal(t, Labels{}, l)
	assert.Empty(t, l.String())

	long := strings.Repeat("x", 63)
	l, err = ParseLabels(strings.Repeat("p", 253) + "/" + long + "=" + long)
	require.NoError(t, err)
	assert.Len(t, l, 1)
}

// labels returns the texts of n labels.
func labels(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("k%d=v", i)
	}
	return all
}

func TestParseLabelsRefuses(t *testing.T) {
	t.Parallel()
	const (
		form   = `a label has the form key=value`
		key    = `a key is up to 63 letters, digits, '-', '_' and '.' that begin and end with a letter or digit, and may have a prefix such as example.com/`
		prefix = `the prefix of a key is a domain name: up to 253 lower-case letters, digits, '-' and '.', such as example.com`
		value  = `a value is empty, or up to 63 letters, digits, '-', '_' and '.' that begin and end with a letter or digit`
	)
	long := strings.Repeat("x", 64)
	for text, want := range map[string]string{
		"":                                `"": ` + form,
		"role":                            `"role": ` + form,
		"=x":                              `"=x": ` + key,
		"-role=x":                         `"-role=x": ` + key,
		"role.=x":                         `"role.=x": ` + key,
		"my role=x":                       `"my role=x": ` + key,
		"röle=x":                          `"röle=x": ` + key,
		long + "=x":                       `"` + long + `=x": ` + key,
		"example.com/=x":                  `"example.com/=x": ` + key,
		"/role=x":                         `"/role=x": ` + prefix,
		"Example.com/role=x":              `"Example.com/role=x": ` + prefix,
		"example..com/role=x":             `"example..com/role=x": ` + prefix,
		"-a.com/role=x":                   `"-a.com/role=x": ` + prefix,
		"a_b/role=x":                      `"a_b/role=x": ` + prefix,
		"a/b/role=x":                      `"a/b/role=x": ` + key,
		strings.Repeat("p", 254) + "/x=y": `"` + strings.Repeat("p", 100) + `"…: ` + prefix,
		"role=trainer,zone=a":             `"role=trainer,zone=a": ` + value,
		"role=a b":                        `"role=a b": ` + value,
		"role= ":                          `"role= ": ` + value,
		"role=_a":                         `"role=_a": ` + value,
		"role=a-":                         `"role=a-": ` + value,
		"role=a=b":                        `"role=a=b": ` + value,
		"role=\xff":                       `"role=\xff": ` + value,
		"role=a\n":                        `"role=a\n": ` + value,
		"role=" + long:                    `"role=` + long + `": ` + value,
	} {
		l, err := ParseLabels("zone=a", text)
		require.EqualError(t, err, "label "+want)
		assert.Nil(t, l)
		if k, v, ok := strings.Cut(text, "="); ok {
			require.EqualError(t, Labels{k: v, "zone": "a"}.Check(), "label "+want)
		}
	}
	_, err := ParseLabels("role=a", "role=a")
	require.EqualError(t, err, `label "role=a": role occurs twice`)
	_, err = ParseLabels(labels(65)...)
	require.EqualError(t, err, `label "k64=v": there are more than 64 labels`)
	l, err := ParseLabels(labels(64)...)
	require.NoError(t, err)
	require.NoError(t, l.Check())
	l["one"] = "more"
	require.EqualError(t, l.Check(), `labels: there are 65 labels; the limit is 64`)
}

func TestMatch(t *testing.T) {
	t.Parallel()
	l := Labels{"role": "trainer", "zone": "a", "spot": ""}
	assert.True(t, l.Match(nil))
	assert.True(t, l.Match(Labels{"zone": "a"}))
	assert.True(t, l.Match(Labels{"spot": ""}))
	assert.True(t, l.Match(l))
	assert.False(t, l.Match(Labels{"zone": "b"}))
	assert.False(t, l.Match(Labels{"zone": "a", "role": ""}))
	assert.False(t, l.Match(Labels{"rack": ""}), "a label that is not there is not an empty one")
	assert.False(t, Labels(nil).Match(Labels{"zone": "a"}))
}

func TestTextOfLabelsParsesBack(t *testing.T) {
	t.Parallel()
	name := rapid.StringMatching(`[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?`)
	prefixed := rapid.StringMatching(`([a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?\.){0,9}[a-z0-9]/[A-Za-z0-9]`)
	rapid.Check(t, func(t *rapid.T) {
		l := Labels(rapid.MapOfN(rapid.OneOf(name, prefixed), rapid.OneOf(rapid.Just(""), name), 1, 5).Draw(t, "labels"))
		require.NoError(t, l.Check())
		parsed, err := ParseLabels(strings.Split(l.String(), ",")...)
		require.NoError(t, err)
		if !maps.Equal(l, parsed) {
			t.Fatalf("%v is parsed as %v", l, parsed)
		}
		clone := l.Clone()
		clone["-"] = "" // no valid key, so that it is not drawn
		require.True(t, clone.Match(l))
		require.False(t, l.Match(clone))
	})
}

func FuzzParseLabels(f *testing.F) {
	f.Add("role=trainer", "zone=a")
	f.Add("example.com/a=", "a/b/c=d")
	f.Fuzz(func(t *testing.T, a, b string) {
		l, err := ParseLabels(a, b)
		if err != nil {
			require.Less(t, len(err.Error()), 1000)
			return
		}
		require.NoError(t, l.Check())
		again, err := ParseLabels(strings.Split(l.String(), ",")...)
		require.NoError(t, err)
		require.Equal(t, l, again)
		require.True(t, l.Match(again))
	})
}
