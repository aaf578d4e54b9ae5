package gateway

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// requestBody is a caller's request body that is forwarded to a host. Closing it interrupts a Read.
//
// A host may respond, for example with an error, before it has read everything that the caller
// sends. The transport then closes the body and waits for the last Read to return before the
// response ends; and the caller, which has received the error, may wait for the end of the response
// before it sends or ends anything. Without the interruption this is a deadlock.
type requestBody struct {
	io.ReadCloser

	control *http.ResponseController
	ended   atomic.Bool
	closed  atomic.Bool
	// done is closed when the first Close has returned. The transport closes the body on a
	// goroutine of its own, and the ResponseWriter must not be used after the handler has returned.
	done chan struct{}
}

func newRequestBody(w http.ResponseWriter, r *http.Request) *requestBody {
	return &requestBody{ReadCloser: r.Body, control: http.NewResponseController(w), done: make(chan struct{})}
}

// Read implements [io.Reader].
func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return n, err //nolint:wrapcheck // the transport compares it with io.EOF
}

// Close implements [io.Closer]. The underlying body is closed by the server. When Close returns, no
// other Close is in progress, so a handler that has closed its body may return.
func (b *requestBody) Close() error {
	if b.closed.Swap(true) {
		<-b.done
		return nil
	}
	defer close(b.done)
	// After the end of the body there is nothing to interrupt, and over HTTP/1.1 an expired
	// deadline would look like a disconnected caller.
	if b.ended.Load() {
		return nil
	}
	if err := b.control.SetReadDeadline(time.Unix(1, 0)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err //nolint:wrapcheck // errors of a body are passed through
	}
	return nil
}
