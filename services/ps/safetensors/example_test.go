package safetensors_test

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/raylink/raylink/services/ps/safetensors"
)

func Example() {
	var data []byte
	for _, v := range []float32{0.5, 1, -1.5, 2, 0, 1} {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	content, err := safetensors.Marshal([]safetensors.Tensor{
		{Name: "layer0.weight", DType: "F32", Shape: []int{2, 3}, Data: data},
	}, map[string]string{"step": "100"})
	if err != nil {
		panic(err)
	}
	file, err := safetensors.Parse(content)
	if err != nil {
		panic(err)
	}
	weight, err := file.Tensor("layer0.weight")
	fmt.Println(weight.DType, weight.Shape, len(weight.Data), err)
	fmt.Println(file.Metadata()["step"])
	_, err = file.Tensor("layer0.bias")
	fmt.Println(err)
	// Output:
	// F32 [2 3] 24 <nil>
	// 100
	// no such tensor: "layer0.bias"; there are "layer0.weight"
}
