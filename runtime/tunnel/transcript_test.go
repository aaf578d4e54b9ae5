package tunnel_test

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
	"github.com/raylink/raylink/runtime/tunnel/memnet"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts in testdata")

// transcript is a script of commands. Each is followed by a line of dashes, the frames on the wire
// and the results:
//
//	> a frame from the dialler in hexadecimal, with 00*100 for a run of 100 zero bytes
//	< a frame from the accepting side
//	= a result that the caller of a command observed
//
// It is recorded between two tunnels, and then replayed against each side alone.
type transcript struct {
	path   string
	blocks []*block
}

type block struct {
	comment  []string
	commands []string
	lines    []string
}

func parseTranscript(t *testing.T, path string) *transcript {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	s := &transcript{path: path}
	for chunk := range strings.SplitSeq(string(data), "\n\n") {
		b, results := &block{}, false
		for line := range strings.SplitSeq(strings.TrimRight(chunk, "\n"), "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
				b.comment = append(b.comment, line)
			case line == "----":
				results = true
			case results:
				b.lines = append(b.lines, line)
			case line != "":
				b.commands = append(b.commands, line)
			}
		}
		s.blocks = append(s.blocks, b)
	}
	return s
}

func (s *transcript) write(t *testing.T) {
	t.Helper()
	var chunks []string
	for _, b := range s.blocks {
		lines := append(append([]string{}, b.comment...), b.commands...)
		if len(b.commands) > 0 {
			lines = append(append(lines, "----"), b.lines...)
		}
		chunks = append(chunks, strings.Join(lines, "\n"))
	}
	require.NoError(t, os.WriteFile(s.path, []byte(strings.Join(chunks, "\n\n")+"\n"), 0o600))
}

// packed encodes bytes in hexadecimal, with runs of one byte abbreviated.
func packed(b []byte) string {
	var out strings.Builder
	for len(b) > 0 {
		run := 1
		for run < len(b) && b[run] == b[0] {
			run++
		}
		if run >= 16 {
			fmt.Fprintf(&out, " %02x*%d ", b[0], run)
			b = b[run:]
			continue
		}
		fmt.Fprintf(&out, "%02x", b[0])
		b = b[1:]
	}
	return strings.Join(strings.Fields(out.String()), " ")
}

func unpacked(t *testing.T, text string) []byte {
	t.Helper()
	text, _, _ = strings.Cut(text, "  # ")
	var out []byte
	for part := range strings.FieldsSeq(text) {
		digits, times, run := strings.Cut(part, "*")
		b, err := hex.DecodeString(digits)
		require.NoError(t, err, part)
		n := 1
		if run {
			n, err = strconv.Atoi(times)
			require.NoError(t, err)
		}
		for range n {
			out = append(out, b...)
		}
	}
	return out
}

// frames formats the bytes of one direction, one frame per line.
func frames(direction string, b []byte) []string {
	var lines []string
	if strings.HasPrefix(string(b), tunnel.Preface) {
		lines = append(lines, fmt.Sprintf("%s %s  # preface", direction, packed(b[:len(tunnel.Preface)])))
		b = b[len(tunnel.Preface):]
	}
	for len(b) > 0 {
		if len(b) < tunnel.HeaderBytes || len(b) < tunnel.FrameBytes(b) {
			return append(lines, fmt.Sprintf("%s %s  # not a whole frame", direction, packed(b)))
		}
		n := tunnel.FrameBytes(b)
		lines = append(lines, fmt.Sprintf("%s %s  # %s", direction, packed(b[:n]), tunnel.DescribeFrame(b)))
		b = b[n:]
	}
	return lines
}

// wiretap is the network between two sides: it forwards what they send, and records it in order.
type wiretap struct {
	mu    sync.Mutex
	lines []string
	ways  []*way
}

// way is one direction of a wiretap.
type way struct {
	mark     string
	to       io.WriteCloser
	sent     []byte
	hasEnded bool
}

// connect forwards one direction from now on, by settle.
func (w *wiretap) connect(mark string, from io.Reader, to io.WriteCloser) {
	d := &way{mark: mark, to: to}
	w.ways = append(w.ways, d)
	go func() {
		buf := make([]byte, 1<<20)
		for {
			n, err := from.Read(buf)
			w.mu.Lock()
			d.sent = append(d.sent, buf[:n]...)
			d.hasEnded = err != nil
			w.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

// settle forwards until neither side sends more. What a side sends before it waits is forwarded as
// one: how many writes that takes, and how these meet the other side's, is not in the protocol.
func (w *wiretap) settle() {
	for {
		synctest.Wait()
		w.mu.Lock()
		i := slices.IndexFunc(w.ways, func(d *way) bool { return len(d.sent) > 0 || d.hasEnded })
		if i < 0 {
			w.mu.Unlock()
			return
		}
		d := w.ways[i]
		run := d.sent
		if d.sent = nil; len(run) > 0 {
			w.lines = append(w.lines, frames(d.mark, run)...)
		} else {
			w.ways = slices.Delete(w.ways, i, i+1)
		}
		w.mu.Unlock()
		if len(run) == 0 {
			_ = d.to.Close()
		} else if _, err := d.to.Write(run); err != nil {
			_ = d.to.Close()
		}
	}
}

func (w *wiretap) result(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, "= "+line)
}

func (w *wiretap) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := w.lines
	w.lines = nil
	// The order of results and frames depends on the scheduler, so results are sorted last.
	slices.SortStableFunc(lines, func(a, b string) int {
		isResult := func(line string) int {
			if line[0] == '=' {
				return 1
			}
			return 0
		}
		return isResult(a) - isResult(b)
	})
	return lines
}

// scripted is the handler of the calls in transcripts.
type scripted struct {
	mu   sync.Mutex
	held []*tunnel.Incoming
}

func (s *scripted) ServeUnary(in *tunnel.Incoming) {
	switch in.Procedure {
	case "/echo.v1.Echo/Fail":
		in.SetTrailer(in.Header())
		in.Reply(nil, connect.NewError(connect.CodeAborted, "failed").
			WithDetail(&connect.ErrorDetail{Type: "google.protobuf.StringValue", Value: []byte("\x0a\x02hi")}))
	case "/echo.v1.Echo/Hold":
		s.mu.Lock()
		s.held = append(s.held, in)
		s.mu.Unlock()
	default:
		echoUnary(in)
	}
}

func (*scripted) ServeStream(ctx context.Context, in *tunnel.Incoming, stream connect.ServerStream) error {
	return echoStream(ctx, in, stream)
}

// stage runs the commands of a transcript: on both sides, or on one side while the script takes the
// place of the other.
type stage struct {
	t       *testing.T
	tap     *wiretap
	client  *tunnel.Conn
	server  *tunnel.Conn
	handler *scripted
	calls   map[string]*tunnel.Call
	streams map[string]connect.ClientStream
	cancels map[string]context.CancelFunc
	ctx     context.Context //nolint:containedctx // the test's own
}

func newStage(ctx context.Context, t *testing.T) *stage {
	t.Helper()
	return &stage{
		t: t, ctx: ctx, tap: &wiretap{}, handler: &scripted{},
		calls: make(map[string]*tunnel.Call), streams: make(map[string]connect.ClientStream), cancels: make(map[string]context.CancelFunc),
	}
}

var (
	clientConfig = tunnel.WithNonce("the dialling side's nonce, fixed", tunnel.Config{Token: "secret", Logger: silent(), Keepalive: 5 * time.Second, MaxFragmentBytes: 65 << 10})
	serverConfig = tunnel.WithNonce("the accepting side's nonce, same", tunnel.Config{
		Token: "secret", Logger: silent(), Keepalive: time.Hour, StreamWindow: 80 << 10, MaxStreamWindow: 80 << 10,
		Window: 1 << 20, MaxFragmentBytes: 65 << 10,
	})
)

func (s *stage) dial(nc *memnet.Conn) {
	conn, err := tunnel.Dial(s.ctx, nc, tunnel.Hello{Host: "server", Client: "client", Build: "1"}, clientConfig)
	require.NoError(s.t, err)
	s.client = conn
}

func (s *stage) accept(nc *memnet.Conn) {
	conn, err := tunnel.Accept(s.ctx, nc, serverConfig, tunnel.Welcome{Host: "server", Build: "1"}, admit(s.handler))
	require.NoError(s.t, err)
	s.server = conn
}

// command runs one command, if the side that it concerns is a tunnel here.
func (s *stage) command(line string) {
	words := strings.Fields(line)
	arg := make(map[string]string)
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		arg[key] = value
	}
	name := arg["id"]
	body := []byte(arg["body"])
	if size, err := strconv.Atoi(arg["size"]); err == nil {
		body = make([]byte, size)
	}
	result := func(format string, args ...any) { s.tap.result(name + " " + fmt.Sprintf(format, args...)) }
	switch words[0] {
	case "wait":
		d, err := time.ParseDuration(words[1])
		require.NoError(s.t, err)
		for ; d > 0; d -= time.Second {
			<-time.After(min(d, time.Second))
			s.tap.settle()
		}
		return
	case "reply", "shutdown-server":
		if s.server == nil {
			return
		}
	default:
		if s.client == nil {
			return
		}
	}
	var header tunnel.Header
	if arg["header"] != "" {
		header.Set("key", arg["header"])
	}
	switch words[0] {
	case "unary":
		ctx := s.contextOf(name, arg["timeout"])
		res := &wrapperspb.BytesValue{}
		call := &tunnel.Call{
			Target: "node-1", Caller: arg["caller"], Procedure: "/echo.v1.Echo/" + arg["method"], Header: header, Chain: []byte(arg["chain"]),
			Request: wrapperspb.Bytes(body), Response: res,
		}
		call.Done = func(c *tunnel.Call) {
			result("%d bytes, header %v, trailer %v, error %v", len(res.GetValue()), c.ResponseHeader, c.ResponseTrailer, c.Err)
		}
		s.calls[name] = call
		if err := s.client.Start(ctx, call); err != nil {
			result("%v", err)
		}
	case "cancel":
		s.calls[name].Cancel(context.Canceled)
	case "reply":
		s.handler.mu.Lock()
		in := s.handler.held[0]
		s.handler.held = s.handler.held[1:]
		s.handler.mu.Unlock()
		in.Reply(wrapperspb.Bytes(body), in.Context().Err())
	case "stream":
		ctx := s.contextOf(name, arg["timeout"])
		stream, err := s.client.Stream(ctx, tunnel.StreamRequest{
			Target: "node-1", Caller: arg["caller"], Procedure: "/echo.v1.Echo/Stream", StreamType: connect.StreamTypeBidi, Header: header,
		})
		require.NoError(s.t, err)
		s.streams[name] = stream
		require.NoError(s.t, stream.SendHeaders())
	case "send":
		go func() {
			if err := s.streams[name].Send(wrapperspb.Bytes(body)); err != nil {
				result("send: %v", err)
			}
		}()
	case "close-send":
		require.NoError(s.t, s.streams[name].CloseSend())
	case "receive":
		go func() {
			msg := &wrapperspb.BytesValue{}
			err := s.streams[name].Receive(msg)
			result("received %d bytes, error %v", len(msg.GetValue()), err)
		}()
	case "close":
		require.NoError(s.t, s.streams[name].Close())
	case "shutdown":
		go func() { _ = s.client.Shutdown(s.ctx) }()
	case "shutdown-server":
		go func() { _ = s.server.Shutdown(s.ctx) }()
	default:
		s.t.Fatalf("unknown command %q", line)
	}
}

func (s *stage) contextOf(name, timeout string) context.Context {
	ctx, cancel := context.WithCancel(s.ctx)
	if d, err := time.ParseDuration(timeout); err == nil {
		cancel()
		ctx, cancel = context.WithTimeout(s.ctx, d)
	}
	s.cancels[name] = cancel
	return ctx
}

func (s *stage) end() {
	for _, cancel := range s.cancels {
		cancel()
	}
	if s.client != nil {
		_ = s.client.Close()
	}
	if s.server != nil {
		_ = s.server.Close()
	}
}

// both records a run between two tunnels.
func (s *transcript) both(t *testing.T) [][]string {
	st := newStage(t.Context(), t)
	near, proxyNear := memnet.Pipe()
	proxyFar, far := memnet.Pipe()
	st.tap.connect(">", proxyNear, proxyFar)
	st.tap.connect("<", proxyFar, proxyNear)
	var got [][]string
	for _, b := range s.blocks {
		for _, c := range b.commands {
			if c == "dial" {
				go st.accept(far)
				go st.dial(near)
			} else {
				st.command(c)
			}
			st.tap.settle()
		}
		got = append(got, st.tap.take())
	}
	st.end()
	st.tap.settle()
	return got
}

// one replays the frames of one side against a tunnel on the other side.
func (s *transcript) one(t *testing.T, dialler bool) {
	st := newStage(t.Context(), t)
	end, played := memnet.Pipe()
	mine := map[bool]string{true: ">", false: "<"}[dialler]
	for _, b := range s.blocks {
		for _, c := range b.commands {
			switch {
			case c == "dial" && dialler:
				go st.dial(end)
			case c == "dial":
				go st.accept(end)
			default:
				st.command(c)
			}
			if c != b.commands[len(b.commands)-1] {
				synctest.Wait()
			}
		}
		synctest.Wait()
		for i := 0; i < len(b.lines); {
			direction, run := b.lines[i][:1], []byte{}
			for ; i < len(b.lines) && b.lines[i][:1] == direction && direction != "="; i++ {
				run = append(run, unpacked(t, b.lines[i][2:])...)
			}
			switch direction {
			case "=":
				i++
			case mine:
				got := make([]byte, len(run))
				require.NoError(t, played.SetReadDeadline(time.Now().Add(time.Millisecond)))
				n, err := io.ReadFull(played, got)
				require.NoError(t, err, "block %q: after %d of %d bytes", b.commands, n, len(run))
				require.Equal(t, frames(mine, run), frames(mine, got), "block %q", b.commands)
			default:
				_, err := played.Write(run)
				require.NoError(t, err)
				synctest.Wait()
			}
		}
		var results []string
		for _, line := range b.lines {
			if dialler && line[0] == '=' {
				results = append(results, line)
			}
		}
		var seen []string
		for _, line := range st.tap.take() {
			if line[0] == '=' {
				seen = append(seen, line)
			}
		}
		if dialler {
			require.ElementsMatch(t, results, seen)
		}
	}
	st.end()
	_ = played.Close()
	synctest.Wait()
}

// TestTranscripts fixes the wire format: two tunnels send exactly what the transcripts of this
// version contain, and each side alone sends and observes the same when the transcript is replayed
// against it.
func TestTranscripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/transcripts/v2/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			s := parseTranscript(t, path)
			var got [][]string
			synctest.Test(t, func(t *testing.T) { got = s.both(t) })
			if *rewrite {
				for i, b := range s.blocks {
					b.lines = got[i]
				}
				s.write(t)
				return
			}
			for i, b := range s.blocks {
				require.Equal(t, strings.Join(b.lines, "\n"), strings.Join(got[i], "\n"), "block %q; -rewrite records the new one", b.commands)
			}
			synctest.Test(t, func(t *testing.T) { s.one(t, true) })
			synctest.Test(t, func(t *testing.T) { s.one(t, false) })
		})
	}
}
