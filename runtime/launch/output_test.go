package launch

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Lines are whole and in order however a stream is split into writes.
func TestSplitterKeepsEveryByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(utf8.UTFMax, 12).Draw(t, "max")
		lines := rapid.SliceOf(rapid.StringOf(rapid.RuneFrom([]rune("aé€🙂 \r")))).Draw(t, "lines")
		ended := rapid.Bool().Draw(t, "ended")
		stream := strings.Join(lines, "\n")
		if ended {
			stream += "\n"
		}
		var got []string
		split := splitter{max: limit, emit: func(text string) { got = append(got, text) }}
		for rest := []byte(stream); len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "write")
			split.write(rest[:n])
			rest = rest[n:]
		}
		split.flush()

		for _, text := range got {
			require.LessOrEqual(t, len(text), limit)
			require.True(t, utf8.ValidString(text), "a character was cut: %q", text)
		}
		// The model: the output must be the stream without line ends, in order, with a new piece at
		// each
		// line end.
		var want []string
		for i, line := range strings.Split(stream, "\n") {
			if i == strings.Count(stream, "\n") && line == "" {
				break
			}
			want = append(want, modelPieces(line, limit)...)
		}
		require.Equal(t, want, got)
	})
}

// modelPieces splits a line at the last whole character that fits, and removes one carriage return
// from its end.
func modelPieces(line string, limit int) []string {
	var pieces []string
	for len(line) > limit {
		cut := limit
		for !utf8.RuneStart(line[cut]) {
			cut--
		}
		pieces = append(pieces, line[:cut])
		line = line[cut:]
	}
	return append(pieces, strings.TrimSuffix(line, "\r"))
}

func TestSplitterTakesAnyBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stream := rapid.SliceOf(rapid.Byte()).Draw(t, "stream")
		var got strings.Builder
		split := splitter{max: 4, emit: func(text string) {
			require.NotEmpty(t, got.String()+text+"x")
			require.LessOrEqual(t, len(text), 4)
			got.WriteString(text)
		}}
		split.write(stream)
		split.flush()
		without := strings.NewReplacer("\n", "", "\r", "")
		require.Equal(t, without.Replace(string(stream)), without.Replace(got.String()))
	})
}

func TestTailKeepsTheLastLines(t *testing.T) {
	var kept tail
	assert.Empty(t, kept.lines())
	for n := range 2*tailLines + 7 {
		kept.add(Line{Stream: Stdout, Text: strconv.Itoa(n)})
		lines := kept.lines()
		require.Len(t, lines, min(n+1, tailLines))
		require.Equal(t, strconv.Itoa(n), lines[len(lines)-1].Text)
		require.Equal(t, strconv.Itoa(max(0, n+1-tailLines)), lines[0].Text)
	}
	kept.add(Line{Text: strings.Repeat("x", MaxLine)})
	lines := kept.lines()
	require.Len(t, lines[len(lines)-1].Text, tailLineSize+len("..."))
}

func TestTailKeepsTheCrash(t *testing.T) {
	texts := func(kept *tail) []string {
		lines := kept.lines()
		all := make([]string, 0, len(lines))
		for _, line := range lines {
			all = append(all, line.Text)
		}
		return all
	}
	var kept tail
	add := func(format string, n int) {
		for i := range n {
			kept.add(Line{Stream: Stderr, Text: fmt.Sprintf(format, i)})
		}
	}
	add("before %d", 3)
	add("panic: the sky is falling %d", 1)
	add("stack %d", 30)
	require.Len(t, texts(&kept), 34, "all of it fits")
	add("more %d", 16)
	require.Equal(t, "before 0", texts(&kept)[0])
	add("yet more %d", 10)
	got := texts(&kept)
	require.Equal(t, "panic: the sky is falling 0", got[0], "the crash is about to scroll out")
	require.Equal(t, "stack 0", got[1])
	require.NotContains(t, strings.Join(got, "\n"), "lines more", "nothing is missing in between")
	add("at last %d", 100)
	got = texts(&kept)
	require.Equal(t, "panic: the sky is falling 0", got[0])
	require.Equal(t, fmt.Sprintf("stack %d", crashLines-2), got[crashLines-1])
	require.Equal(t, "... 87 lines more ...", got[crashLines])
	require.Equal(t, "at last 99", got[len(got)-1])
	require.Len(t, got, crashLines+1+tailLines)

	add("fatal error: a second crash %d", 1)
	add("afterwards %d", 200)
	require.Equal(t, "fatal error: a second crash 0", texts(&kept)[0])
	kept.add(Line{Stream: Stdout, Text: "panic: is what my program is about"})
	add("afterwards %d", 200)
	require.Equal(t, "fatal error: a second crash 0", texts(&kept)[0], "crashes are printed on stderr")
}
