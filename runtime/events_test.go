package runtime

import (
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	block := make(chan struct{})
	var first sync.WaitGroup
	first.Add(1)
	var got []string
	e := newEvents([]EventListener{{NodeDied: func(e NodeDiedInfo) {
		if got = append(got, e.Reason); len(got) == 1 {
			first.Done()
			<-block
		}
	}}}, slog.New(slog.NewTextHandler(&log, nil)))
	emit(e, e.nodeStarted, NodeStartedInfo{}) // nothing listens for it
	emit(e, e.nodeDied, NodeDiedInfo{Reason: "first"})
	first.Wait()
	for range maxEvents + 7 {
		emit(e, e.nodeDied, NodeDiedInfo{Reason: "next"})
	}
	close(block)
	require.NoError(t, e.flush())
	assert.Len(t, got, 1+maxEvents)
	assert.Contains(t, log.String(), "events=7")
	require.NoError(t, (*events)(nil).flush())
	assert.Nil(t, newEvents(nil, nil))
}
