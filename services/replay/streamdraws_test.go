package replay

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
)

// slowDraw is a stream of samples with a first request, whose responses wait to be sent.
type slowDraw struct {
	replayv1raylink.ReplayDrawServerStream

	request  *replayv1.DrawRequest
	end, run chan struct{}
	sent     []*replayv1.DrawResponse
}

func (s *slowDraw) Receive() (*replayv1.DrawRequest, error) {
	if req := s.request; req != nil {
		s.request = nil
		return req, nil
	}
	<-s.end
	return nil, io.EOF
}

func (s *slowDraw) Send(res *replayv1.DrawResponse) error {
	<-s.run
	s.sent = append(s.sent, res)
	return nil
}

// TestBatchesAreMadeWhileOneIsSent: what was made before an error is sent, and nothing after the
// sampler has ended the stream.
func TestBatchesAreMadeWhileOneIsSent(t *testing.T) {
	for name, ended := range map[string]bool{"error": false, "ended": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := testNode(t, pointsReplay(100, Table("queue", FIFO(), Queue(64))))
				w := itemWriter(t, typedPoints(t, open(t, n)), History(4))
				writeItems(t, w, "queue", 0, 1, 2, 4)
				open := &replayv1.DrawOpen{Table: "queue", Items: 1, Length: 3}
				s := &slowDraw{
					request: &replayv1.DrawRequest{Open: open, Batches: 3},
					end:     make(chan struct{}), run: make(chan struct{}),
				}
				result := make(chan error, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { result <- n.Draw(ctx, s) }()
				synctest.Wait()
				require.Empty(t, s.sent)
				require.EqualValues(t, 3, n.tables.byName["queue"].Inspect().Counts.Sampled, "all were drawn")
				if ended {
					close(s.end)
					synctest.Wait()
				}
				close(s.run)
				if err := <-result; ended {
					require.NoError(t, err)
					require.Len(t, s.sent, 1, "the one that was on its way")
					return
				}
				close(s.end)
				require.Len(t, s.sent, 3)
				require.Equal(t, n.ring.ID().String(), s.sent[0].GetRingId())
				require.EqualValues(t, 1, s.sent[1].GetRows())
				require.EqualValues(t, 2, s.sent[2].GetRows())
			})
		})
	}
}
