package machine

import (
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseResources(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		resources Resources
		text      string
	}{
		"":                                     {Resources{}, ""},
		"cpu=8,gpu=1,licence=2,memory=16GiB":   {Resources{CPU: 8000, GPU: 1000, "licence": 2000, Memory: 16 << 30}, "cpu=8,gpu=1,licence=2,memory=16GiB"},
		"memory=16384MiB,cpu=0.5":              {Resources{CPU: 500, Memory: 16 << 30}, "cpu=0.5,memory=16GiB"},
		"cpu=0.125,x=00.010,y=1.0":             {Resources{CPU: 125, "x": 10, "y": 1000}, "cpu=0.125,x=0.01,y=1"},
		"gpu=0,memory=0,memory2=0.0":           {Resources{GPU: 0, Memory: 0, "memory2": 0}, "gpu=0,memory=0,memory2=0"},
		"gpu=2.000":                            {Resources{GPU: 2000}, "gpu=2"},
		"memory=1":                             {Resources{Memory: 1}, "memory=1"},
		"memory=1.0":                           {Resources{Memory: 1}, "memory=1"},
		"memory=1.5GiB":                        {Resources{Memory: 3 << 29}, "memory=1536MiB"},
		"cpu=1500m":                            {Resources{CPU: 1500}, "cpu=1.5"},
		"memory=0.001kB":                       {Resources{Memory: 1}, "memory=1"},
		"memory=1kB":                           {Resources{Memory: 1e3}, "memory=1000"},
		"memory=1.5MB":                         {Resources{Memory: 1.5e6}, "memory=1500000"},
		"memory=1GB":                           {Resources{Memory: 1e9}, "memory=1000000000"},
		"memory=1TB":                           {Resources{Memory: 1e12}, "memory=976562500KiB"},
		"memory=1PB":                           {Resources{Memory: 1e15}, "memory=976562500000KiB"},
		"memory=9EB":                           {Resources{Memory: 9e18}, "memory=8789062500000000KiB"},
		"memory=2KiB":                          {Resources{Memory: 2 << 10}, "memory=2KiB"},
		"memory=2MiB":                          {Resources{Memory: 2 << 20}, "memory=2MiB"},
		"memory=2TiB":                          {Resources{Memory: 2 << 40}, "memory=2TiB"},
		"memory=2PiB":                          {Resources{Memory: 2 << 50}, "memory=2PiB"},
		"memory=7EiB":                          {Resources{Memory: 7 << 60}, "memory=7EiB"},
		"memory=9223372036854775807":           {Resources{Memory: math.MaxInt64}, "memory=9223372036854775807"},
		"x=9223372036854775.807":               {Resources{"x": math.MaxInt64}, "x=9223372036854775.807"},
		"example.com/fast-disk_0=1":            {Resources{"example.com/fast-disk_0": 1000}, "example.com/fast-disk_0=1"},
		strings.Repeat("a", 63) + "=1":         {Resources{strings.Repeat("a", 63): 1000}, strings.Repeat("a", 63) + "=1"},
		"x=" + strings.Repeat("0", 1000) + "1": {Resources{"x": 1000}, "x=1"},
	} {
		r, err := ParseResources(text)
		require.NoError(t, err, text)
		assert.Equal(t, want.resources, r, text)
		assert.Equal(t, want.text, r.String(), text)
	}
}

// entries returns the text of n resources.
func entries(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("r%d=1", i)
	}
	return strings.Join(all, ",")
}

func TestParseResourcesRefuses(t *testing.T) {
	t.Parallel()
	const (
		form     = `an entry has the form name=amount`
		names    = `the name of a resource is up to 63 lower-case letters, digits, '.', '_', '/' and '-', beginning with a letter`
		number   = `an amount is a decimal number, such as 2 or 0.5`
		tooLarge = `the amount is too large: the limit is 9223372036854775.807, for memory 9223372036854775807 bytes`
		units    = `an amount of memory is in bytes, or has one of the units KiB, MiB, GiB, TiB, PiB, EiB, kB, MB, GB, TB, PB, EB`
	)
	long := strings.Repeat("a", 64)
	for text, want := range map[string]string{
		"cpu":                             `"cpu": ` + form,
		"cpu=1,":                          `"": ` + form,
		",cpu=1":                          `"": ` + form,
		"cpu=1;gpu=1":                     `"cpu=1;gpu=1": ` + number,
		"cpu=1,gpu":                       `"gpu": ` + form,
		"=1":                              `"=1": ` + names,
		"CPU=1":                           `"CPU=1": ` + names,
		"cpu=1, gpu=1":                    `" gpu=1": ` + names,
		"1x=1":                            `"1x=1": ` + names,
		"x y=1":                           `"x y=1": ` + names,
		"ä=1":                             `"ä=1": ` + names,
		"\xff=1":                          `"\xff=1": ` + names,
		long + "=1":                       `"` + long + `=1": ` + names,
		strings.Repeat("b", 1000):         `"` + strings.Repeat("b", 100) + `"…: ` + form,
		"cpu=":                            `"cpu=": ` + number,
		"cpu=-1":                          `"cpu=-1": an amount can't be negative`,
		"cpu=-0":                          `"cpu=-0": an amount can't be negative`,
		"memory=-1GiB":                    `"memory=-1GiB": an amount can't be negative`,
		"cpu=NaN":                         `"cpu=NaN": ` + number,
		"cpu=Inf":                         `"cpu=Inf": ` + number,
		"cpu=1e3":                         `"cpu=1e3": ` + number,
		"cpu=0x10":                        `"cpu=0x10": ` + number,
		"cpu=1_000":                       `"cpu=1_000": ` + number,
		"cpu=1/2":                         `"cpu=1/2": ` + number,
		"cpu=+1":                          `"cpu=+1": ` + number,
		"cpu=0.5m":                        `"cpu=0.5m": an amount of memory is a whole number of bytes, and one with m of thousandths`,
		"cpu=500mm":                       `"cpu=500mm": ` + number,
		"cpu=1.":                          `"cpu=1.": ` + number,
		"cpu=.5":                          `"cpu=.5": ` + number,
		"cpu=1.2.3":                       `"cpu=1.2.3": ` + number,
		"cpu=1 ":                          `"cpu=1 ": ` + number,
		"cpu=1=2":                         `"cpu=1=2": ` + number,
		"cpu=8GiB":                        `"cpu=8GiB": ` + number,
		"cpu=1.0005":                      `"cpu=1.0005": an amount has at most 3 decimals`,
		"cpu=1.0000":                      `"cpu=1.0000": an amount has at most 3 decimals`,
		"gpu=0.5":                         `"gpu=0.5": GPUs are whole: a part of one can't be allocated`,
		"cpu=8,gpu=1,cpu=0.5":             `"cpu=0.5": cpu occurs twice`,
		"memory=0,memory=1GiB":            `"memory=1GiB": memory occurs twice`,
		"memory=NaN":                      `"memory=NaN": ` + units,
		"memory=16Gi":                     `"memory=16Gi": ` + units,
		"memory=16G":                      `"memory=16G": ` + units,
		"memory=16GIB":                    `"memory=16GIB": ` + units,
		"memory=16KB":                     `"memory=16KB": ` + units,
		"memory=16B":                      `"memory=16B": ` + units,
		"memory=GiB":                      `"memory=GiB": ` + number,
		"memory=16 GiB":                   `"memory=16 GiB": ` + number,
		"memory=0.5":                      `"memory=0.5": an amount of memory is a whole number of bytes, and one with m of thousandths`,
		"memory=0.1GiB":                   `"memory=0.1GiB": an amount of memory is a whole number of bytes, and one with m of thousandths`,
		"memory=8EiB":                     `"memory=8EiB": ` + tooLarge,
		"memory=9.224EB":                  `"memory=9.224EB": ` + tooLarge,
		"memory=9223372036854775808":      `"memory=9223372036854775808": ` + tooLarge,
		"x=9223372036854775.808":          `"x=9223372036854775.808": ` + tooLarge,
		"x=18446744073709551.617":         `"x=18446744073709551.617": ` + tooLarge,
		"x=99999999999999999999":          `"x=99999999999999999999": ` + tooLarge,
		"x=" + strings.Repeat("9", 1<<20): `"x=` + strings.Repeat("9", 98) + `"…: ` + tooLarge,
		entries(65):                       `"r64=1": there are more than 64 resources`,
	} {
		r, err := ParseResources(text)
		require.EqualError(t, err, "resources: "+want)
		assert.Nil(t, r)
	}
	_, err := ParseResources(entries(64))
	require.NoError(t, err)
}

func TestCheckResources(t *testing.T) {
	t.Parallel()
	var none Resources
	require.NoError(t, none.Check())
	require.NoError(t, Resources{CPU: 1, GPU: 0, "licence": math.MaxInt64}.Check())
	require.EqualError(t, Resources{"b": -1500, CPU: 1, "c": -1}.Check(), `resources: "b=-1.5": an amount can't be negative`)
	require.EqualError(t, Resources{Memory: math.MinInt64}.Check(), `resources: "memory=-8EiB": an amount can't be negative`)
	require.EqualError(t, Resources{GPU: 1500}.Check(), `resources: "gpu=1.5": GPUs are whole: a part of one can't be allocated`)
	require.EqualError(t, Resources{"": 1}.Check(),
		`resources: "": the name of a resource is up to 63 lower-case letters, digits, '.', '_', '/' and '-', beginning with a letter`)
	many := make(Resources)
	for i := range MaxResources + 1 {
		many[fmt.Sprint("r", i)] = 1
	}
	require.EqualError(t, many.Check(), `resources: there are 65 resources; the limit is 64`)
	delete(many, "r0")
	require.NoError(t, many.Check())
}

// drawResources draws valid resources, often with amounts at the limits.
func drawResources(t *rapid.T, label string, names *rapid.Generator[string]) Resources {
	amounts := rapid.OneOf(rapid.Int64Range(0, 3000), rapid.Int64Range(0, math.MaxInt64),
		rapid.SampledFrom([]int64{0, 1 << 10, 3 << 29, 1 << 62, math.MaxInt64 - 1, math.MaxInt64}))
	r := Resources(rapid.MapOfN(names, amounts, 0, 6).Draw(t, label))
	if amount, ok := r[GPU]; ok {
		r[GPU] = amount / Unit * Unit
	}
	return r
}

func fewNames() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{CPU, GPU, Memory, "licence", "x/y", "z"})
}

func TestTextOfResourcesParsesBack(t *testing.T) {
	t.Parallel()
	names := rapid.OneOf(fewNames(), rapid.StringMatching(`[a-z][a-z0-9._/-]{0,62}`))
	rapid.Check(t, func(t *rapid.T) {
		r := drawResources(t, "resources", names)
		parsed, err := ParseResources(r.String())
		require.NoError(t, err)
		if !maps.Equal(r, parsed) {
			t.Fatalf("%v is parsed as %v", r, parsed)
		}
		require.NoError(t, r.Check())
	})
}

// TestResourcesAgreeWithTheirModel compares the arithmetic with that of integers without limits.
func TestResourcesAgreeWithTheirModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawResources(t, "a", fewNames()), drawResources(t, "b", fewNames())
		a0, b0 := maps.Clone(a), maps.Clone(b)
		sum, difference, lacking := Resources{}, Resources{}, Resources{}
		overflows, negative, zero := false, false, true
		for _, name := range []string{CPU, GPU, Memory, "licence", "x/y", "z"} {
			x, y := big.NewInt(a[name]), big.NewInt(b[name])
			put := func(to Resources, amount *big.Int) (fits bool) {
				if amount.Sign() > 0 && amount.IsInt64() {
					to[name] = amount.Int64()
				}
				return amount.IsInt64()
			}
			overflows = !put(sum, new(big.Int).Add(x, y)) || overflows
			put(difference, new(big.Int).Sub(x, y))
			put(lacking, new(big.Int).Sub(y, x))
			negative = negative || y.Cmp(x) > 0
			zero = zero && x.Sign() == 0
		}
		require.Equal(t, zero, a.IsZero())
		require.Equal(t, !negative, b.Fits(a))
		require.Equal(t, lacking, b.Lacking(a))
		gotSum, err := a.Add(b)
		if overflows {
			require.ErrorContains(t, err, "overflows")
			require.Nil(t, gotSum)
		} else {
			require.NoError(t, err)
			require.Equal(t, sum, gotSum)
		}
		gotDifference, err := a.Sub(b)
		if negative {
			require.ErrorContains(t, err, "can't be subtracted from")
			require.Nil(t, gotDifference)
		} else {
			require.NoError(t, err)
			require.Equal(t, difference, gotDifference)
		}
		a.Clone()["new"] = 1
		require.Equal(t, a0, a, "modified")
		require.Equal(t, b0, b, "modified")
	})
}

// TestAccountsBalance: what is allocated and free is the capacity, whatever was allocated and given
// back, and nothing is left of what was given back.
func TestAccountsBalance(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		capacity, err := drawResources(t, "capacity", fewNames()).Sub(nil)
		require.NoError(t, err)
		free, used := capacity.Clone(), Resources{}
		var allocations []Resources
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				r := drawResources(t, "request", fewNames())
				if !r.Fits(free) {
					_, err := free.Sub(r)
					require.Error(t, err)
					return
				}
				free, err = free.Sub(r)
				require.NoError(t, err)
				used, err = used.Add(r)
				require.NoError(t, err)
				allocations = append(allocations, r)
			},
			"give back": func(t *rapid.T) {
				if len(allocations) == 0 {
					t.Skip("nothing is allocated")
				}
				i := rapid.IntRange(0, len(allocations)-1).Draw(t, "allocation")
				free, err = free.Add(allocations[i])
				require.NoError(t, err)
				used, err = used.Sub(allocations[i])
				require.NoError(t, err)
				allocations = slices.Delete(allocations, i, i+1)
			},
			"": func(t *rapid.T) {
				total, err := used.Add(free)
				require.NoError(t, err)
				require.Equal(t, capacity, total)
				if len(allocations) == 0 {
					require.Empty(t, used)
				}
			},
		})
	})
}

func TestArithmeticRefuses(t *testing.T) {
	t.Parallel()
	_, err := Resources{CPU: math.MaxInt64, Memory: 1 << 30}.Add(Resources{CPU: 1, Memory: 1})
	require.EqualError(t, err, `resources: the sum of cpu=9223372036854775.807 and cpu=0.001 overflows`)
	_, err = Resources{CPU: 1000, Memory: 1 << 30}.Sub(Resources{CPU: 500, Memory: 2 << 30})
	require.EqualError(t, err, `resources: memory=2GiB can't be subtracted from memory=1GiB`)
	_, err = Resources(nil).Sub(Resources{GPU: 1000})
	require.EqualError(t, err, `resources: gpu=1 can't be subtracted from gpu=0`)

	many, err := ParseResources(entries(MaxResources))
	require.NoError(t, err)
	_, err = many.Add(Resources{"one": 1})
	require.EqualError(t, err, `resources: with one there are more than 64 resources`)
	double, err := many.Add(many)
	require.NoError(t, err)
	require.NoError(t, double.Check())
	_, err = many.Add(Resources{"one": 0})
	require.NoError(t, err)

	none, err := Resources(nil).Sub(Resources{GPU: 0})
	require.NoError(t, err)
	assert.Empty(t, none)
}

func TestSummary(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                            "nothing",
		"cpu=0,gpu=0,memory=0,x=0":    "nothing",
		"cpu=16,memory=64GiB,gpu=2":   "16 CPUs, 64 GiB, 2 GPUs",
		"cpu=1,memory=1GiB,gpu=1":     "1 CPU, 1 GiB, 1 GPU",
		"cpu=0.5":                     "0.5 CPUs",
		"cpu=1.25,memory=1.5GiB":      "1.25 CPUs, 1.5 GiB",
		"gpu=8":                       "8 GPUs",
		"licence=2,cpu=2,a/b=0.5,z=0": "2 CPUs, a/b=0.5, licence=2",
		"memory=1":                    "1 B",
		"memory=1023":                 "1023 B",
		"memory=1024":                 "1 KiB",
		"memory=1075KiB":              "1 MiB",
		"memory=24684092KiB":          "23.5 GiB",
		"memory=1048575KiB":           "1023.9 MiB",
		"memory=2TiB":                 "2 TiB",
		"memory=1.5PiB":               "1.5 PiB",
		"memory=9223372036854775807":  "7.9 EiB",
	} {
		r, err := ParseResources(text)
		require.NoError(t, err)
		assert.Equal(t, want, r.Summary(), text)
	}
	assert.Equal(t, "nothing", Resources(nil).Summary())
}

// TestSummaryOfMemoryIsRoundedDown compares it with exact arithmetic.
func TestSummaryOfMemoryIsRoundedDown(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		amount := rapid.Int64Range(1, math.MaxInt64).Draw(t, "bytes")
		text, unit, _ := strings.Cut(Resources{Memory: amount}.Summary(), " ")
		shown, ok := new(big.Rat).SetString(text)
		require.True(t, ok)
		power := slices.Index([]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}, unit)
		size := new(big.Rat).SetInt64(1 << (10 * power))
		exact := new(big.Rat).Quo(new(big.Rat).SetInt64(amount), size)
		rest := exact.Sub(exact, shown)
		if rest.Sign() < 0 || rest.Cmp(big.NewRat(1, 10)) >= 0 {
			t.Fatalf("%d bytes are shown as %s %s", amount, text, unit)
		}
	})
}

func FuzzParseResources(f *testing.F) {
	for _, text := range []string{"", "cpu=8,gpu=1,licence=2,memory=16GiB", "memory=1.5kB", "cpu=0.001", "cpu=-1", "x=9223372036854775.807", "a=1,a=1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseResources(text)
		if err != nil {
			require.Less(t, len(err.Error()), 1000)
			return
		}
		require.NoError(t, r.Check())
		again, err := ParseResources(r.String())
		require.NoError(t, err)
		require.Equal(t, r, again)
		require.NotEmpty(t, r.Summary())
	})
}
