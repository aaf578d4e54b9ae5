package ring

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
)

// TestElementTypesAreThoseOfTheSchema compares numbers, names and sizes.
func TestElementTypesAreThoseOfTheSchema(t *testing.T) {
	for number, name := range tensorv1.DataType_name {
		dtype := DType(number)
		assert.Equal(t, row.Size(tensorv1.DataType(number)), dtype.Size(), name)
		if number != 0 {
			assert.Equal(t, strings.ToLower(strings.TrimPrefix(name, "DATA_TYPE_")), dtype.String())
		}
	}
	assert.Zero(t, DType(len(tensorv1.DataType_name)).Size())
}
