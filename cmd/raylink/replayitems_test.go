package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// TestElementsOfAllTypes prints the second row of columns of all types, in JSON and for a person.
func TestElementsOfAllTypes(t *testing.T) {
	for dtype, test := range map[tensorv1.DataType]struct {
		data string
		json string
	}{
		tensorv1.DataType_DATA_TYPE_BOOL:     {"\x00\x01", "true"},
		tensorv1.DataType_DATA_TYPE_UINT8:    {"\x00\xff", "255"},
		tensorv1.DataType_DATA_TYPE_INT8:     {"\x00\xff", "-1"},
		tensorv1.DataType_DATA_TYPE_INT16:    {"\x00\x00\xfe\xff", "-2"},
		tensorv1.DataType_DATA_TYPE_UINT16:   {"\x00\x00\xfe\xff", "65534"},
		tensorv1.DataType_DATA_TYPE_INT32:    {"\x00\x00\x00\x00\xfd\xff\xff\xff", "-3"},
		tensorv1.DataType_DATA_TYPE_UINT32:   {"\x00\x00\x00\x00\xff\xff\xff\xff", "4294967295"},
		tensorv1.DataType_DATA_TYPE_INT64:    {"12345678\xff\xff\xff\xff\xff\xff\xff\xff", "-1"},
		tensorv1.DataType_DATA_TYPE_UINT64:   {"12345678\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"},
		tensorv1.DataType_DATA_TYPE_FLOAT16:  {"\x00\x00\x00\x3e", "1.5"},
		tensorv1.DataType_DATA_TYPE_BFLOAT16: {"\x00\x00\xc0\x3f", "1.5"},
		tensorv1.DataType_DATA_TYPE_FLOAT32:  {"\x00\x00\x00\x00\xcd\xcc\xcc\x3d", "0.1"},
		tensorv1.DataType_DATA_TYPE_FLOAT64:  {"12345678\x00\x00\x00\x00\x00\x00\xf8\x7f", `"NaN"`},
	} {
		scalar := &tensorv1.Tensor{Dtype: dtype, Shape: []uint64{2}, Data: []byte(test.data)}
		text, err := json.Marshal(elements(scalar, 1).json())
		require.NoError(t, err)
		assert.Equal(t, test.json, string(text), dtype)
		list := &tensorv1.Tensor{Dtype: dtype, Shape: []uint64{2, 1}, Data: []byte(test.data)}
		text, err = json.Marshal(elements(list, 1).json())
		require.NoError(t, err)
		assert.Equal(t, "["+test.json+"]", string(text), dtype)
	}
	unknown := &tensorv1.Tensor{Dtype: 77, Shape: []uint64{2}, Data: []byte("12")}
	assert.Equal(t, []any{}, elements(unknown, 1).json())
	assert.Empty(t, elements(&tensorv1.Tensor{Dtype: 2, Shape: []uint64{1}, Data: []byte("1")}, 1).short(), "a row too few")
	eight := &tensorv1.Tensor{Dtype: tensorv1.DataType_DATA_TYPE_UINT8, Shape: []uint64{1, 2, 4}, Data: []byte("\x01\x02\x03\x04\x05\x06\x07\x08")}
	assert.Equal(t, "[1 2 3 4 5 6 ... (8)]", elements(eight, 0).short())
}
