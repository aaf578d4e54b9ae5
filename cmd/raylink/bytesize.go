package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// byteSize is a flag's value: a number of bytes, written with or without a unit.
type byteSize uint64

// units are the units of sizes, ascending. Sizes are printed in them.
var units = [...]string{"B", "KiB", "MiB", "GiB", "TiB"} //nolint:gochecknoglobals // constant

// unitStep is the ratio of successive units, and unitBits its logarithm.
const (
	unitBits = 10
	unitStep = 1 << unitBits
)

// parseSize parses a size such as 4096, 64MiB or 1.5GiB. Decimal units are rejected: they are too
// easily taken for these.
func parseSize(s string) (byteSize, error) {
	s = strings.TrimSpace(s)
	wrong := fmt.Errorf("%q is not a size: write bytes, or a number and one of %s, as in 64MiB", s, strings.Join(units[:], ", "))
	digits := strings.TrimRight(s, "BKMGTi")
	bits := 0
	if unit := s[len(digits):]; unit != "" {
		bits = -1
		for i, known := range units {
			if unit == known {
				bits = i * unitBits
			}
		}
		if bits < 0 {
			return 0, wrong
		}
	}
	digits = strings.TrimSpace(digits)
	if n, err := strconv.ParseUint(digits, 10, 64); err == nil {
		if n > math.MaxUint64>>bits {
			return 0, fmt.Errorf("%q is more than 64 bits can count", s)
		}
		return byteSize(n << bits), nil
	}
	if strings.Trim(digits, "0123456789.") != "" {
		return 0, wrong
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, wrong
	}
	if f = math.Round(math.Ldexp(f, bits)); f >= math.MaxUint64 {
		return 0, fmt.Errorf("%q is more than 64 bits can count", s)
	}
	return byteSize(f), nil
}

// String implements pflag.Value.
func (s *byteSize) String() string { return strconv.FormatUint(uint64(*s), 10) }

// Type implements pflag.Value.
func (s *byteSize) Type() string { return "size" }

// Set implements pflag.Value.
func (s *byteSize) Set(text string) error {
	size, err := parseSize(text)
	if err != nil {
		return err
	}
	*s = size
	return nil
}

// formatSize formats a number of bytes for a person, with one decimal at most.
func formatSize(n uint64) string {
	if n < unitStep {
		return strconv.FormatUint(n, 10) + " B"
	}
	value, unit := float64(n), 0
	for unit < len(units)-1 && math.Round(value*10)/10 >= unitStep { //nolint:mnd // one decimal
		value, unit = value/unitStep, unit+1
	}
	return strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0") + " " + units[unit]
}
