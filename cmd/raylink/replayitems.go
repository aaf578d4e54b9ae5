package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay/ring"
)

// itemsFlags are the flags of the command.
type itemsFlags struct {
	limit   uint
	rows    bool
	columns []string
}

func (r *replayApp) itemsCommand() *cobra.Command {
	var f itemsFlags
	cmd := r.finish(&cobra.Command{
		Use:   "items TABLE [KEY]...",
		Short: "Show the items of a table, and their rows",
		Long: `items lists items of a table, or those with the given keys: their rows' sequence numbers, priority, how often they were sampled, and age.
Keys are hexadecimal, as this command and the errors of the Go package print them. To list an item is not to sample it.

--rows shows the rows of the items too, --columns only these columns of them. Long values are shortened.

With -o json it prints one object a line, with whole values.`,
		Example:           "  raylink replay items per --limit 3\n  raylink replay items per 20000001 --columns action,reward",
		Args:              atLeastOne("TABLE [KEY]..."),
		ValidArgsFunction: r.complete(r.completeTable),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.rows = f.rows || len(f.columns) > 0
			keys := make([]uint64, len(args)-1)
			for i, text := range args[1:] {
				var err error
				if keys[i], err = strconv.ParseUint(text, 16, 64); err != nil {
					return usagef("%q is not a key: a key is a hexadecimal number", text)
				}
			}
			return r.call(cmd.Context(), func(ctx context.Context, _ string, handle *replayv1raylink.Replay) error {
				return r.items(ctx, handle, f, args[0], keys)
			})
		},
	})
	const most = 20
	flags := cmd.Flags()
	flags.UintVar(&f.limit, "limit", most, "list at most so many items; 0 lists all")
	flags.BoolVar(&f.rows, "rows", false, "show the items' rows")
	flags.StringSliceVar(&f.columns, "columns", nil, "show these columns of the items' rows, separated by commas")
	return cmd
}

// listedItem describes an item in JSON.
type listedItem struct {
	Key       string           `json:"key"`
	Sequences []uint64         `json:"sequences"`
	Priority  float64          `json:"priority"`
	Sampled   uint32           `json:"sampled"`
	Age       float64          `json:"age_seconds"`
	Rows      []map[string]any `json:"rows,omitempty"`
}

// pageOfItems bounds the items that are asked for at once.
const pageOfItems = 500

func (r *replayApp) items(ctx context.Context, handle *replayv1raylink.Replay, f itemsFlags, name string, keys []uint64) error {
	rows := [][]string{{"KEY", "ROWS", "FIRST", "LAST", "PRIORITY", "SAMPLED", "AGE"}}
	var details strings.Builder
	left := int(f.limit)
	if f.limit == 0 || len(keys) > 0 {
		left = math.MaxInt
	}
	next, more := uint32(0), true
	for more && left > 0 {
		req := &replayv1.ListItemsRequest{
			Table: name, Keys: keys[:min(len(keys), pageOfItems)], From: next, Items: uint32(min(left, pageOfItems)),
			Rows: f.rows, Columns: f.columns,
		}
		res, err := handle.ListItems(ctx, req)
		if err != nil {
			return err
		}
		for _, it := range res.GetItems() {
			if r.output == outputJSON {
				if err := r.writeJSON(describeItem(it, res.GetColumns())); err != nil {
					return err
				}
				continue
			}
			info := describeItem(it, nil)
			first, last := info.Sequences[0], info.Sequences[len(info.Sequences)-1]
			rows = append(rows, []string{
				info.Key, strconv.Itoa(len(info.Sequences)), number(first), number(last), strconv.FormatFloat(info.Priority, 'g', -1, 64),
				strconv.FormatUint(uint64(info.Sampled), 10), age(it.GetAgeNs()),
			})
			if f.rows {
				details.WriteString("\nitem " + info.Key + "\n" + rowsTable(it, info.Sequences, res.GetColumns()))
			}
		}
		left -= len(res.GetItems())
		next, more = res.GetNext(), res.GetNext() > next
		if len(keys) > 0 {
			keys = keys[len(res.GetItems()):]
			more = len(keys) > 0 && len(res.GetItems()) > 0
		}
	}
	switch {
	case r.output == outputJSON:
		return nil
	case len(rows) == 1:
		return r.write("table " + word(name) + " has no items\n")
	case more:
		details.WriteString("\nThere are more items: see --limit.\n")
	}
	return r.write(table(rows) + details.String())
}

// describeItem describes an item, with the named columns of its rows.
func describeItem(it *replayv1.ItemState, columns []string) listedItem {
	info := listedItem{
		Key: strconv.FormatUint(it.GetKey(), 16), Priority: it.GetPriority(), Sampled: it.GetSampled(), Age: seconds(it.GetAgeNs()),
	}
	for _, run := range it.GetRuns() {
		for i := range uint64(run.GetLength()) {
			info.Sequences = append(info.Sequences, run.GetFirst()+i)
		}
	}
	for i := range info.Sequences {
		if len(columns) == 0 {
			break
		}
		values := make(map[string]any, len(columns))
		for k, name := range columns {
			values[name] = elements(it.GetColumns()[k], i).json()
		}
		info.Rows = append(info.Rows, values)
	}
	return info
}

// rowsTable formats the rows of an item.
func rowsTable(it *replayv1.ItemState, sequences []uint64, columns []string) string {
	rows := make([][]string, 0, 1+len(sequences))
	rows = append(rows, append([]string{"SEQUENCE"}, columns...))
	for i, sequence := range sequences {
		cells := make([]string, 0, 1+len(columns))
		cells = append(cells, number(sequence))
		for k := range columns {
			cells = append(cells, elements(it.GetColumns()[k], i).short())
		}
		rows = append(rows, cells)
	}
	return table(rows)
}

// cell is the value of a column in one row.
type cell struct {
	values []any
	scalar bool
}

// elements returns a row of a tensor.
func elements(t *tensorv1.Tensor, i int) cell {
	c := cell{scalar: len(t.GetShape()) == 1}
	rows := int(slices.Concat(t.GetShape(), []uint64{1})[0]) //nolint:gosec // as many as there are sequence numbers
	size := len(t.GetData()) / max(1, rows)
	if rows <= i {
		return c
	}
	data := t.GetData()[i*size : (i+1)*size]
	for len(data) > 0 {
		value, n := element(t.GetDtype(), data)
		if n == 0 || n > len(data) {
			break
		}
		c.values = append(c.values, value)
		data = data[n:]
	}
	return c
}

// element returns the first element of data and its size, which is 0 if the type is unknown or the
// element is not complete.
func element(dtype tensorv1.DataType, data []byte) (any, int) {
	le, size := binary.LittleEndian, ring.DType(dtype).Size() //nolint:gosec // an unknown type has the size 0
	if size == 0 || size > len(data) {
		return nil, 0
	}
	var value any
	switch dtype {
	case tensorv1.DataType_DATA_TYPE_BOOL:
		value = data[0] != 0
	case tensorv1.DataType_DATA_TYPE_UINT8:
		value = data[0]
	case tensorv1.DataType_DATA_TYPE_INT8:
		value = int8(data[0]) //nolint:gosec // its bits
	case tensorv1.DataType_DATA_TYPE_INT16:
		value = int16(le.Uint16(data)) //nolint:gosec // its bits
	case tensorv1.DataType_DATA_TYPE_INT32:
		value = int32(le.Uint32(data)) //nolint:gosec // its bits
	case tensorv1.DataType_DATA_TYPE_INT64:
		value = int64(le.Uint64(data)) //nolint:gosec // its bits
	case tensorv1.DataType_DATA_TYPE_UINT16:
		value = le.Uint16(data)
	case tensorv1.DataType_DATA_TYPE_UINT32:
		value = le.Uint32(data)
	case tensorv1.DataType_DATA_TYPE_UINT64:
		value = le.Uint64(data)
	case tensorv1.DataType_DATA_TYPE_FLOAT16:
		value = finite(row.FromFloat16[float64](le.Uint16(data)), 32)
	case tensorv1.DataType_DATA_TYPE_BFLOAT16:
		value = finite(row.FromBFloat16[float64](le.Uint16(data)), 32)
	case tensorv1.DataType_DATA_TYPE_FLOAT32:
		value = finite(float64(math.Float32frombits(le.Uint32(data))), 32)
	case tensorv1.DataType_DATA_TYPE_FLOAT64:
		value = finite(math.Float64frombits(le.Uint64(data)), 64)
	case tensorv1.DataType_DATA_TYPE_UNSPECIFIED:
	}
	return value, size
}

// finite returns a number that JSON can express, with the digits of its size in bits: as a string
// if it is not finite.
func finite(x float64, bits int) any {
	text := strconv.FormatFloat(x, 'g', -1, bits)
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return text
	}
	return json.Number(text)
}

// json is the value in JSON: one element, or a list.
func (c cell) json() any {
	if c.scalar && len(c.values) == 1 {
		return c.values[0]
	}
	if c.values == nil {
		return []any{}
	}
	return c.values
}

// short is the value for a person: at most its first elements.
func (c cell) short() string {
	const most = 6
	texts := make([]string, 0, most+1)
	for i, v := range c.values {
		if i == most {
			texts = append(texts, fmt.Sprintf("... (%d)", len(c.values)))
			break
		}
		texts = append(texts, fmt.Sprint(v))
	}
	if c.scalar {
		return strings.Join(texts, " ")
	}
	return "[" + strings.Join(texts, " ") + "]"
}
