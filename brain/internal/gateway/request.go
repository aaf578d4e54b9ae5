package gateway

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// requestBody is a caller's request body on its way to a host. Closing it interrupts a Read.
//
// A host may answer before it has read all that the caller sends, with an error for example. The
// transport then closes the body and waits until nobody reads it any more, before the response is
// at its end; and the caller, who has seen the error, may wait for the response's end before it
// sends or ends anything. Without the interruption each waits for the other.
type requestBody struct {
	io.ReadCloser

	control *http.ResponseController
	ended   atomic.Bool
	closed  atomic.Bool
	// done is closed when the first Close is through. The transport closes the body on a goroutine
	// of its own, and once the handler has returned, its ResponseWriter must not be used any more.
	done chan struct{}
}

func newRequestBody(w http.ResponseWriter, r *http.Request) *requestBody {
	return &requestBody{ReadCloser: r.Body, control: http.NewResponseController(w), done: make(chan struct{})}
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return n, err //nolint:wrapcheck // the transport compares with io.EOF
}

// Close implements io.Closer. The server closes what is below. When Close returns, no other Close
// is under way, so that a handler that has closed its body may return.
func (b *requestBody) Close() error {
	if b.closed.Swap(true) {
		<-b.done
		return nil
	}
	defer close(b.done)
	// After the end there is nothing to interrupt, and over HTTP/1.1 a deadline would look like the
	// caller's going away.
	if b.ended.Load() {
		return nil
	}
	if err := b.control.SetReadDeadline(time.Unix(1, 0)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err //nolint:wrapcheck // as a body's Close
	}
	return nil
}
