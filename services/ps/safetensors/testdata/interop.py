"""Reads and writes safetensors content for python_test.go, by the libraries that Python's users have.

interop.py check            fails if a library is missing, and prints the versions
interop.py read FILE        prints what NumPy and safetensors read in FILE, which they map
interop.py write FILE       writes FILE, whose tensors python_test.go knows
interop.py judge FILE       prints for each content in FILE whether safetensors accepts it
"""

import json
import struct
import sys

import numpy
import safetensors
import safetensors.numpy

NUMPY = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
    "I64": "<i8", "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


def read(path):
    """Reads a file in three ways, which must agree."""
    with open(path, "rb") as file:
        content = file.read()
    tensors = {}
    # The library's own parser, for all types.
    for name, tensor in safetensors.deserialize(content):
        tensors[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data": bytes(tensor["data"]).hex()}
    # NumPy alone: the header is JSON, and the data are mapped.
    size = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:size])
    metadata = header.pop("__metadata__", {})
    assert sorted(header) == sorted(tensors)
    for name, info in header.items():
        begin, end = info["data_offsets"]
        if info["dtype"] in NUMPY and end > begin:
            mapped = numpy.memmap(path, NUMPY[info["dtype"]], "r", size + begin, tuple(info["shape"]))
            assert mapped.flags.aligned, name
            assert mapped.tobytes().hex() == tensors[name]["data"], name
            assert list(mapped.shape) == tensors[name]["shape"], name
    # The library's mapped arrays.
    with safetensors.safe_open(path, framework="numpy") as file:
        assert (file.metadata() or {}) == metadata
        for name in file.keys():
            if tensors[name]["dtype"] in NUMPY:
                array = file.get_tensor(name)
                assert array.dtype == numpy.dtype(NUMPY[tensors[name]["dtype"]]), name
                assert array.tobytes().hex() == tensors[name]["data"], name
    return {"tensors": tensors, "metadata": metadata}


def write(path):
    tensors = {"scalar": numpy.array(1.5, numpy.float64), "none": numpy.zeros((0, 3), numpy.float16), 'é"\n': numpy.array([True, False])}
    for dtype in NUMPY.values():
        tensors["range/" + numpy.dtype(dtype).name] = numpy.arange(6).reshape(2, 3).astype(dtype)
    safetensors.numpy.save_file(tensors, path, {"framework": "numpy", "note": 'a "quoted"\nline'})


def judge(path):
    with open(path, "rb") as file:
        while prefix := file.read(8):
            content = file.read(struct.unpack("<Q", prefix)[0])
            try:
                tensors = safetensors.deserialize(content)
            except Exception:
                yield None
                continue
            yield {name: {"dtype": t["dtype"], "shape": t["shape"], "data": bytes(t["data"]).hex()} for name, t in tensors}


match sys.argv[1]:
    case "check":
        print("NumPy", numpy.__version__, "and safetensors", safetensors.__version__)
    case "read":
        print(json.dumps(read(sys.argv[2])))
    case "write":
        write(sys.argv[2])
    case "judge":
        print(json.dumps(list(judge(sys.argv[2]))))
