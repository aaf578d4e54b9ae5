package machine

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// The resources that have a meaning of their own. Others are the user's, such as licences.
const (
	CPU    = "cpu"
	GPU    = "gpu"
	Memory = "memory"
)

// Unit is one of a resource, such as a CPU, in the thousandths that amounts of [Resources] are in.
// It does not apply to [Memory].
const Unit = 1000

// Bounds of [Resources].
const (
	// MaxResources is how many resources a set of them may have.
	MaxResources = 64
	// MaxResourceName bounds the name of a resource, in bytes.
	MaxResourceName = 63
)

const (
	// decimals is how many of them an amount may have: those of a thousandth.
	decimals = 3
	// maxDigits is how many the largest int64 has.
	maxDigits = 19
)

// Resources are amounts by the names of resources: what a machine has, what a node needs, or what
// is allocated to it. An amount of [Memory] is in bytes, any other in thousandths (see [Unit]), so
// that half a CPU is 500. An absent resource has the amount zero; nil is valid, and has nothing.
//
// As text it is a list such as `cpu=0.5,gpu=1,licence=2,memory=16GiB` (see [ParseResources]).
//
// Resources are valid if [Resources.Check] returns nil. All that this package returns are; the
// other methods expect that their receiver and arguments are, and return new maps.
type Resources map[string]int64

// ParseResources parses a list of `name=amount`, separated by commas, without spaces. The empty
// text stands for no resources.
//
// An amount is a decimal number with up to three decimals, such as `2` or `0.5`. That of memory is
// in bytes, or has a unit: KiB, MiB, GiB, TiB, PiB, EiB (powers of 1024), kB, MB, GB, TB, PB, EB
// (powers of 1000); it must come to whole bytes. A zero is kept, so that it can replace another
// amount.
//
// An error names the first entry that is refused: one of another syntax, one that [Resources.Check]
// refuses, or one with a name that occurred before.
func ParseResources(text string) (Resources, error) {
	r := make(Resources)
	if text == "" {
		return r, nil
	}
	for entry := range strings.SplitSeq(text, ",") {
		name, amount, err := parseResource(entry)
		if err != nil {
			return nil, fmt.Errorf("resources: %s: %w", quote(entry), err)
		}
		if _, twice := r[name]; twice {
			return nil, fmt.Errorf("resources: %s: %s occurs twice", quote(entry), name)
		}
		if len(r) == MaxResources {
			return nil, fmt.Errorf("resources: %s: there are more than %d resources", quote(entry), MaxResources)
		}
		r[name] = amount
	}
	return r, nil
}

func parseResource(entry string) (name string, amount int64, err error) {
	name, text, ok := strings.Cut(entry, "=")
	if !ok {
		return "", 0, errors.New("an entry has the form name=amount")
	}
	if err := checkResourceName(name); err != nil {
		return "", 0, err
	}
	unit := int64(Unit)
	if number, ok := strings.CutSuffix(text, "m"); ok && name != Memory {
		unit, text = 1, number // thousandths, as Kubernetes writes them
	}
	if name == Memory {
		number := strings.TrimRightFunc(text, isLetter)
		if unit = memoryUnit(text[len(number):]); unit == 0 {
			return "", 0, errors.New("an amount of memory is in bytes, or has one of the units KiB, MiB, GiB, TiB, PiB, EiB, kB, MB, GB, TB, PB, EB")
		}
		text = number
	}
	amount, err = parseAmount(text, unit)
	if err != nil {
		return "", 0, err
	}
	return name, amount, checkAmount(name, amount)
}

// memoryUnit returns the bytes of a unit of memory, or 0 if there is no such unit.
func memoryUnit(name string) int64 {
	switch name {
	case "":
		return 1
	case "kB":
		return 1e3
	case "MB":
		return 1e6
	case "GB":
		return 1e9
	case "TB":
		return 1e12
	case "PB":
		return 1e15
	case "EB":
		return 1e18
	}
	for i, binary := range binaryUnits() {
		if name == binary {
			return 1 << (10 * (i + 1))
		}
	}
	return 0
}

// binaryUnits are the units of memory that are powers of 1024, from the first power.
func binaryUnits() [6]string { return [...]string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} }

// parseAmount returns the product of a decimal number and unit.
func parseAmount(text string, unit int64) (int64, error) {
	whole, fraction, hasFraction := strings.Cut(text, ".")
	switch {
	case strings.HasPrefix(text, "-"):
		return 0, errNegative()
	case !isDigits(whole) || hasFraction && !isDigits(fraction):
		return 0, errNoNumber()
	case len(fraction) > decimals:
		return 0, fmt.Errorf("an amount has at most %d decimals", decimals)
	case len(strings.TrimLeft(whole, "0")) > maxDigits:
		return 0, errTooLarge()
	}
	amount, ok := new(big.Rat).SetString(text)
	if !ok {
		return 0, errNoNumber()
	}
	amount.Mul(amount, new(big.Rat).SetInt64(unit))
	switch {
	case !amount.IsInt():
		return 0, errors.New("an amount of memory is a whole number of bytes, and one with m of thousandths")
	case !amount.Num().IsInt64():
		return 0, errTooLarge()
	}
	return amount.Num().Int64(), nil
}

// String returns the resources as [ParseResources] parses them, sorted by name: `cpu=0.5,gpu=1`.
// Memory is in the largest unit of which it is a multiple.
func (r Resources) String() string {
	entries := make([]string, 0, len(r))
	for _, name := range slices.Sorted(maps.Keys(r)) {
		entries = append(entries, entry(name, r[name]))
	}
	return strings.Join(entries, ",")
}

// entry returns `name=amount`.
func entry(name string, amount int64) string {
	if name != Memory {
		return name + "=" + thousandths(amount)
	}
	unit := ""
	for _, next := range binaryUnits() {
		if amount == 0 || amount%1024 != 0 {
			break
		}
		amount, unit = amount/1024, next
	}
	return name + "=" + strconv.FormatInt(amount, 10) + unit
}

// thousandths returns an amount of thousandths as a decimal number.
func thousandths(amount int64) string {
	text := big.NewRat(amount, Unit).FloatString(decimals)
	return strings.TrimRight(strings.TrimRight(text, "0"), ".")
}

// Check returns an error that names the first resource, by name, that is not valid: names match
// [a-z][a-z0-9._/-]{0,62}, no amount is negative, and GPUs are whole. It also bounds the number of
// resources. It is for what has not come from this package, such as what a peer has sent.
func (r Resources) Check() error {
	if len(r) > MaxResources {
		return fmt.Errorf("resources: there are %d resources; the limit is %d", len(r), MaxResources)
	}
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if err := checkResourceName(name); err != nil {
			return fmt.Errorf("resources: %s: %w", quote(name), err)
		}
		if err := checkAmount(name, r[name]); err != nil {
			return fmt.Errorf("resources: %s: %w", quote(entry(name, r[name])), err)
		}
	}
	return nil
}

func checkResourceName(name string) error {
	const first, others = "abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz0123456789._/-"
	if name == "" || len(name) > MaxResourceName || !strings.Contains(first, name[:1]) || strings.Trim(name, others) != "" {
		return fmt.Errorf("the name of a resource is up to %d lower-case letters, digits, '.', '_', '/' and '-', beginning with a letter", MaxResourceName)
	}
	return nil
}

func checkAmount(name string, amount int64) error {
	switch {
	case amount < 0:
		return errNegative()
	case name == GPU && amount%Unit != 0:
		return errors.New("GPUs are whole: a part of one can't be allocated")
	}
	return nil
}

// IsZero reports whether no amount is greater than zero.
func (r Resources) IsZero() bool { return r.Fits(nil) }

// Fits reports whether r is a part of what is available: no amount is greater.
func (r Resources) Fits(available Resources) bool {
	for name, amount := range r {
		if amount > available[name] {
			return false
		}
	}
	return true
}

// Lacking returns what r has beyond what is available, without zeros: what has to become available
// before r fits.
func (r Resources) Lacking(available Resources) Resources {
	lacking := make(Resources)
	for name, amount := range r {
		if amount > available[name] {
			lacking[name] = amount - available[name]
		}
	}
	return lacking
}

// Add returns the sums of the amounts, without zeros. It returns an error that names the resource
// if a sum overflows, or if there are more than [MaxResources].
func (r Resources) Add(other Resources) (Resources, error) {
	sum := r.withoutZeros()
	for _, name := range slices.Sorted(maps.Keys(other)) {
		amount := other[name]
		switch _, has := sum[name]; {
		case amount > math.MaxInt64-sum[name]:
			return nil, fmt.Errorf("resources: the sum of %s and %s overflows", entry(name, sum[name]), entry(name, amount))
		case amount == 0:
		case !has && len(sum) == MaxResources:
			return nil, fmt.Errorf("resources: with %s there are more than %d resources", name, MaxResources)
		default:
			sum[name] += amount
		}
	}
	return sum, nil
}

// Sub returns the differences of the amounts, without zeros. It returns an error that names the
// resource if other has more of one than r: the result is never negative.
func (r Resources) Sub(other Resources) (Resources, error) {
	for _, name := range slices.Sorted(maps.Keys(other)) {
		if other[name] > r[name] {
			return nil, fmt.Errorf("resources: %s can't be subtracted from %s", entry(name, other[name]), entry(name, r[name]))
		}
	}
	difference := r.Clone()
	for name, amount := range other {
		if amount > 0 {
			difference[name] -= amount
		}
	}
	return difference.withoutZeros(), nil
}

// withoutZeros returns a copy without the amounts that are zero.
func (r Resources) withoutZeros() Resources {
	positive := make(Resources, len(r))
	for name, amount := range r {
		if amount != 0 {
			positive[name] = amount
		}
	}
	return positive
}

// Clone returns a copy.
func (r Resources) Clone() Resources { return maps.Clone(r) }

// Summary returns the resources as a person reads them: `16 CPUs, 64 GiB, 2 GPUs, licence=2`, or
// `nothing`. Zeros are left out. Memory is rounded down to a tenth of its unit, so that there is
// never less than it says; where two amounts are compared, String is exact.
func (r Resources) Summary() string {
	var parts []string
	count := func(name, noun string) {
		if amount := r[name]; amount == Unit {
			parts = append(parts, "1 "+noun)
		} else if amount != 0 {
			parts = append(parts, thousandths(amount)+" "+noun+"s")
		}
	}
	count(CPU, "CPU")
	if memory := r[Memory]; memory != 0 {
		parts = append(parts, memorySummary(memory))
	}
	count(GPU, "GPU")
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if name != CPU && name != GPU && name != Memory && r[name] != 0 {
			parts = append(parts, entry(name, r[name]))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// memorySummary returns memory in the largest unit of which there is one, rounded down to a tenth.
func memorySummary(amount int64) string {
	unit, size := "B", int64(1)
	for _, next := range binaryUnits() {
		if amount/size < 1024 {
			break
		}
		unit, size = next, size*1024
	}
	text := strconv.FormatInt(amount/size, 10)
	tenths := 10 * uint64(amount%size) / uint64(size) //nolint:gosec // not negative; ten EiB would overflow an int64
	if tenths > 0 {
		text += "." + strconv.FormatUint(tenths, 10)
	}
	return text + " " + unit
}

func errNoNumber() error { return errors.New("an amount is a decimal number, such as 2 or 0.5") }

func errNegative() error { return errors.New("an amount can't be negative") }

func errTooLarge() error {
	return fmt.Errorf("the amount is too large: the limit is %s, for memory %d bytes", thousandths(math.MaxInt64), int64(math.MaxInt64))
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func isLetter(c rune) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// maxQuoted bounds what an error quotes of a text, in bytes.
const maxQuoted = 100

// quote returns a text in quotes, shortened to what a line can hold.
func quote(text string) string {
	if len(text) > maxQuoted {
		return strconv.Quote(text[:maxQuoted]) + "…"
	}
	return strconv.Quote(text)
}
