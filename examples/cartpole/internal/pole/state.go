package pole

import "math"

// The physics, in SI units. The task is that of A. G. Barto, R. S. Sutton and C. W. Anderson,
// "Neuronlike adaptive elements that can solve difficult learning control problems" (1983). The
// equations are those of R. V. Florian, "Correct equations for the dynamics of the cart-pole
// system" (2007), without friction. The numbers are Gymnasium's.
const (
	gravity  = 9.8
	cartMass = 1.0
	poleMass = 0.1
	// halfPole is the distance from the hinge to the pole's centre of mass.
	halfPole  = 0.5
	pushForce = 10.0
	// tick is the duration of a step.
	tick = 0.02

	totalMass = cartMass + poleMass
)

// State is the position and velocity of the cart and the pole.
type State struct {
	Position, Velocity float64
	// Angle is 0 if the pole is upright, and positive if it leans to the right.
	Angle, AngularVelocity float64
}

// Step returns the state one tick later, under a horizontal force on the cart, by Euler's method:
// positions change by the previous velocities, as with Gymnasium's `kinematics_integrator =
// "euler"`.
func (s State) Step(force float64) State {
	linear, angular := s.accelerations(force)
	return State{
		Position:        s.Position + tick*s.Velocity,
		Velocity:        s.Velocity + tick*linear,
		Angle:           s.Angle + tick*s.AngularVelocity,
		AngularVelocity: s.AngularVelocity + tick*angular,
	}
}

// accelerations returns the accelerations of the cart and the pole: Florian's equations (23) and
// (24) without friction.
func (s State) accelerations(force float64) (linear, angular float64) {
	sin, cos := math.Sincos(s.Angle)
	pushed := (force + poleMass*halfPole*s.AngularVelocity*s.AngularVelocity*sin) / totalMass
	angular = (gravity*sin - cos*pushed) / (halfPole * (4.0/3 - poleMass*cos*cos/totalMass))
	linear = pushed - poleMass*halfPole*angular*cos/totalMass
	return linear, angular
}

func (s State) fallen() bool {
	return math.Abs(s.Position) > trackEnd || math.Abs(s.Angle) > maxAngle
}

func (s State) observe() Observation {
	return Observation{float32(s.Position), float32(s.Velocity), float32(s.Angle), float32(s.AngularVelocity)}
}
