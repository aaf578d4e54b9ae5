package safetensors_test

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/ps/safetensors"
)

var python = flag.String("python", "", "the Python that must have NumPy and safetensors; without it, the tests look for one, and may skip")

// interop returns a function that runs testdata/interop.py. It installs nothing: make test-clients
// does, into an environment of its own, and passes its Python by -python.
func interop(t *testing.T) func(args ...string) []byte {
	t.Helper()
	name := *python
	if name == "" {
		found, err := exec.LookPath("python3")
		if err != nil {
			t.Skip("skipped: there is no python3; make test-clients runs this test with one")
		}
		if out, err := exec.CommandContext(t.Context(), found, "testdata/interop.py", "check").CombinedOutput(); err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Skipf("skipped: %s lacks NumPy or safetensors (%s); make test-clients runs this test with both", found, lines[len(lines)-1])
		}
		name = found
	}
	return func(args ...string) []byte {
		t.Helper()
		command := exec.CommandContext(t.Context(), name, append([]string{"testdata/interop.py"}, args...)...)
		var stderr strings.Builder
		command.Stderr = &stderr
		out, err := command.Output()
		require.NoError(t, err, stderr.String())
		return out
	}
}

// pythonTensor is a tensor as interop.py prints it.
type pythonTensor struct {
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
	Data  string `json:"data"`
}

func TestPythonReadsAndMapsWhatIsWritten(t *testing.T) {
	run := interop(t)
	t.Logf("%s", run("check"))
	var tensors []safetensors.Tensor
	for i, dtype := range slices.Sorted(maps.Keys(bits)) {
		data := make([]byte, bits[dtype])
		for j := range data {
			data[j] = byte(i + j)
		}
		if dtype == "BOOL" {
			copy(data, []byte{0, 1, 1, 0, 1, 0, 0, 1})
		}
		tensors = append(tensors, safetensors.Tensor{Name: "of/" + dtype, DType: dtype, Shape: []int{2, 4}, Data: data})
	}
	tensors = append(tensors,
		safetensors.Tensor{Name: "scalar", DType: "F32", Data: []byte{0, 0, 128, 63}},
		safetensors.Tensor{Name: "none", DType: "F64", Shape: []int{3, 0}},
		safetensors.Tensor{Name: "é\"\\\n😀</>&", DType: "U8", Shape: []int{1}, Data: []byte{7}},
	)
	metadata := map[string]string{"step": "100", "quoted": "a \"b\"\n\\ é 😀 \x7f", "": ""}
	header, ordered, _, err := safetensors.Layout(tensors, metadata)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "model.safetensors")
	content := header
	for _, tensor := range ordered {
		content = append(content, tensor.Data...)
	}
	require.NoError(t, os.WriteFile(path, content, 0o600))

	var got struct {
		Tensors  map[string]pythonTensor `json:"tensors"`
		Metadata map[string]string       `json:"metadata"`
	}
	require.NoError(t, json.Unmarshal(run("read", path), &got))
	assert.Equal(t, metadata, got.Metadata)
	assert.Len(t, got.Tensors, len(tensors))
	for _, want := range tensors {
		assert.Equal(t, pythonTensor{want.DType, append([]int{}, want.Shape...), hex.EncodeToString(want.Data)}, got.Tensors[want.Name], want.Name)
	}
}

func TestWhatPythonWritesIsRead(t *testing.T) {
	run := interop(t)
	path := filepath.Join(t.TempDir(), "model.safetensors")
	run("write", path)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	file, err := safetensors.Parse(content)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"framework": "numpy", "note": "a \"quoted\"\nline"}, file.Metadata())

	le := binary.LittleEndian
	want := map[string]safetensors.Tensor{
		"scalar": {DType: "F64", Shape: []int{}, Data: le.AppendUint64(nil, math.Float64bits(1.5))},
		"none":   {DType: "F16", Shape: []int{0, 3}, Data: []byte{}},
		"é\"\n":  {DType: "BOOL", Shape: []int{2}, Data: []byte{1, 0}},
	}
	half := []uint16{0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500}
	for name, element := range map[string]struct {
		dtype  string
		append func(b []byte, i int) []byte
	}{
		"bool":      {"BOOL", func(b []byte, i int) []byte { return append(b, byte(min(i, 1))) }},
		"int8":      {"I8", func(b []byte, i int) []byte { return append(b, byte(i)) }},
		"uint8":     {"U8", func(b []byte, i int) []byte { return append(b, byte(i)) }},
		"int16":     {"I16", func(b []byte, i int) []byte { return le.AppendUint16(b, uint16(i)) }},
		"uint16":    {"U16", func(b []byte, i int) []byte { return le.AppendUint16(b, uint16(i)) }},
		"float16":   {"F16", func(b []byte, i int) []byte { return le.AppendUint16(b, half[i]) }},
		"int32":     {"I32", func(b []byte, i int) []byte { return le.AppendUint32(b, uint32(i)) }},
		"uint32":    {"U32", func(b []byte, i int) []byte { return le.AppendUint32(b, uint32(i)) }},
		"float32":   {"F32", func(b []byte, i int) []byte { return le.AppendUint32(b, math.Float32bits(float32(i))) }},
		"int64":     {"I64", func(b []byte, i int) []byte { return le.AppendUint64(b, uint64(i)) }},
		"uint64":    {"U64", func(b []byte, i int) []byte { return le.AppendUint64(b, uint64(i)) }},
		"float64":   {"F64", func(b []byte, i int) []byte { return le.AppendUint64(b, math.Float64bits(float64(i))) }},
		"complex64": {"C64", func(b []byte, i int) []byte { return le.AppendUint64(b, uint64(math.Float32bits(float32(i)))) }},
	} {
		var data []byte
		for i := range 6 {
			data = element.append(data, i)
		}
		want["range/"+name] = safetensors.Tensor{DType: element.dtype, Shape: []int{2, 3}, Data: data}
	}
	assert.ElementsMatch(t, slices.Collect(maps.Keys(want)), file.Names())
	for name, tensor := range want {
		tensor.Name = name
		got, err := file.Tensor(name)
		require.NoError(t, err)
		assert.Equal(t, tensor, got)
	}
}

// Content must have one meaning: whatever is accepted here, Python's library accepts, and reads the
// same tensors in it. The reverse need not hold: that library lets some content pass that the
// format forbids, for example duplicate names.
func TestPythonAcceptsWhateverIsAccepted(t *testing.T) {
	run := interop(t)
	var contents [][]byte
	for _, test := range hostile {
		if len(test.content) < 1000 {
			contents = append(contents, test.content)
		}
	}
	// Random changes of valid content, which often remain valid or nearly so.
	const seed = 10
	random := rand.New(rand.NewPCG(seed, 0))
	valid := content(`{"__metadata__":{"k":"v\n"},"a":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]},`+
		`"b\u00e9":{"dtype":"I8","shape":[2],"data_offsets":[2,4]},"c":{"dtype":"F4","shape":[0],"data_offsets":[4,4]}}`, 4)
	alphabet := []byte(`{}[]:,"\/ 0123456789-+.eEuUnabFI` + "\n\x00\xc3\xa9")
	for range 20_000 {
		b := slices.Clone(valid[8:])
		for range 1 + random.IntN(3) {
			at := random.IntN(len(b))
			switch c := alphabet[random.IntN(len(alphabet))]; random.IntN(4) {
			case 0:
				b = slices.Insert(b, at, c)
			case 1:
				b = slices.Delete(b, at, at+1)
			default:
				b[at] = c
			}
		}
		contents = append(contents, append(binary.LittleEndian.AppendUint64(nil, uint64(len(b)-4)), b...))
	}
	var file []byte
	for _, b := range contents {
		file = append(binary.LittleEndian.AppendUint64(file, uint64(len(b))), b...)
	}
	path := filepath.Join(t.TempDir(), "contents")
	require.NoError(t, os.WriteFile(path, file, 0o600))
	var verdicts []map[string]pythonTensor
	require.NoError(t, json.Unmarshal(run("judge", path), &verdicts))
	require.Len(t, verdicts, len(contents))

	accepted, onlyThere := 0, 0
	for i, b := range contents {
		parsed, err := safetensors.Parse(b)
		if err != nil {
			if verdicts[i] != nil {
				onlyThere++
			}
			continue
		}
		accepted++
		require.NotNil(t, verdicts[i], "Python refuses %q", b)
		got := make(map[string]pythonTensor)
		for _, x := range parsed.Tensors() {
			got[x.Name] = pythonTensor{x.DType, x.Shape, hex.EncodeToString(x.Data)}
		}
		require.Equal(t, verdicts[i], got, "%q", b)
	}
	t.Logf("seed %d: of %d contents, %d are accepted here and in Python, %d only there", seed, len(contents), accepted, onlyThere)
	assert.Greater(t, accepted, 100, "the changes leave some content valid")
}
