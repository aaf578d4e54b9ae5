package placement

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParentsMachineIsFilledOnce(t *testing.T) {
	c := newCrowd(t, newMachine("one", 4), newMachine("two", 1))
	places, err := c.a.Place(&Request{Count: 3, Resources: Resources{"cpu": Unit}, Parent: "id-two"})
	require.NoError(t, err)
	require.Equal(t, "id-two", places[0].Machine)
	require.Equal(t, "id-one", places[1].Machine)

	require.NoError(t, c.a.Join(newMachine("two", 3)))
	places, err = c.a.Place(&Request{Count: 5, Resources: Resources{"cpu": Unit}, Parent: "id-one"})
	require.NoError(t, err)
	require.Equal(t, "id-one", places[3].Machine)
	require.Equal(t, "id-two", places[4].Machine, "the parent's machine is full")
}

func TestChildrenDoNotPassRequestsThatWaitForTheParentsMachine(t *testing.T) {
	c := newCrowd(t, newMachine("one", 2))
	require.NoError(t, c.place(needs(1, 1, 0)))
	large := c.wait(needs(1, 2, 0))
	child := &Request{Count: 1, Resources: Resources{"cpu": Unit}, Parent: "id-one"}
	require.ErrorAs(t, c.place(child), new(*LackingError))
	small := c.wait(child)
	require.Empty(t, c.serve())
	c.a.Withdraw(large)
	require.Equal(t, []uint64{small}, c.serve(), "the request is served once the one before it is withdrawn")
}
