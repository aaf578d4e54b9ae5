//go:build unguarded

package generator

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/descriptorpb"
)

// The checker of names notices a plugin whose names don't yield.
func TestCheckerNoticesNamesThatMeet(t *testing.T) {
	pkg := packageOf(t, []*descriptorpb.ServiceDescriptorProto{
		{Name: new("Learner"), Method: []*descriptorpb.MethodDescriptorProto{
			{Name: new("Ref"), InputType: new(".x.M"), OutputType: new(".x.M")},
		}},
		{Name: new("LearnerN")},
	})
	err := meeting(pkg)
	require.ErrorContains(t, err, "CreateLearnerN is declared twice in the package")
	require.ErrorContains(t, err, "Ref is declared twice in Learner")
}
