package runtime

import (
	"compress/gzip"
	"io"
	"math"
	"net/http"
	"sync"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectgzip"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"

	"github.com/raylink/raylink/internal/nodeurl"
	"github.com/raylink/raylink/internal/opaque"
)

const (
	// minCompress is the size of the smallest message that is compressed, in bytes: smaller ones
	// fit into one packet in any case.
	minCompress = 1400
	// sampleSize is the size of the sample that is compressed first, and least how much that must
	// save for the whole message to be compressed: one part in least.
	sampleSize = 16 << 10
	least      = 8
)

// responder serves a connect server over HTTP with two handlers: one never compresses responses,
// the other may. Both accept compressed requests.
type responder struct {
	host       *Host
	plain      http.Handler
	compressed func() http.Handler
}

// newResponder makes a responder.
func newResponder(h *Host, server *connect.Server) responder {
	mount := func(opts ...connecthttp.Option) http.Handler {
		mux := http.NewServeMux()
		connecthttp.Mount(mux, server, append(opts, connecthttp.WithReadMaxBytes(h.options.MaxMessage),
			connecthttp.WithCodecs(connectproto.NewBinaryCodec(), opaque.New()))...)
		return mux
	}
	bounded := func(c connect.Compressor) connecthttp.Option {
		return connecthttp.WithCompressors(boundedCompressor{c})
	}
	return responder{
		host:  h,
		plain: mount(connecthttp.WithCompressMinBytes(math.MaxInt), bounded(connectgzip.New())),
		compressed: sync.OnceValue(func() http.Handler { // few processes need it
			return mount(connecthttp.WithCompressMinBytes(minCompress), bounded(new(sampler)))
		}),
	}
}

// handler returns the handler for a request.
func (s responder) handler(r *http.Request) http.Handler {
	if s.host.guard.compression.Load() && (r.Header.Get(nodeurl.ViaHeader) != "" || !nodeurl.IsSameMachine(r)) {
		return s.compressed()
	}
	return s.plain
}

// sampler is a gzip [connect.Compressor] that first compresses a sample of a message. If that saves
// little, as for images or parameters, the message is stored uncompressed.
type sampler struct {
	connectgzip.Compressor

	fast, stored sync.Pool // of *gzip.Writer
}

// Name implements [connect.Compressor].
func (*sampler) Name() string { return connect.CompressionNameGzip }

// Compress implements [connect.Compressor].
func (s *sampler) Compress(dst io.Writer) (io.WriteCloser, error) {
	return &sampledWriter{sampler: s, dst: dst}, nil
}

func (s *sampler) writer(dst io.Writer, gains bool) (*gzip.Writer, *sync.Pool) {
	pool, level := &s.stored, gzip.NoCompression
	if gains {
		pool, level = &s.fast, gzip.BestSpeed
	}
	w, ok := pool.Get().(*gzip.Writer)
	if !ok {
		w, _ = gzip.NewWriterLevel(nil, level) // the level is valid
	}
	w.Reset(dst)
	return w, pool
}

// gains reports whether compressing a sample saves enough.
func (s *sampler) gains(sample []byte) bool {
	var size byteCount
	w, pool := s.writer(&size, true)
	defer pool.Put(w)
	_, err := w.Write(sample)
	return err == nil && w.Close() == nil && int(size) < len(sample)-len(sample)/least
}

// byteCount counts the bytes that are written.
type byteCount int

func (c *byteCount) Write(p []byte) (int, error) {
	*c += byteCount(len(p))
	return len(p), nil
}

// sampledWriter compresses one message.
type sampledWriter struct {
	sampler *sampler
	dst     io.Writer
	w       *gzip.Writer
	pool    *sync.Pool
}

// Write implements [io.Writer]. Connect writes a message with one call.
func (w *sampledWriter) Write(p []byte) (int, error) {
	if w.w == nil {
		w.w, w.pool = w.sampler.writer(w.dst, w.sampler.gains(p[:min(len(p), sampleSize)]))
	}
	return w.w.Write(p)
}

// Close implements [io.Closer].
func (w *sampledWriter) Close() error {
	if w.w == nil {
		w.w, w.pool = w.sampler.writer(w.dst, false)
	}
	err := w.w.Close()
	w.w.Reset(nil)
	w.pool.Put(w.w)
	return err
}
