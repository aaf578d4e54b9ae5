package pole

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

// The equations of motion must obey the laws of mechanics. These tests do not repeat the equations:
// they check conservation laws that hold for any cart with a uniform pole, in any state.

// energy returns the energy of the cart and the pole. The pole's moment of inertia about its centre
// is m l²/3 for a rod of half length l.
func (s State) energy() float64 {
	sin, cos := math.Sincos(s.Angle)
	// The velocity of the pole's centre.
	across := s.Velocity + halfPole*s.AngularVelocity*cos
	up := -halfPole * s.AngularVelocity * sin
	spin := poleMass * halfPole * halfPole / 3 * s.AngularVelocity * s.AngularVelocity
	kinetic := cartMass*s.Velocity*s.Velocity + poleMass*(across*across+up*up) + spin
	return kinetic/2 + poleMass*gravity*halfPole*cos
}

// momentum returns the momentum along the track.
func (s State) momentum() float64 {
	return totalMass*s.Velocity + poleMass*halfPole*s.AngularVelocity*math.Cos(s.Angle)
}

// rate returns the time derivative of a quantity, by a symmetric difference.
func (s State) rate(quantity func(State) float64, force float64) float64 {
	const h = 1e-5
	linear, angular := s.accelerations(force)
	move := func(h float64) State {
		return State{
			Position:        s.Position + h*s.Velocity,
			Velocity:        s.Velocity + h*linear,
			Angle:           s.Angle + h*s.AngularVelocity,
			AngularVelocity: s.AngularVelocity + h*angular,
		}
	}
	return (quantity(move(h)) - quantity(move(-h))) / (2 * h)
}

func anyState(t *rapid.T) State {
	return State{
		Position:        rapid.Float64Range(-3, 3).Draw(t, "position"),
		Velocity:        rapid.Float64Range(-5, 5).Draw(t, "velocity"),
		Angle:           rapid.Float64Range(-math.Pi, math.Pi).Draw(t, "angle"),
		AngularVelocity: rapid.Float64Range(-5, 5).Draw(t, "angular velocity"),
	}
}

func TestEnergyChangesByWorkOfForce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		state, force := anyState(t), rapid.Float64Range(-20, 20).Draw(t, "force")
		assert.InDelta(t, force*state.Velocity, state.rate(State.energy, force), 1e-5)
	})
}

func TestMomentumChangesByForce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		state, force := anyState(t), rapid.Float64Range(-20, 20).Draw(t, "force")
		assert.InDelta(t, force, state.rate(State.momentum, force), 1e-5)
	})
}

func TestDynamicsAreMirrorSymmetric(t *testing.T) {
	t.Parallel()
	mirror := func(s State) State {
		return State{Position: -s.Position, Velocity: -s.Velocity, Angle: -s.Angle, AngularVelocity: -s.AngularVelocity}
	}
	rapid.Check(t, func(t *rapid.T) {
		state, force := anyState(t), rapid.Float64Range(-20, 20).Draw(t, "force")
		assert.Equal(t, mirror(state.Step(force)), mirror(state).Step(-force))
	})
}

func TestDynamicsAreTranslationInvariant(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		state, force := anyState(t), rapid.Float64Range(-20, 20).Draw(t, "force")
		moved := state
		moved.Position++
		linear, angular := state.accelerations(force)
		movedLinear, movedAngular := moved.accelerations(force)
		assert.InDelta(t, linear, movedLinear, 0)
		assert.InDelta(t, angular, movedAngular, 0)
	})
}
