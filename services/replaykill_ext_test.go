package services_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/replay/ring"
)

type countColumns struct{ N []int64 }

func countRow() row.Type[countColumns] {
	return row.Type[countColumns]{Generated: &row.GeneratedRow[countColumns]{
		Message: "test.Count",
		Columns: []row.GeneratedColumn{{Name: "n", DType: tensorv1.DataType_DATA_TYPE_INT64, Bytes: 8}},
		View:    func(c *countColumns, columns [][]byte) { c.N = row.GeneratedView[int64](columns[0]) },
	}}
}

// elsewhere is a replay whose clients can't map its ring, as though it was on another machine.
type elsewhere struct{ *replayv1raylink.Replay }

func (e elsewhere) Describe(ctx context.Context, req *replayv1.DescribeRequest) (*replayv1.DescribeResponse, error) {
	res, err := e.Replay.Describe(ctx, req)
	if res != nil {
		res.File += ".elsewhere"
	}
	return res, err
}

// Feed forwards the stream of a writer.
func (e elsewhere) Feed(ctx context.Context, from replayv1raylink.ReplayFeedServerStream) error {
	to, err := e.Replay.Feed(ctx)
	if err != nil {
		return err
	}
	return forward(from, to)
}

// Draw forwards the stream of a sampler.
func (e elsewhere) Draw(ctx context.Context, from replayv1raylink.ReplayDrawServerStream) error {
	to, err := e.Replay.Draw(ctx)
	if err != nil {
		return err
	}
	return forward(from, to)
}

// forward forwards what either end of a stream sends to the other one.
func forward[Request, Response any](from interface {
	Receive() (Request, error)
	Send(res Response) error
}, to interface {
	Send(req Request) error
	Receive() (Response, error)
	CloseSend() error
	Close() error
},
) error {
	go func() {
		for {
			req, err := from.Receive()
			if err != nil || to.Send(req) != nil {
				_ = to.CloseSend() // the responses say why
				return
			}
		}
	}()
	for {
		res, err := to.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = from.Send(res)
		}
		if err != nil {
			return errors.Join(err, to.Close())
		}
	}
}

// Checkpoint is not called here.
func (elsewhere) Checkpoint(context.Context, *replayv1.CheckpointRequest, replayv1raylink.ReplayCheckpointServerStream) error {
	return errors.ErrUnsupported
}

// gone reports whether an error says that the node or its process is not there any more.
func gone(err error) bool {
	return errors.Is(err, ring.ErrOrphaned) || errors.Is(err, ring.ErrEnded) || connect.CodeOf(err) == connect.CodeUnavailable
}

// TestKilledReplayFailsAllThatWaitsForIt kills the process of a replay while samplers wait for
// items, writers for samples, and writers for room. Each must fail within a second, and name this
// reason.
func TestKilledReplayFailsAllThatWaitsForIt(t *testing.T) {
	for _, way := range []string{"mapped", "remote"} {
		t.Run(way, func(t *testing.T) {
			ctx := t.Context()
			handle, err := replayv1raylink.CreateReplay(ctx, driver, &replayv1.ReplayConfig{
				Capacity: 100, Columns: countRow().Columns(), Tables: []*replayv1.TableConfig{
					replay.Table("empty"), replay.Table("full", replay.FIFO(), replay.Queue(1)),
				},
			})
			require.NoError(t, err)
			pid := pidOf(t, handle.Ref())
			holder, err := replay.Open(ctx, handle, countRow())
			require.NoError(t, err)
			steps := holder
			if way == "remote" {
				steps, err = replay.Open(ctx, replayv1raylink.NewLocalReplay(elsewhere{handle}), countRow())
				require.NoError(t, err)
			}
			require.Equal(t, way == "mapped", steps.Client().Mapped())

			w, err := steps.Writer(replay.History(1), replay.Unconfirmed(2))
			require.NoError(t, err)
			require.NoError(t, w.Append(ctx, 100, func(*countColumns) {}))
			for range 3 { // one in the table, two on their way
				_, err := w.Item(ctx, "full", 1, 1)
				require.NoError(t, err)
			}
			area, err := holder.Newest(ctx, 100)
			require.NoError(t, err)

			waiting := map[string]func() error{
				"an item that waits for samples": func() error {
					_, err := w.Item(context.Background(), "full", 1, 1)
					return err
				},
			}
			for _, n := range []int{1, 80} {
				waiting[fmt.Sprintf("an append of %d rows that waits for room", n)] = func() error {
					writer, err := steps.Writer()
					if err != nil {
						return err
					}
					if err := writer.Append(context.Background(), n, func(*countColumns) {}); err != nil {
						return err
					}
					return writer.Flush(context.Background()) // a remote writer's rows may be on their way
				}
			}
			for _, prefetch := range []int{0, 1, 4} {
				s, err := steps.Sampler("empty", replay.Prefetch(prefetch), replay.BatchOf(4))
				require.NoError(t, err)
				waiting[fmt.Sprintf("a sampler that draws %d batches ahead", prefetch)] = func() error {
					_, err := s.Next(context.Background())
					return errors.Join(err, s.Close())
				}
			}
			type result struct {
				name string
				err  error
				at   time.Time
			}
			results := make(chan result, len(waiting))
			for name, wait := range waiting {
				go func() {
					err := wait()
					results <- result{name, err, time.Now()}
				}()
			}
			require.Eventually(t, func() bool {
				empty, err := handle.Inspect(ctx, &replayv1.InspectRequest{Table: "empty"})
				if err != nil || len(empty.GetTables()[0].GetBlocked()) < 3 {
					return false
				}
				full, err := handle.Inspect(ctx, &replayv1.InspectRequest{Table: "full"})
				return err == nil && len(full.GetTables()[0].GetBlocked()) == 1
			}, 20*time.Second, 5*time.Millisecond)
			require.Never(t, func() bool { return len(results) > 0 }, 100*time.Millisecond, 20*time.Millisecond, "all of them wait")

			killed := time.Now()
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			for range len(waiting) {
				select {
				case r := <-results:
					require.True(t, gone(r.err), "%s: %v", r.name, r.err)
					require.Less(t, r.at.Sub(killed), time.Second, r.name)
					t.Logf("%s: after %v: %v", r.name, r.at.Sub(killed).Round(time.Millisecond), r.err)
				case <-time.After(20 * time.Second):
					require.Fail(t, "something still waits")
				}
			}
			require.NoError(t, area.Release())
			require.NoError(t, errors.Join(steps.Close(), holder.Close()))
		})
	}
}
