package contract

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/invariants"
	raylink "github.com/raylink/raylink/runtime"
)

// actionKey is the metadata that selects an action, which the probe's Fail, Count, Sum and Chat run
// first.
const actionKey = "probe-act"

// octets are a binary value that is neither ASCII nor UTF-8.
const octets = "\x00\xfe\xff,\n"

// errorText is not UTF-8; callers get it as repaired.
const errorText, repaired = "bad octets \xff\xfe here", "bad octets \uFFFD here"

// actions are what a call can have the probe do, by name.
var actions = map[string]func(*raylink.Call) error{
	"race":    raceMetadata,
	"nothing": func(*raylink.Call) error { return nil },
	"headers": func(c *raylink.Call) error { return say(c, "early", "late") },
	"headers and an error": func(c *raylink.Call) error {
		return errors.Join(say(c, "early", "late"), connect.NewError(connect.CodeAborted, "enough"))
	},
	"see": func(c *raylink.Call) error {
		var seen []string
		for key, value := range c.Metadata().All() {
			if strings.HasPrefix(key, "see-") {
				seen = append(seen, key+"="+hex.EncodeToString([]byte(value)))
			}
		}
		c.SetHeader("probe-seen", strings.Join(seen, " "))
		return nil
	},
	"illegal header":  func(c *raylink.Call) error { c.SetHeader("who", "Łukasz"); return nil },
	"illegal trailer": func(c *raylink.Call) error { c.SetTrailer("why", "a\nb"); return nil },
	"reserved header": func(c *raylink.Call) error { c.SetHeader("content-type", "text/plain"); return nil },
	"large trailer":   func(c *raylink.Call) error { c.SetTrailer("big", strings.Repeat("x", 1<<20)); return nil },
	"large trailer and an error": func(c *raylink.Call) error {
		c.SetTrailer("big", strings.Repeat("x", 1<<20))
		return withDetail(connect.NewError(connect.CodeDataLoss, "the real reason"), "more of it")
	},
	"illegal header and an error": func(c *raylink.Call) error {
		c.SetHeader("who", "Łukasz")
		return withDetail(connect.NewError(connect.CodeDataLoss, "the real reason"), "more of it")
	},
	"code 0":   func(*raylink.Call) error { return connect.NewError(0, "no such code") },
	"code 17":  func(*raylink.Call) error { return connect.NewError(17, "no such code") },
	"code 999": func(*raylink.Call) error { return connect.NewError(999, "no such code") },
	"octets":   func(*raylink.Call) error { return errors.New(errorText) },
	"octets and a detail": func(*raylink.Call) error {
		return withDetail(connect.NewError(connect.CodeDataLoss, errorText), "more of it")
	},
	"octets in a panic": func(*raylink.Call) error { panic(errorText) },
	"large error": func(*raylink.Call) error {
		return withDetail(connect.NewError(connect.CodeDataLoss, "the reason "+strings.Repeat("x", 2<<20)), "more of it")
	},
	"large detail": func(*raylink.Call) error {
		return withDetail(connect.NewError(connect.CodeDataLoss, "the real reason"), strings.Repeat("x", 2<<20))
	},
	"empty text": func(*raylink.Call) error { return connect.NewError(connect.CodeAborted, "") },
}

func say(c *raylink.Call, header, trailer string) error {
	for _, value := range []string{"1", "2"} {
		c.SetHeader("probe-"+header, value)
		c.SetTrailer("probe-"+trailer, value)
	}
	c.SetHeader("probe-octets-bin", octets)
	c.SetTrailer("probe-octets-bin", octets)
	return nil
}

func withDetail(err *connect.Error, text string) error {
	d, derr := connectproto.NewErrorDetail(&contractv1.Detail{Text: text})
	if derr != nil {
		return derr
	}
	return err.WithDetail(d)
}

// act runs the action that the call's metadata selects.
func act(ctx context.Context) error {
	call := raylink.CallFrom(ctx)
	if do := actions[call.Metadata().Get(actionKey)]; do != nil {
		return do(call)
	}
	return nil
}

// shape is one way to make a call.
type shape struct {
	name string
	call func(ctx context.Context, p *contractv1raylink.Probe) error
}

// shapes are the ways to make a call that carries only what its context has. Each returns the
// call's outcome.
func shapes(way Way) []shape {
	list := []shape{
		{"sync", func(ctx context.Context, p *contractv1raylink.Probe) error {
			_, err := p.Fail(ctx, &contractv1.FailRequest{Nothing: true})
			return err
		}},
		{"async", func(ctx context.Context, p *contractv1raylink.Probe) error {
			// The response's metadata can be read once the future is done.
			_, err := p.FailAsync(ctx, &contractv1.FailRequest{Nothing: true}).Get(context.WithoutCancel(ctx))
			return err
		}},
		{"server stream", func(ctx context.Context, p *contractv1raylink.Probe) error {
			stream, err := p.Count(ctx, &contractv1.CountRequest{})
			if err != nil {
				return err
			}
			_, err = stream.Receive()
			return ended(err)
		}},
		{"client stream", func(ctx context.Context, p *contractv1raylink.Probe) error {
			stream, err := p.Sum(ctx)
			if err != nil {
				return err
			}
			_, err = stream.CloseAndReceive()
			return err
		}},
	}
	if way.HalfDuplex {
		return list
	}
	return append(list, shape{"bidi stream", func(ctx context.Context, p *contractv1raylink.Probe) error {
		stream, err := p.Chat(ctx)
		if err != nil {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		_, err = stream.Receive()
		return ended(err)
	}})
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// carryTests check that what a call can carry is the same on every way.
func carryTests() []callTest {
	return []callTest{
		{"calls of every shape have headers and trailers, with and without messages", testHeaders},
		{"binary metadata is the same octets on both sides", testBinaryMetadata},
		{"metadata that can't be carried is refused before the call begins", testIllegalMetadata},
		{"a response's metadata that can't be carried fails the call, but keeps its error", testIllegalReply},
		{"errors that can't be carried unchanged keep what can be carried", testOddErrors},
		{"messages that can't be encoded are refused by their sender", testUnsendable},
		{"messages that can't be decoded fail only their call", testUndecodable},
		{"a reused context carries nothing from one call to the next", testReusedContext},
		{"several calls can use one context at once", testSharedContext},
		{"deadlines may be far away or in the past", testDeadlines},
	}
}

func testHeaders(t *testing.T, way Way, p *contractv1raylink.Probe) {
	for _, what := range []string{"headers", "headers and an error"} {
		for _, s := range shapes(way) {
			ctx, info := connect.NewClientContext(raylink.WithMetadata(patient(t), actionKey, what))
			err := s.call(ctx, p)
			if what == "headers" {
				require.NoError(t, err, s.name)
			} else {
				require.Equal(t, connect.CodeAborted, connect.CodeOf(err), "%s: %v", s.name, err)
			}
			assert.Equal(t, []string{"1", "2"}, info.ResponseHeader().Values("probe-early"), "%s, %s", what, s.name)
			assert.Equal(t, []string{"1", "2"}, info.ResponseTrailer().Values("probe-late"), "%s, %s", what, s.name)
			assert.Empty(t, info.ResponseHeader().Values("probe-late"), "%s, %s", what, s.name)
			for _, h := range []*connect.Header{info.ResponseHeader(), info.ResponseTrailer()} {
				got, err := connect.DecodeBinaryHeader(h.Get("probe-octets-bin"))
				require.NoError(t, err)
				assert.Equal(t, octets, string(got), "%s, %s", what, s.name)
			}
		}
	}
	// A stream's header is available with its first message, its trailer at its end.
	ctx, info := connect.NewClientContext(raylink.WithMetadata(patient(t), actionKey, "headers"))
	stream, err := p.Count(ctx, &contractv1.CountRequest{To: 2})
	require.NoError(t, err)
	_, err = stream.Receive()
	require.NoError(t, err)
	if !way.EndsOnClose { // where ways may differ: connect's in-process transport has the header at the end only
		assert.Equal(t, []string{"1", "2"}, info.ResponseHeader().Values("probe-early"))
	}
	assert.Empty(t, info.ResponseTrailer().Values("probe-late"))
	_, err = stream.Receive()
	require.NoError(t, err)
	_, err = stream.Receive()
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, []string{"1", "2"}, info.ResponseHeader().Values("probe-early"))
	assert.Equal(t, []string{"1", "2"}, info.ResponseTrailer().Values("probe-late"))
}

// seen returns the metadata with keys that begin with `see-`, as the probe received it.
func seen(info *connect.CallInfo) []string {
	return strings.Fields(info.ResponseHeader().Get("probe-seen"))
}

func testBinaryMetadata(t *testing.T, way Way, p *contractv1raylink.Probe) {
	for _, s := range shapes(way) {
		ctx, info := connect.NewClientContext(raylink.WithMetadata(patient(t), actionKey, "see"))
		for _, value := range []string{octets, "", "plain"} {
			ctx = raylink.WithMetadata(ctx, "See-Bin", value) //nolint:fatcontext // each is for one call
		}
		require.NoError(t, s.call(ctx, p), s.name)
		want := []string{"see-bin=" + hex.EncodeToString([]byte(octets)), "see-bin=", "see-bin=" + hex.EncodeToString([]byte("plain"))}
		assert.Equal(t, want, seen(info), s.name)

		// connect's headers have base64, padded or not, with several values joined or not.
		ctx, info = connect.NewClientContext(raylink.WithMetadata(patient(t), actionKey, "see"))
		info.RequestHeader().Add("See-Bin", "AP4=,AP4, AP7/")
		info.RequestHeader().Add("See-Bin", "/w")
		require.NoError(t, s.call(ctx, p), s.name)
		assert.Equal(t, []string{"see-bin=00fe", "see-bin=00fe", "see-bin=00feff", "see-bin=ff"}, seen(info), s.name)
	}
}

func testIllegalMetadata(t *testing.T, way Way, p *contractv1raylink.Probe) {
	refused := func(ctx context.Context, code connect.Code, key string) {
		t.Helper()
		text := ""
		for _, s := range shapes(way) {
			err := s.call(raylink.WithMetadata(ctx, actionKey, "code 17"), p)
			require.Equal(t, code, connect.CodeOf(err), "%s, %q: %v", s.name, key, err)
			require.ErrorContains(t, err, key)
			e, ok := errors.AsType[*connect.Error](err)
			require.True(t, ok)
			require.False(t, e.IsRemote(), "the caller's side must refuse it")
			if text == "" {
				text = err.Error()
			}
			require.Equal(t, text, err.Error(), s.name)
		}
	}
	for _, pair := range [][2]string{
		{"name", "Łukasz"},
		{"name", "a\nb: c"},
		{"name", "a\x00b"},
		{"name", "caf\xe9"},
		{"name", " spaced "},
		{"name", "tab\there"},
		{"a key", "v"},
		{"", "v"},
		{"a:b", "v"},
		{":path", "/"},
		{"schlüssel", "v"},
		{"a\nb", "v"},
		{"content-type", "text/plain"},
		{"raylink-node", "nobody-0"},
		{"connection", "close"},
		{"Host", "elsewhere"},
		{"grpc-timeout", "1n"},
		{"te", "x"},
		{"content-length", "3"},
		{"user-agent", "me"},
		{"authorization", "Bearer mine"},
		{"transfer-encoding", "chunked"},
		{"origin", "http://elsewhere"},
		{"trailer-x", "v"},
		{"connect-timeout-ms", "1"},
	} {
		refused(raylink.WithMetadata(patient(t), pair[0], pair[1]), connect.CodeInvalidArgument, strings.ToLower(fmt.Sprintf("%q", pair[0])))
	}
	ctx, info := connect.NewClientContext(patient(t))
	info.RequestHeader().Add("see-bin", octets)
	refused(ctx, connect.CodeInvalidArgument, `"see-bin"`)
	refused(raylink.WithMetadata(patient(t), "big", strings.Repeat("x", 40<<10)), connect.CodeResourceExhausted, "exceeds the limit of 32768")
	ctx = patient(t)
	for range 1000 {
		ctx = raylink.WithMetadata(ctx, "k", "v") //nolint:fatcontext // that is the point
	}
	refused(ctx, connect.CodeResourceExhausted, "exceeds the limit of 32768")

	// Valid metadata arrives.
	ctx, info = connect.NewClientContext(raylink.WithMetadata(patient(t), actionKey, "see"))
	ctx = raylink.WithMetadata(raylink.WithMetadata(ctx, "See-A_b.c", "a, b;c = \"~\""), "see-a_b.c", "")
	require.NoError(t, shapes(way)[0].call(ctx, p))
	assert.Equal(t, []string{"see-a_b.c=" + hex.EncodeToString([]byte("a, b;c = \"~\"")), "see-a_b.c="}, seen(info))
	require.NoError(t, shapes(way)[0].call(raylink.WithMetadata(patient(t), "big", strings.Repeat("x", 31<<10)), p))
}

// withAction makes a call of every shape with metadata that selects an action.
func withAction(t *testing.T, way Way, p *contractv1raylink.Probe, what string, check func(shape string, err error)) {
	t.Helper()
	for _, s := range shapes(way) {
		err := s.call(raylink.WithMetadata(patient(t), actionKey, what), p)
		require.Error(t, err, "%s, %s", what, s.name)
		check(what+", "+s.name, err)
	}
}

func testIllegalReply(t *testing.T, way Way, p *contractv1raylink.Probe) {
	for _, what := range []string{"illegal header", "illegal trailer", "reserved header", "large trailer"} {
		withAction(t, way, p, what, func(name string, err error) {
			require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%s: %v", name, err)
			assert.Contains(t, err.Error(), "metadata", name)
		})
	}
	for _, what := range []string{"large trailer and an error", "illegal header and an error"} {
		withAction(t, way, p, what, func(name string, err error) { wantError(t, name, err, connect.CodeDataLoss, "the real reason", 1) })
	}
}

func wantError(t *testing.T, name string, err error, code connect.Code, text string, details int) {
	t.Helper()
	e, ok := errors.AsType[*connect.Error](err)
	require.True(t, ok, "%s: %v", name, err)
	assert.Equal(t, code, e.Code(), "%s: %v", name, err)
	assert.Equal(t, text, e.Message(), name)
	assert.Len(t, e.Details(), details, name)
}

func testOddErrors(t *testing.T, way Way, p *contractv1raylink.Probe) {
	for _, what := range []string{"code 0", "code 17", "code 999"} {
		withAction(t, way, p, what, func(name string, err error) { wantError(t, name, err, connect.CodeUnknown, "no such code", 0) })
	}
	withAction(t, way, p, "octets", func(name string, err error) { wantError(t, name, err, connect.CodeUnknown, repaired, 0) })
	withAction(t, way, p, "octets and a detail", func(name string, err error) { wantError(t, name, err, connect.CodeDataLoss, repaired, 1) })
	withAction(t, way, p, "octets in a panic", func(name string, err error) {
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), name)
		assert.Contains(t, err.Error(), repaired, name)
	})
	text := ""
	withAction(t, way, p, "large error", func(name string, err error) {
		require.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), name)
		require.Contains(t, err.Error(), "the reason xxx", name)
		require.Less(t, len(err.Error()), 64<<10, name)
		if text == "" {
			text = err.Error()
		}
		require.Equal(t, text, err.Error(), name)
	})
	withAction(t, way, p, "large detail", func(name string, err error) {
		require.Equal(t, connect.CodeDataLoss, connect.CodeOf(err), name)
		require.Contains(t, err.Error(), "the real reason", name)
	})
	withAction(t, way, p, "empty text", func(name string, err error) { require.Equal(t, connect.CodeAborted, connect.CodeOf(err), name) })
	_, err := p.Add(patient(t), nil)
	require.NoError(t, err, "the connection must remain usable")
}

func testUnsendable(t *testing.T, way Way, p *contractv1raylink.Probe) {
	if way.Local && (way.Foreign || !invariants.Messages) {
		// Where ways may differ: inside a process messages are passed without encoding. With the
		// build tag invariants they are encoded to check that they could be.
		return
	}
	ctx := patient(t)
	bad := "caf\xe9"
	request := func(name, method, field string, err error) {
		t.Helper()
		want := "a request of contract.v1.Probe/" + method + " can't be sent: the field contract.v1." + field + " is a string that is not UTF-8"
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s: %v", name, err)
		require.ErrorContains(t, err, want, name)
	}
	_, err := p.Who(ctx, &contractv1.WhoRequest{Key: bad})
	request("sync", "Who", "WhoRequest.key", err)
	_, err = p.WhoAsync(ctx, &contractv1.WhoRequest{Key: bad}).Get(ctx)
	request("async", "Who", "WhoRequest.key", err)
	_, err = p.Count(ctx, &contractv1.CountRequest{Fail: bad})
	request("server stream", "Count", "CountRequest.fail", err)
	if !way.HalfDuplex {
		stream, err := p.Chat(ctx)
		require.NoError(t, err)
		request("bidi stream", "Chat", "ChatRequest.text", stream.Send(&contractv1.ChatRequest{Text: bad}))
		require.NoError(t, stream.Close())
	}
	response := func(name, method, field string, err error) {
		t.Helper()
		want := "a response of contract.v1.Probe/" + method + " can't be sent: the field contract.v1." + field + " is a string that is not UTF-8"
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%s: %v", name, err)
		require.ErrorContains(t, err, want, name)
	}
	ctx = raylink.WithMetadata(ctx, actionKey, "unsendable")
	_, err = p.Who(ctx, nil)
	response("sync", "Who", "WhoResponse.caller_path", err)
	_, err = p.WhoAsync(ctx, nil).Get(ctx)
	response("async", "Who", "WhoResponse.caller_path", err)
	if !way.HalfDuplex {
		stream, err := p.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, stream.Send(&contractv1.ChatRequest{Text: "x"}))
		_, err = stream.Receive()
		response("bidi stream", "Chat", "ChatResponse.text", err)
	}
	_, err = p.Add(patient(t), nil)
	require.NoError(t, err, "the connection must remain usable")
}

// undecodable adds to a message what can be encoded but not decoded: fields that are nested too
// deeply.
func undecodable(msg proto.Message) {
	var groups []byte
	for range protowire.DefaultRecursionLimit + 10 {
		groups = protowire.AppendTag(groups, 1000, protowire.StartGroupType)
	}
	for range protowire.DefaultRecursionLimit + 10 {
		groups = protowire.AppendTag(groups, 1000, protowire.EndGroupType)
	}
	msg.ProtoReflect().SetUnknown(groups)
}

func testUndecodable(t *testing.T, way Way, p *contractv1raylink.Probe) {
	if way.JSON || way.Local && (way.Foreign || !invariants.Messages) {
		// Where ways may differ: inside a process messages are passed without encoding, and JSON
		// has no unknown fields.
		return
	}
	ctx := patient(t)
	check := func(name, method string, code connect.Code, err error) {
		t.Helper()
		what := "a response"
		if code == connect.CodeInvalidArgument {
			what = "a request"
		}
		require.Equal(t, code, connect.CodeOf(err), "%s: %v", name, err)
		require.ErrorContains(t, err, "decoding "+what+" of contract.v1.Probe/"+method, name)
	}
	who, count := &contractv1.WhoRequest{}, &contractv1.CountRequest{To: 1}
	undecodable(who)
	undecodable(count)
	_, err := p.Who(ctx, who)
	check("sync", "Who", connect.CodeInvalidArgument, err)
	who = &contractv1.WhoRequest{}
	undecodable(who)
	_, err = p.WhoAsync(ctx, who).Get(ctx)
	check("async", "Who", connect.CodeInvalidArgument, err)
	counts, err := p.Count(ctx, count)
	if err == nil {
		_, err = counts.Receive()
	}
	check("server stream", "Count", connect.CodeInvalidArgument, err)
	sum, err := p.Sum(ctx)
	require.NoError(t, err)
	number := &contractv1.SumRequest{}
	undecodable(number)
	if err := sum.Send(number); err != nil {
		require.ErrorIs(t, err, io.EOF)
	}
	_, err = sum.CloseAndReceive()
	check("client stream", "Sum", connect.CodeInvalidArgument, err)
	if !way.HalfDuplex {
		stream, err := p.Chat(ctx)
		require.NoError(t, err)
		text := &contractv1.ChatRequest{}
		undecodable(text)
		require.NoError(t, stream.Send(text))
		_, err = stream.Receive()
		check("bidi stream", "Chat", connect.CodeInvalidArgument, err)
	}

	ctx = raylink.WithMetadata(ctx, actionKey, "undecodable")
	_, err = p.Who(ctx, nil)
	check("sync", "Who", connect.CodeInternal, err)
	_, err = p.WhoAsync(ctx, nil).Get(ctx)
	check("async", "Who", connect.CodeInternal, err)
	counts, err = p.Count(ctx, &contractv1.CountRequest{To: 3})
	require.NoError(t, err)
	_, err = counts.Receive()
	require.NoError(t, err)
	_, err = counts.Receive()
	check("server stream", "Count", connect.CodeInternal, err)
	require.NoError(t, counts.Close())
	sum, err = p.Sum(ctx)
	require.NoError(t, err)
	_, err = sum.CloseAndReceive()
	check("client stream", "Sum", connect.CodeInternal, err)
	_, err = p.Add(patient(t), nil)
	require.NoError(t, err, "the connection must remain usable")
}

func testReusedContext(t *testing.T, way Way, p *contractv1raylink.Probe) {
	ctx, info := connect.NewClientContext(raylink.WithMetadata(patient(t), "see-said", "a"))
	info.RequestHeader().Set("see-info", "b")
	for range 3 {
		for _, s := range shapes(way) {
			require.NoError(t, s.call(raylink.WithMetadata(ctx, actionKey, "see"), p), s.name)
			got := seen(info)
			require.ElementsMatch(t, []string{"see-said=61", "see-info=62"}, got, s.name)
			require.NoError(t, s.call(raylink.WithMetadata(ctx, actionKey, "nothing"), p), s.name)
			require.Empty(t, info.ResponseHeader().Values("probe-seen"), "%s: the header of an earlier call", s.name)
			require.NoError(t, s.call(raylink.WithMetadata(ctx, actionKey, "headers"), p), s.name)
			require.Equal(t, []string{"1", "2"}, info.ResponseHeader().Values("probe-early"), s.name)
			require.Error(t, s.call(raylink.WithMetadata(ctx, "a key", "v"), p), s.name)
			require.Zero(t, info.ResponseHeader().Len()+info.ResponseTrailer().Len(), "%s: metadata of an earlier call", s.name)
		}
	}
	require.Equal(t, 1, info.RequestHeader().Len(), "the caller's own headers must not change")
}

func testSharedContext(t *testing.T, way Way, p *contractv1raylink.Probe) {
	ctx, info := connect.NewClientContext(raylink.WithMetadata(patient(t), actionKey, "headers"))
	info.RequestHeader().Set("see-info", "b")
	const callers = 8
	errs := make(chan error, callers)
	for range callers {
		go func() {
			var err error
			for range 3 {
				for _, s := range shapes(way) {
					err = errors.Join(err, s.call(ctx, p))
				}
			}
			errs <- err
		}()
	}
	for range callers {
		require.NoError(t, <-errs)
	}
	require.Equal(t, []string{"1", "2"}, info.ResponseHeader().Values("probe-early"))
}

func testDeadlines(t *testing.T, way Way, p *contractv1raylink.Probe) {
	for _, far := range []time.Duration{math.MaxInt64, 290 * 365 * 24 * time.Hour, 200_000 * time.Hour, 200 * 24 * time.Hour} {
		ctx, cancel := context.WithTimeout(t.Context(), far)
		res, err := p.Who(ctx, nil)
		require.NoError(t, err, far)
		assert.False(t, res.GetHasDeadline(), "a deadline as far away as %v counts as none", far)
		for _, s := range shapes(way) {
			require.NoError(t, s.call(ctx, p), "%v, %s", far, s.name)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*24*time.Hour)
	defer cancel()
	res, err := p.Who(ctx, nil)
	require.NoError(t, err)
	assert.True(t, res.GetHasDeadline())
	assert.InDelta(t, (60 * 24 * time.Hour).Hours(), res.GetRemaining().AsDuration().Hours(), 1)
	for _, late := range []time.Duration{-time.Hour, math.MinInt64, 0, 1} {
		ctx, cancel := context.WithTimeout(t.Context(), late)
		for _, s := range shapes(way) {
			err := s.call(ctx, p)
			require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v, %s: %v", late, s.name, err)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		cancel()
	}
}
