package raylink_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/thirdparty"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/thirdparty/thirdpartyraylink"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/thirdparty/v2/thirdpartyv2raylink"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

// echo responds with its name and the request.
type echo string

func (e echo) Do(_ context.Context, req *thirdparty.Text) (*thirdparty.Text, error) {
	return &thirdparty.Text{Text: string(e) + " " + req.GetText()}, nil
}

// meeting is a Learner whose Do waits for another, concurrent call.
type meeting struct{ met chan struct{} }

func (m meeting) Do(ctx context.Context, _ *thirdparty.Text) (*thirdparty.Text, error) {
	select {
	case m.met <- struct{}{}:
	case <-m.met:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return &thirdparty.Text{}, nil
}

func (m meeting) Peek(ctx context.Context, req *thirdparty.Text) (*thirdparty.Text, error) {
	return m.Do(ctx, req)
}

// learner is an echo with a method Peek.
type learner struct {
	echo

	node *runtime.Node
}

func (l learner) Peek(ctx context.Context, req *thirdparty.Text) (*thirdparty.Text, error) {
	return l.Do(ctx, req)
}

// caller calls a learner by path and waits for it, sync and async.
type caller struct{ node *runtime.Node }

func (c caller) Do(ctx context.Context, req *thirdparty.Text) (*thirdparty.Text, error) {
	found, err := thirdpartyraylink.FindLearner(ctx, c.node, runtime.Path(req.GetText()))
	if err != nil {
		return nil, err
	}
	return found.PeekAsync(ctx, &thirdparty.Text{Text: "from " + c.node.Path()}).Get(ctx)
}

// back is a learner whose Do has a caller call its Peek, and waits: a cycle unless Peek is
// concurrent.
type back struct{ node *runtime.Node }

func (b back) Do(ctx context.Context, req *thirdparty.Text) (*thirdparty.Text, error) {
	through, err := thirdpartyv2raylink.FindLearner(ctx, b.node, runtime.Path(req.GetText()))
	if err != nil {
		return nil, err
	}
	return through.Do(ctx, &thirdparty.Text{Text: b.node.Path()})
}

func (b back) Peek(_ context.Context, req *thirdparty.Text) (*thirdparty.Text, error) {
	return &thirdparty.Text{Text: "peeked " + req.GetText()}, nil
}

func newMeeting(context.Context, *runtime.Node) (thirdpartyraylink.LearnerNode, error) {
	return meeting{make(chan struct{})}, nil
}

func newBack(_ context.Context, n *runtime.Node) (thirdpartyraylink.LearnerNode, error) {
	return back{n}, nil
}

// thirdPartyTypes are node types of third-party services.
func thirdPartyTypes() []raylink.Option {
	return []raylink.Option{
		thirdpartyraylink.StorageType(func(context.Context, *runtime.Node) (thirdpartyraylink.StorageNode, error) {
			return echo("their storage"), nil
		}),
		thirdpartyraylink.ReplayType(func(context.Context, *runtime.Node) (thirdpartyraylink.ReplayNode, error) {
			return echo("their replay"), nil
		}),
		thirdpartyraylink.BrainType(func(context.Context, *runtime.Node) (thirdpartyraylink.BrainNode, error) {
			return echo("their brain"), nil
		}),
		thirdpartyraylink.OfficerType(func(context.Context, *runtime.Node) (thirdpartyraylink.OfficerNode, error) {
			return echo("their officer"), nil
		}),
		thirdpartyraylink.CaptainType(func(context.Context, *runtime.Node) (thirdpartyraylink.CaptainNode, error) {
			return echo("their captain"), nil
		}),
		thirdpartyraylink.PsType(func(context.Context, *runtime.Node) (thirdpartyraylink.PsNode, error) {
			return echo("their ps"), nil
		}),
		thirdpartyraylink.LearnerType(func(_ context.Context, n *runtime.Node) (thirdpartyraylink.LearnerNode, error) {
			return learner{"v1", n}, nil
		}).Named("third-party-learner"),
		thirdpartyraylink.LearnerType(newMeeting).Named("wide-learner").Limits(runtime.Limits{MaxConcurrency: 2}),
		thirdpartyraylink.LearnerType(newBack).Named("back").Concurrent("Peek"),
		thirdpartyraylink.LearnerType(newBack).Named("back-two").Limits(runtime.Limits{MaxConcurrency: 2}),
		thirdpartyraylink.LearnerType(newBack).Named("back-one"),
		thirdpartyv2raylink.LearnerType(func(_ context.Context, n *runtime.Node) (thirdpartyv2raylink.LearnerNode, error) {
			return caller{n}, nil
		}).Named("learner-v"),
	}
}

// placed are the ways to place a node.
func placed() map[string]runtime.CreateOption {
	return map[string]runtime.CreateOption{"own process": runtime.OwnProcess(), "parent's process": runtime.ParentProcess()}
}

// TestServicesNamedLikeRaylinksOwnAreHosted creates nodes of third-party services Storage, Replay,
// Brain, Officer, Captain and Ps beside RayLink's own, each in a process of its own and in the
// driver's.
func TestServicesNamedLikeRaylinksOwnAreHosted(t *testing.T) {
	t.Parallel()
	for name, place := range placed() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := patient(t)
			type doer interface {
				Do(ctx context.Context, req *thirdparty.Text) (*thirdparty.Text, error)
				Ref() runtime.Ref
			}
			their := func(d doer, err error) {
				t.Helper()
				require.NoError(t, err)
				res, err := d.Do(ctx, &thirdparty.Text{Text: "x"})
				require.NoError(t, err)
				assert.Regexp(t, `^their [a-z]+ x$`, res.GetText())
				require.NoError(t, d.Ref().Stop(ctx))
			}
			their(thirdpartyraylink.CreateStorage(ctx, driver, place))
			their(thirdpartyraylink.CreateReplay(ctx, driver, place))
			their(thirdpartyraylink.CreateBrain(ctx, driver, place))
			their(thirdpartyraylink.CreateOfficer(ctx, driver, place))
			their(thirdpartyraylink.CreateCaptain(ctx, driver, place))
			their(thirdpartyraylink.CreatePs(ctx, driver, place))

			ours, err := storagev1raylink.CreateStorage(ctx, driver, nil, place)
			require.NoError(t, err)
			_, err = storage.Put(ctx, storage.New(ours), "k", int64(1))
			require.NoError(t, err)
			require.NoError(t, ours.Ref().Stop(ctx))
			_, err = replayv1raylink.CreateReplay(ctx, driver, nil, place)
			require.ErrorContains(t, err, "configure replay", "RayLink's type was used")
		})
	}
	of, err := storagev1raylink.FindStorage(patient(t), driver, runtime.Path("storage-0"))
	require.NoError(t, err, "storage-0 is RayLink's own")
	assert.Equal(t, storagev1raylink.StorageName, of.Ref().Service())
}

// TestTypesOfOneServiceAreDistinguishedByName has several types of one service in a process, here
// and in processes of their own.
func TestTypesOfOneServiceAreDistinguishedByName(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	_, err := thirdpartyraylink.CreateLearner(ctx, driver)
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	require.ErrorContains(t, err, "thirdparty.v1.Learner has several node types here, third-party-learner, wide-learner, back, back-two, back-one: "+
		"say which by runtime.OfType")
	_, err = thirdpartyraylink.CreateLearner(ctx, driver, runtime.OfType("learner-v"))
	require.ErrorContains(t, err, `type "learner-v" is thirdparty.v2.Learner in this process, not thirdparty.v1.Learner`)
	_, err = thirdpartyraylink.CreateLearner(ctx, driver, runtime.OfType("missing"))
	require.ErrorContains(t, err, `this binary has no node type "missing" of thirdparty.v1.Learner; it has `)
	for name, place := range placed() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := patient(t)
			first, err := thirdpartyraylink.CreateLearner(ctx, driver, runtime.OfType("third-party-learner"), place)
			require.NoError(t, err)
			assert.Regexp(t, `^third-party-learner-\d+$`, first.Ref().Name())
			found, err := thirdpartyraylink.FindLearner(ctx, driver, runtime.Path(first.Ref().Path()))
			require.NoError(t, err)
			res, err := found.Do(ctx, &thirdparty.Text{Text: "x"})
			require.NoError(t, err)
			assert.Equal(t, "v1 x", res.GetText())

			// The only type of a service need not be named.
			second, err := thirdpartyv2raylink.CreateLearner(ctx, driver, place)
			require.NoError(t, err)
			res, err = second.Do(ctx, &thirdparty.Text{Text: first.Ref().Path()})
			require.NoError(t, err)
			assert.Equal(t, "v1 from "+second.Ref().Path(), res.GetText())

			// Below a parent in another process, that process decides.
			child, err := thirdpartyv2raylink.CreateLearner(ctx, first.Ref(), place)
			require.NoError(t, err)
			assert.Equal(t, first.Ref().Path()+"/learner-v-0", child.Ref().Path())
			several, err := thirdpartyraylink.CreateLearnerN(ctx, first.Ref(), 2, runtime.OfType("back"), place)
			require.NoError(t, err)
			assert.Equal(t, first.Ref().Path()+"/back-1", several[1].Ref().Path())
			require.NoError(t, first.Ref().Stop(ctx))
			require.NoError(t, second.Ref().Stop(ctx))
		})
	}
}

// TestLimitsOfATypeOverrideItsSchema has a node with two turns and one with a concurrent method,
// whose schema has neither.
func TestLimitsOfATypeOverrideItsSchema(t *testing.T) {
	t.Parallel()
	for name, place := range placed() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := patient(t)
			wide, err := thirdpartyraylink.CreateLearner(ctx, driver, runtime.OfType("wide-learner"), place)
			require.NoError(t, err)
			first, second := wide.DoAsync(ctx, nil), wide.DoAsync(ctx, nil)
			_, err = first.Get(ctx)
			require.NoError(t, err, "two turns at once")
			_, err = second.Get(ctx)
			require.NoError(t, err)
			require.NoError(t, wide.Ref().Stop(ctx))

			// It is a cycle only if the node has no turn left and the method needs one.
			through, err := thirdpartyv2raylink.CreateLearner(ctx, driver, place)
			require.NoError(t, err)
			for _, kind := range []string{"back", "back-two"} {
				node, err := thirdpartyraylink.CreateLearner(ctx, driver, runtime.OfType(kind), place)
				require.NoError(t, err)
				res, err := node.Do(ctx, &thirdparty.Text{Text: through.Ref().Path()})
				require.NoError(t, err, kind)
				assert.Equal(t, "peeked from "+through.Ref().Path(), res.GetText())
				require.NoError(t, node.Ref().Stop(ctx))
			}
			node, err := thirdpartyraylink.CreateLearner(ctx, driver, runtime.OfType("back-one"), place)
			require.NoError(t, err)
			_, err = node.Do(ctx, &thirdparty.Text{Text: through.Ref().Path()})
			require.ErrorContains(t, err, "would wait for itself")
			require.NoError(t, node.Ref().Stop(ctx))
			require.NoError(t, through.Ref().Stop(ctx))
		})
	}
}

// TestInvalidTypesAreRefusedByInit has types with invalid names, limits and methods.
func TestInvalidTypesAreRefusedByInit(t *testing.T) {
	t.Parallel()
	one := thirdpartyraylink.LearnerType(newMeeting)
	other := thirdpartyv2raylink.LearnerType(func(_ context.Context, n *runtime.Node) (thirdpartyv2raylink.LearnerNode, error) {
		return caller{n}, nil
	})
	for want, types := range map[string][]raylink.Option{
		`two node types are called "learner", that of thirdparty.v1.Learner and that of thirdparty.v2.Learner: name one of the two, as by ` +
			`...Type(...).Named("learner-b")`: {one, other},
		`two node types are called "x"`:                                 {one.Named("x"), one.Named("x")},
		`a type is lower-case letters, digits and hyphens`:              {one.Named("Learner")},
		`a type is lower-case letters, digits`:                          {one.Named("")},
		`a type may not end in a hyphen and digits`:                     {one.Named("learner-2")},
		`with an index it would have the form of a nid`:                 {one.Named("deadbeef-dead-beef-dead")},
		`Limits: MaxPending is -1`:                                      {one.Limits(runtime.Limits{MaxPending: -1})},
		`Concurrent: the service has no method "Poke"; it has Do, Peek`: {one.Concurrent("Peek", "Poke")},
	} {
		_, err := raylink.Start(t.Context(), types...)
		require.ErrorContains(t, err, want)
	}
	rt, err := raylink.Start(t.Context(), one, other.Named("learner-b"))
	require.NoError(t, err)
	defer func() { require.NoError(t, rt.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Two types with one name in the schemas, one of which keeps it.
	first, err := thirdpartyraylink.CreateLearner(ctx, rt)
	require.NoError(t, err)
	assert.Equal(t, "learner-0", first.Ref().Path())
	second, err := thirdpartyv2raylink.CreateLearner(ctx, rt)
	require.NoError(t, err)
	assert.Equal(t, "learner-b-0", second.Ref().Path())
}
