package session

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
)

// keeperHost is a host that keeps a machine.
type keeperHost struct{ fakeHost }

func (*keeperHost) Machine() *machinev1.Machine { return &machinev1.Machine{Id: "the machine"} }

// LeaveMachine returns once Brain has recorded it, also if that is by another lease stream.
func TestLeavingAMachineIsAcknowledged(t *testing.T) {
	for name, breaks := range map[string]bool{"by the stream": false, "by the next stream": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var streams, declared atomic.Int32
				var recorded atomic.Bool
				b := &fakeBrain{watch: idle, attach: func(_ context.Context, st brainv1connect.BrainServiceAttachServerStream) error {
					first, err := st.Receive()
					if err != nil {
						return err
					}
					streams.Add(1)
					if first.GetMachine() != nil {
						declared.Add(1)
					} else {
						recorded.Store(true)
					}
					if err := st.Send(&brainv1.AttachResponse{Lease: durationpb.New(time.Minute)}); err != nil {
						return err
					}
					for {
						req, err := st.Receive()
						if err != nil || req.GetGoodbye() {
							return err
						}
						if req.GetLeaving() {
							if breaks {
								return errors.New("the stream breaks")
							}
							<-time.After(time.Millisecond)
							recorded.Store(true)
						}
						if err := st.Send(&brainv1.AttachResponse{Leaving: req.GetLeaving()}); err != nil {
							return err
						}
					}
				}}
				host := new(keeperHost)
				s, _ := start(t, b, time.Minute)
				s.config.Host = host
				defer spawn(s)()
				require.NoError(t, s.Attach(t.Context()))
				began := time.Now()
				s.LeaveMachine(t.Context())
				require.True(t, recorded.Load(), "it returns before Brain has recorded it")
				require.Less(t, time.Since(began), time.Second)
				require.EqualValues(t, 1, declared.Load(), "a machine that was left is declared again")
				s.Goodbye(t.Context())
				require.True(t, s.Acknowledged())
			})
		})
	}
}
