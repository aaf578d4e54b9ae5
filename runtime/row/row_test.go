package row_test

import (
	"math"
	"testing"
	"unsafe" //nolint:depguard // inspects the alignment of columns

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
)

// pair is a row of two columns, as the plugin would write it.
type pair struct {
	A []float64
	B []int16
}

var pairRow = row.Type[pair]{Generated: &row.GeneratedRow[pair]{
	Message: "test.Pair",
	Columns: []row.GeneratedColumn{
		{Name: "a", DType: tensorv1.DataType_DATA_TYPE_FLOAT64, Shape: []uint64{2}, Bytes: 16},
		{Name: "b", DType: tensorv1.DataType_DATA_TYPE_INT16, Bytes: 2, Initial: "\xff\xff"},
	},
	View: func(c *pair, columns [][]byte) {
		c.A = row.GeneratedView[float64](columns[0])
		c.B = row.GeneratedView[int16](columns[1])
	},
}}

// aligned makes n bytes that begin at a multiple of 8.
func aligned(n int) []byte {
	return row.GeneratedBytes(make([]uint64, (n+7)/8))[:n]
}

func TestViewSharesMemory(t *testing.T) {
	t.Parallel()
	bytes := [][]byte{aligned(48), aligned(6)}
	var view pair
	require.NoError(t, pairRow.View(&view, 3, bytes))
	assert.Len(t, view.A, 6)
	assert.Len(t, view.B, 3)
	assert.Equal(t, 3, cap(view.B), "appending must not write what follows")
	view.B[1] = 0x0102
	assert.Equal(t, []byte{0, 0, 2, 1, 0, 0}, bytes[1])
	bytes[0][15] = 0x40
	assert.InDelta(t, 2, view.A[1], 0)

	require.NoError(t, pairRow.View(&view, 0, [][]byte{nil, {}}))
	assert.Equal(t, pair{}, view)
	// Empty columns need no alignment: they may begin at the end of something else.
	require.NoError(t, pairRow.View(&view, 0, [][]byte{bytes[0][1:1], bytes[1][5:5]}))
	assert.Equal(t, pair{}, view)
}

func TestViewRefusesBytesThatAreNotColumns(t *testing.T) {
	t.Parallel()
	for want, test := range map[string]struct {
		rows    int
		columns [][]byte
	}{
		"there are 1 columns, and the row has 2":                                        {1, [][]byte{aligned(16)}},
		"there are 0 columns, and the row has 2":                                        {0, nil},
		"there can't be -1 rows":                                                        {-1, [][]byte{nil, nil}},
		"column a has 15 bytes, and should have 1 rows of 16 bytes":                     {1, [][]byte{aligned(15), aligned(2)}},
		"column b has 4 bytes, and should have 1 rows of 2 bytes":                       {1, [][]byte{aligned(16), aligned(4)}},
		"column a has 0 bytes, and should have 1152921504606846976 rows of 16 bytes":    {1 << 60, [][]byte{nil, nil}},
		"column a begins at an address that is not a multiple of its elements' 8 bytes": {1, [][]byte{aligned(24)[4:20], aligned(2)}},
		"column b begins at an address that is not a multiple of its elements' 2 bytes": {1, [][]byte{aligned(16), aligned(4)[1:3]}},
	} {
		view := pair{B: []int16{7}}
		require.EqualError(t, pairRow.View(&view, test.rows, test.columns), "view columns as rows of test.Pair: "+want)
		assert.Equal(t, pair{B: []int16{7}}, view)
	}
}

// FuzzView views whatever bytes there are: what is accepted has the right number of elements.
func FuzzView(f *testing.F) {
	f.Add(1, 16, 0, 2, 0)
	f.Add(0, 0, 1, 0, 3)
	f.Fuzz(func(t *testing.T, rows, a, offA, b, offB int) {
		const size = 1 << 10
		a, offA, b, offB = a&(size-1), offA&7, b&(size-1), offB&7
		columns := [][]byte{aligned(size + 8)[offA : offA+a], aligned(size + 8)[offB : offB+b]}
		var view pair
		err := pairRow.View(&view, rows, columns)
		if fits := rows >= 0 && rows <= size && a == rows*16 && b == rows*2; err == nil && !fits {
			t.Fatalf("%d rows in %d and %d bytes", rows, a, b)
		} else if fits && (rows == 0 || offA == 0 && offB%2 == 0) != (err == nil) {
			t.Fatalf("refused: %v", err)
		}
		if err == nil && (len(view.A) != rows*2 || len(view.B) != rows) {
			t.Fatalf("%d rows became %d and %d elements", rows, len(view.A), len(view.B))
		}
	})
}

func TestNewHasInitialValues(t *testing.T) {
	t.Parallel()
	for n := range 10 {
		made := pairRow.New(n)
		require.Len(t, made.A, 2*n)
		require.Len(t, made.B, n)
		for i := range n {
			assert.Equal(t, int16(-1), made.B[i])
			assert.Zero(t, made.A[2*i])
			assert.Zero(t, uintptr(unsafe.Pointer(&made.A[0]))%8)
		}
	}
	assert.PanicsWithValue(t, "row: -1 rows of test.Pair", func() { pairRow.New(-1) })
	assert.PanicsWithValue(t, "row: 9223372036854775807 rows of test.Pair", func() { pairRow.New(math.MaxInt) })
}

func TestSizeKnowsAllTypes(t *testing.T) {
	t.Parallel()
	for number := range tensorv1.DataType_name {
		assert.Equal(t, number != 0, row.Size(tensorv1.DataType(number)) > 0, "%v", tensorv1.DataType(number))
	}
	assert.Zero(t, row.Size(-1))
	assert.Zero(t, row.Size(1000))
}

// TestFloat16IsItsOwnInverse goes through all numbers of 16 bits.
func TestFloat16IsItsOwnInverse(t *testing.T) {
	t.Parallel()
	for bits := range 1 << 16 {
		element := uint16(bits)
		if v := row.FromFloat16[float32](element); v == v {
			require.Equal(t, element, row.Float16(v), "%v", v)
		} else {
			require.True(t, math.IsNaN(row.FromFloat16[float64](row.Float16(v))))
		}
		// A bfloat16 is the upper half of a float32.
		want := math.Float32frombits(uint32(element) << 16)
		v := row.FromBFloat16[float32](element)
		if want != want {
			require.True(t, v != v && math.IsNaN(row.FromBFloat16[float64](row.BFloat16(v))))
			continue
		}
		require.Equal(t, math.Float32bits(want), math.Float32bits(v))
		require.Equal(t, element, row.BFloat16(v), "%v", v)
	}
	// A few that are known from elsewhere.
	for v, element := range map[float64]uint16{
		1: 0x3c00, -2: 0xc000, 65504: 0x7bff, 0x1p-14: 0x0400, 0x1p-24: 0x0001, 1.0 / 3: 0x3555, math.Inf(-1): 0xfc00, 65519.99: 0x7bff, 65520: 0x7c00,
		0x1p-25: 0, 0x1.8p-25: 1, 0x1.ffffp-15: 0x0400, math.MaxFloat64: 0x7c00, 1e-300: 0, math.SmallestNonzeroFloat64: 0,
	} {
		assert.Equal(t, element, row.Float16(v), "%v", v)
	}
	assert.Equal(t, uint16(0x8000), row.Float16(math.Copysign(0, -1)))
	assert.Equal(t, uint16(0x7f80), row.BFloat16(math.MaxFloat64))
	assert.Equal(t, uint16(0x4049), row.BFloat16(math.Pi))
}

// TestFloatsRoundToTheNearest compares with the two neighbors of what a number became.
func TestFloatsRoundToTheNearest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v := math.Ldexp(rapid.Float64Range(-2, 2).Draw(t, "fraction"), rapid.IntRange(-30, 16).Draw(t, "exponent"))
		for name, kind := range map[string]struct {
			narrow func(float64) uint16
			widen  func(uint16) float64
		}{
			"float16":  {row.Float16[float64], row.FromFloat16[float64]},
			"bfloat16": {row.BFloat16[float64], row.FromBFloat16[float64]},
		} {
			element := kind.narrow(v)
			got := kind.widen(element)
			if math.IsInf(got, 0) {
				require.GreaterOrEqual(t, math.Abs(v), 65520.0, name)
				continue
			}
			for _, neighbor := range []uint16{element - 1, element + 1} {
				if element&0x7fff == 0 && neighbor&0x7fff != 1 || math.IsInf(kind.widen(neighbor), 0) {
					continue // across zero or beyond the largest
				}
				nearer, other := math.Abs(got-v), math.Abs(kind.widen(neighbor)-v)
				require.LessOrEqual(t, nearer, other, "%s: %v became %v, and %v is nearer", name, v, got, kind.widen(neighbor))
				if nearer == other {
					require.Zero(t, element&1, "%s: %v is a tie", name, v)
				}
			}
		}
	})
}
