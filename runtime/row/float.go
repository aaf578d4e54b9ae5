package row

import "math"

// Float is a type of floating-point numbers.
type Float interface{ ~float32 | ~float64 }

// Float16 returns the bits of the IEEE 754 binary16 number that is nearest to v; of two equally
// near ones, that whose last bit is 0. A number beyond the largest, 65504, by half a unit in the
// last place or more becomes an infinity.
func Float16[F Float](v F) uint16 { return narrow(float64(v), 10, 15) }

// FromFloat16 returns the value of a binary16 number. Every one is a float32 too.
func FromFloat16[F Float](element uint16) F { return F(widen(element, 10, 15)) }

// BFloat16 returns the bits of the bfloat16 number that is nearest to v, as [Float16] does.
func BFloat16[F Float](v F) uint16 { return narrow(float64(v), 7, 127) }

// FromBFloat16 returns the value of a bfloat16 number. Every one is a float32 too.
func FromBFloat16[F Float](element uint16) F { return F(widen(element, 7, 127)) }

// narrow rounds v to a number of 16 bits: a sign, an exponent with a bias, and a fraction of so
// many bits. Numbers below the least normal one are multiples of the least positive one.
func narrow(v float64, fraction, bias int) uint16 {
	sign := uint16(math.Float64bits(v)>>48) & 0x8000
	infinity := uint16(2*bias+1) << fraction //nolint:gosec // 15 bits
	if math.IsNaN(v) {
		return sign | infinity | 1<<(fraction-1)
	}
	if math.IsInf(v, 0) {
		return sign | infinity
	}
	if v == 0 {
		return sign
	}
	// v is m * 2^exponent, and m in [1/2, 1). The unit in the last place does not fall below that
	// of the least normal number.
	_, exponent := math.Frexp(v)
	unit := max(exponent-1, 1-bias) - fraction
	units := math.RoundToEven(math.Ldexp(math.Abs(v), -unit))
	// Biased exponent and fraction are one number, into whose exponent the highest bit of the units
	// carries, as does a fraction that was rounded up to the next power of two.
	encoded := uint64(unit+fraction+bias-1)<<fraction + uint64(units) //nolint:gosec // neither is negative
	return sign | uint16(min(encoded, uint64(infinity)))              //nolint:gosec // 15 bits
}

// widen is the inverse of narrow.
func widen(element uint16, fraction, bias int) float64 {
	bits := int(element & 0x7fff)
	exponent, rest := bits>>fraction, bits&(1<<fraction-1)
	var v float64
	switch {
	case exponent == 2*bias+1 && rest != 0:
		v = math.NaN()
	case exponent == 2*bias+1:
		v = math.Inf(1)
	case exponent == 0:
		v = math.Ldexp(float64(rest), 1-bias-fraction)
	default:
		v = math.Ldexp(float64(rest|1<<fraction), exponent-bias-fraction)
	}
	if element&0x8000 != 0 {
		return math.Copysign(v, -1)
	}
	return v
}
