package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowControl is a ResponseWriter whose SetReadDeadline blocks until released is closed.
type slowControl struct {
	http.ResponseWriter

	released chan struct{}
	begun    int
}

func (s *slowControl) SetReadDeadline(time.Time) error {
	s.begun++
	<-s.released
	return nil
}

// TestHandlerWaitsForTheTransportsCloseOfItsBody ensures that the transport, which closes a
// request's body on a goroutine of its own, does not use a ResponseWriter whose handler has
// returned: it may serve another request by then.
func TestHandlerWaitsForTheTransportsCloseOfItsBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowControl{ResponseWriter: httptest.NewRecorder(), released: make(chan struct{})}
		body := newRequestBody(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader("x")))
		go func() { _ = body.Close() }() // the transport's
		synctest.Wait()
		returned := false
		go func() {
			_ = body.Close() // the handler's
			returned = true
		}()
		synctest.Wait()
		if returned {
			t.Error("the handler returned while its ResponseWriter was in use")
		}
		close(w.released)
		synctest.Wait()
		if !returned || w.begun != 1 {
			t.Errorf("returned is %v and the deadline was set %d times, want true and once", returned, w.begun)
		}
	})
}
