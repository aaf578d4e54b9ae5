package launch

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGoldenTranscript has one of each frame, as the two ends send them. A change here is a change
// of the protocol, which needs another controlVersion.
func TestGoldenTranscript(t *testing.T) {
	var got strings.Builder
	for _, said := range []struct {
		who  string
		kind kind
		body []byte
	}{
		{"parent", kindStart, versioned([]byte("what to be"))},
		{"child", kindHello, versioned([]byte("build/id"))},
		{"child", kindLine, encodeLine(Line{Path: "a-0/b-1", Stream: Stdout, Text: "a line"})},
		{"child", kindLine, encodeLine(Line{Path: "a-0", Stream: Stderr})},
		{"child", kindReady, []byte("an address")},
		{"child", kindFailed, []byte("a reason")},
		{"child", kindReady, nil},
		{"parent", kindStop, nil},
	} {
		var frame bytes.Buffer
		require.NoError(t, writeFrame(&frame, said.kind, said.body))
		_, _ = fmt.Fprintf(&got, "%s: %s\n%s\n", said.who, said.kind, hex.Dump(frame.Bytes()))
	}
	const golden = "testdata/transcript.txt"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), got.String())
}

func TestFramesAreReceivedAsSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type frame struct {
			k    kind
			body []byte
		}
		frames := rapid.SliceOf(rapid.Custom(func(t *rapid.T) frame {
			k := kind(rapid.IntRange(int(kindStart), int(kindGoodbye)).Draw(t, "kind"))
			return frame{k, rapid.SliceOfN(rapid.Byte(), 0, min(100, k.limit())).Draw(t, "body")}
		})).Draw(t, "frames")
		var wire bytes.Buffer
		for _, f := range frames {
			require.NoError(t, writeFrame(&wire, f.k, f.body))
		}
		r := iotest.OneByteReader(&wire)
		for _, f := range frames {
			k, body, err := readFrame(r)
			require.NoError(t, err)
			require.Equal(t, f.k, k)
			require.True(t, bytes.Equal(f.body, body))
		}
		_, _, err := readFrame(r)
		require.Equal(t, io.EOF, err)
	})
}

func TestFramesOverTheirLimitAreRefused(t *testing.T) {
	require.ErrorContains(t, writeFrame(io.Discard, kindStop, []byte{1}), "over the limit of 0")
	require.ErrorContains(t, writeFrame(io.Discard, kindHello, make([]byte, 5000)), "over the limit")
	for _, wire := range []string{
		"\x00\x00\x00\x00\x04", // a length without its kind
		"\x00\x00\x00\x02\x02", // a stop with a body
		"\xff\xff\xff\xff\x04", // 4 GiB
		"\x00\x00\x00\x01\x00", // an unknown kind
		"\x00\x00\x00\x01\x08",
		"\x00\x00\x00\x09\x04short",
		"\x00\x00\x00",
	} {
		_, _, err := readFrame(strings.NewReader(wire))
		var broken *protocolError
		require.ErrorAs(t, err, &broken, "%q", wire)
	}
	// A length within the limit allocates nothing by itself.
	allocated := testing.AllocsPerRun(10, func() {
		_, _, _ = readFrame(strings.NewReader("\x03\xff\xff\xff\x04only this"))
	})
	assert.Less(t, allocated, 20.0)
}

func TestLineThatIsTooLongIsCut(t *testing.T) {
	sent := Line{Path: strings.Repeat("p", maxPath+1), Stream: Stderr, Text: strings.Repeat("t", MaxLine+1)}
	got, err := decodeLine(encodeLine(sent))
	require.NoError(t, err)
	assert.Equal(t, Line{Path: sent.Path[:maxPath], Stream: Stderr, Text: sent.Text[:MaxLine]}, got)
	for _, body := range []string{
		"", "\x01\x00", "\x00\x00\x00no stream", "\x03\x00\x00no stream", "\x01\x00\x09short",
		"\x01\xff\xff" + strings.Repeat("x", math.MaxUint16),
	} {
		_, err := decodeLine([]byte(body))
		require.Error(t, err)
	}
}

func TestVersionsAreCompared(t *testing.T) {
	talk := conversation{build: "b"}
	_, err := talk.receive(kindHello, []byte{0, controlVersion + 1, 'b'})
	require.ErrorContains(t, err, "control version 2, but this end speaks version 1")
	_, err = talk.receive(kindHello, []byte{0})
	require.ErrorContains(t, err, "without a version")
	require.False(t, talk.greeted)
}

// FuzzConversation has a child send arbitrary bytes.
func FuzzConversation(f *testing.F) {
	var wire bytes.Buffer
	for _, said := range []struct {
		k    kind
		body []byte
	}{{kindHello, versioned([]byte("b"))}, {kindLine, encodeLine(Line{"p", Stdout, "t"})}, {kindReady, []byte("r")}} {
		if err := writeFrame(&wire, said.k, said.body); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(wire.Bytes())
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	var stranger bytes.Buffer // of another build
	if err := writeFrame(&stranger, kindHello, versioned([]byte("another"))); err != nil {
		f.Fatal(err)
	}
	f.Add(stranger.Bytes())
	f.Fuzz(func(t *testing.T, wire []byte) {
		if _, err := converse(wire); err != nil {
			t.Fatal(err)
		}
	})
}

// converse has a parent of build "b" read what is on the wire, and checks what must hold for any
// input. It returns the number of lines.
func converse(wire []byte) (lines int, err error) {
	talk := conversation{build: "b"}
	r := bytes.NewReader(wire)
	var resaid bytes.Buffer
	for {
		k, body, err := readFrame(r)
		if err != nil {
			break
		}
		line, err := talk.receive(k, body)
		if err != nil {
			break
		}
		if err := writeFrame(&resaid, k, body); err != nil {
			return lines, fmt.Errorf("accepted what can't be sent: %w", err)
		}
		if line != nil {
			lines++
			if !bytes.Equal(encodeLine(*line), body) {
				return lines, fmt.Errorf("the line %+v was %x on the wire", line, body)
			}
		}
	}
	switch greeting := "\x00\x00\x00\x04\x03\x00\x01b"; {
	case !bytes.HasPrefix(wire, resaid.Bytes()):
		return lines, fmt.Errorf("received %x", resaid.Bytes())
	case resaid.Len() > 0 && !strings.HasPrefix(resaid.String(), greeting):
		return lines, fmt.Errorf("accepted frames of a process before it had proven that it is this build: %x", resaid.Bytes())
	case talk.setupDone && !talk.greeted, talk.failed && !talk.setupDone:
		return lines, fmt.Errorf("in an impossible state: %+v", talk)
	}
	return lines, nil
}

// TestConversationFollowsItsOrder compares the accepted order of a child's frames with a model.
func TestConversationFollowsItsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		talk := conversation{build: "b"}
		var greeted, setupDone, ready, goodbye bool
		for range rapid.IntRange(0, 10).Draw(t, "frames") {
			k := kind(rapid.IntRange(0, 9).Draw(t, "kind"))
			body := map[kind][]byte{kindHello: versioned([]byte("b")), kindLine: encodeLine(Line{"p", Stdout, "t"})}[k]
			allowed := k == kindHello && !greeted ||
				k == kindLine && greeted ||
				(k == kindReady || k == kindFailed) && greeted && !setupDone ||
				k == kindGoodbye && ready && !goodbye
			line, err := talk.receive(k, body)
			require.Equal(t, allowed, err == nil, "%s: %v", k, err)
			require.Equal(t, allowed && k == kindLine, line != nil)
			if !allowed {
				return // the process is killed
			}
			greeted = true
			setupDone = setupDone || k == kindReady || k == kindFailed
			ready, goodbye = ready || k == kindReady, goodbye || k == kindGoodbye
			require.Equal(t, setupDone, talk.setupDone)
			require.Equal(t, goodbye, talk.goodbye)
		}
	})
}
