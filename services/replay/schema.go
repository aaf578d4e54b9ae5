package replay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/raylink/raylink/services/replay/ring"
)

// SchemaError means that a replay does not have the columns that a client expects. It matches
// [ring.ErrLayout].
type SchemaError struct {
	// Row is the full name of the row's message, or empty if the client has no row: the replay was
	// restarted with other columns.
	Row string
	// Index is the place of the first column that differs, Column its name.
	Index  int
	Column string
	// Want is what the client expects, Got what the replay has; nil where there is no such column.
	Want, Got *ring.Column
}

// Error names the column and has both descriptions.
func (e *SchemaError) Error() string {
	row, advice := "the row "+e.Row, "create the replay with the row's Columns(), or open it as the row that it was created with"
	if e.Row == "" {
		row, advice = "this client", "open it anew"
	}
	return fmt.Sprintf("the columns do not match: column %d, %q, is %s in %s, and %s in the replay: %s",
		e.Index, e.Column, describe(e.Want), row, describe(e.Got), advice)
}

// Is reports whether target is [ring.ErrLayout].
func (e *SchemaError) Is(target error) bool { return target == ring.ErrLayout }

// describe returns a column as text, such as "frame uint8[84 84]".
func describe(c *ring.Column) string {
	if c == nil {
		return "missing"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v", c.Name, c.DType)
	if len(c.Shape) > 0 {
		fmt.Fprint(&b, c.Shape)
	}
	return b.String()
}

// compareColumns returns a [SchemaError] for the first column that differs.
func compareColumns(row string, want, got []ring.Column) error {
	for i := range max(len(want), len(got)) {
		e := &SchemaError{Row: row, Index: i}
		if i < len(got) {
			e.Got, e.Column = &got[i], got[i].Name
		}
		if i < len(want) {
			e.Want, e.Column = &want[i], want[i].Name
		}
		if e.Want == nil || e.Got == nil || e.Want.Name != e.Got.Name || e.Want.DType != e.Got.DType || !slices.Equal(e.Want.Shape, e.Got.Shape) {
			return e
		}
	}
	return nil
}
