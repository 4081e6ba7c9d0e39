"""Makes the small ONNX models that the codec's tests read. Needs the packages onnx, onnxruntime
and numpy.

Usage: python make.py [folder]      (default: the folder of this file)
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(7)


def info(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def model(graph, opset=20, extra=(), **more):
    imports = [helper.make_opsetid("", opset), *extra]
    made = helper.make_model(graph, opset_imports=imports, producer_name="make.py", **more)
    made.ir_version = 10
    return made


def mlp():
    """Two layers with a named batch, value infos, documentation and metadata."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1", transB=1, doc_string="first layer"),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("Gemm", ["a", "w2", ""], ["y"], name="fc2"),
    ]
    graph = helper.make_graph(
        nodes, "mlp", [info("x", F32, ["batch", 4])], [info("y", F32, ["batch", 3])],
        [weight("w1", 5, 4), weight("b1", 5), weight("w2", 5, 3)], doc_string="a small net",
        value_info=[info("h", F32, ["batch", 5]), info("a", F32, ["batch", 5])],
    )
    made = model(graph, doc_string="the model")
    made.producer_version, made.domain, made.model_version = "1.2", "org.example", 3
    helper.set_model_props(made, {"licence": "CC0", "classes": "a,b,c"})
    return made


def branches():
    """An If whose branches capture outer values, one of them through a nested If."""
    inner_then = helper.make_graph([helper.make_node("Mul", ["x", "scale"], ["it"])], "inner_then", [],
                                   [info("it", F32, [2])])
    inner_else = helper.make_graph([helper.make_node("Identity", ["moved"], ["ie"])], "inner_else", [],
                                   [info("ie", F32, [2])])
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "shift"], ["moved"]),
         helper.make_node("If", ["flag"], ["t"], name="inner", then_branch=inner_then, else_branch=inner_else)],
        "then", [], [info("t", F32, [2])], [weight("shift", 2)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [info("e", F32, [2])])
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], name="outer", then_branch=then, else_branch=other)],
        "branches", [info("flag", BOOL, []), info("x", F32, [2])], [info("y", F32, [2])], [weight("scale", 2)])
    return model(graph)


def loop():
    """A Loop that sums a captured value and collects the sums; a sequence between nodes."""
    body = helper.make_graph(
        [helper.make_node("Add", ["sum_in", "x"], ["sum_out"]), helper.make_node("Identity", ["go_in"], ["go_out"]),
         helper.make_node("Identity", ["sum_out"], ["scan"])],
        "body", [info("i", I64, []), info("go_in", BOOL, []), info("sum_in", F32, [2])],
        [info("go_out", BOOL, []), info("sum_out", F32, [2]), info("scan", F32, [2])])
    nodes = [
        helper.make_node("Loop", ["trips", "", "x"], ["last", "all"], name="loop", body=body),
        helper.make_node("SequenceConstruct", ["last", "x"], ["pair"]),
        helper.make_node("ConcatFromSequence", ["pair"], ["y"], axis=0),
    ]
    pair = helper.make_tensor_sequence_value_info("pair", F32, [2])
    graph = helper.make_graph(nodes, "loop", [info("x", F32, [2])], [info("y", F32, [4]), info("all", F32, [3, 2])],
                              [numpy_helper.from_array(np.array(3, np.int64), "trips")], value_info=[pair])
    return model(graph)


def function():
    """A model-local function with an attribute reference, and an operator of an unknown domain."""
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    reference = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    leaky.attribute.append(reference)
    body = helper.make_function("org.example", "Leak", ["a"], ["b"], [leaky], [helper.make_opsetid("", 20)], ["slope"])
    nodes = [
        helper.make_node("Leak", ["x"], ["m"], domain="org.example", slope=0.25),
        helper.make_node("Mystery", ["m"], ["y"], domain="org.unknown", level=3, modes=["fast", "odd"],
                         table=[0.5, -1.0], ranks=[1, 2, 3]),
    ]
    graph = helper.make_graph(nodes, "function", [info("x", F32, [2])], [info("y", F32, [None])])
    return model(graph, extra=[helper.make_opsetid("org.example", 1), helper.make_opsetid("org.unknown", 9)],
                 functions=[body])


def dtypes():
    """One initializer of every storage form."""
    half = np.array([1.0, -2.5, 65504.0], np.float16)
    weights = [
        helper.make_tensor("f32_data", F32, [2], [1.5, -2.0]),
        helper.make_tensor("f64_data", TensorProto.DOUBLE, [2], [1e300, -2.0]),
        helper.make_tensor("i8_data", TensorProto.INT8, [3], [-1, 127, -128]),
        helper.make_tensor("u8_data", TensorProto.UINT8, [2], [0, 255]),
        helper.make_tensor("i16_data", TensorProto.INT16, [2], [-300, 300]),
        helper.make_tensor("i32_data", TensorProto.INT32, [2], [-70000, 70000]),
        helper.make_tensor("i64_data", I64, [2], [-(1 << 62), 5]),
        helper.make_tensor("u32_data", TensorProto.UINT32, [2], [0, 4294967295]),
        helper.make_tensor("u64_data", TensorProto.UINT64, [2], [1, 1 << 63]),
        helper.make_tensor("bool_data", BOOL, [3], [True, False, True]),
        onnx.TensorProto(name="f16_data", data_type=TensorProto.FLOAT16, dims=[3],
                         int32_data=half.view(np.uint16).astype(np.int32)),
        onnx.TensorProto(name="bf16_data", data_type=TensorProto.BFLOAT16, dims=[1], int32_data=[0x3FC0]),
        onnx.TensorProto(name="i4_data", data_type=TensorProto.INT4, dims=[3], int32_data=[0x7F, 0x08]),
        onnx.TensorProto(name="i4_raw", data_type=TensorProto.INT4, dims=[3], raw_data=b"\x7f\x08"),
        onnx.TensorProto(name="f8_raw", data_type=TensorProto.FLOAT8E4M3FN, dims=[2], raw_data=b"\x38\xb8"),
        onnx.TensorProto(name="c64_data", data_type=TensorProto.COMPLEX64, dims=[1], float_data=[1.0, -1.0]),
        helper.make_tensor("words", TensorProto.STRING, [2], [b"lim", "b\u00e9ck".encode()]),
        numpy_helper.from_array(half, "f16_raw"),
        numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"),
        numpy_helper.from_array(np.array(2.5, np.float32), "scalar"),
    ]
    nodes = [helper.make_node("Identity", [w.name], ["out_" + w.name]) for w in weights]
    outputs = [info("out_" + w.name, w.data_type, list(w.dims)) for w in weights]
    return model(helper.make_graph(nodes, "dtypes", [], outputs, weights))


def sparse():
    """Sparse initializers, linear and coordinate indices."""
    def tensor(name, indices, shape):
        values = numpy_helper.from_array(np.array([1.0, 2.0, 3.0], np.float32), name)
        return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices, np.int64), name + "_at"), shape)

    graph = helper.make_graph([helper.make_node("Add", ["s1", "s2"], ["y"])], "sparse", [], [info("y", F32, [2, 4])],
                              sparse_initializer=[tensor("s1", [0, 3, 6], [2, 4]),
                                                  tensor("s2", [[0, 1], [1, 0], [1, 3]], [2, 4])])
    return model(graph)


def external(folder):
    """A model whose weights lie in a file of their own, in a subfolder."""
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], "external",
                              [info("x", F32, [1, 16])], [info("y", F32, [1, 8])], [weight("w", 16, 8), weight("b", 8)])
    made = model(graph)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "external.bin").unlink(missing_ok=True)
    onnx.save_model(made, folder / "external.onnx", save_as_external_data=True, location="data/external.bin",
                    size_threshold=64)


def outside(name, shape, location):
    """A float tensor whose data lies at the start of a file."""
    tensor = onnx.TensorProto(name=name, data_type=F32, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(4 * int(np.prod(shape))))
    return tensor


def carried(folder):
    """External data in parts that the codec only carries: a function, and a sparse attribute inside a branch."""
    (folder / "data" / "more.bin").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    offset = helper.make_node("Constant", [], ["c"], value=outside("", [16], "data/external.bin"))
    shift = [offset, helper.make_node("Add", ["a", "c"], ["b"])]
    body = helper.make_function("org.example", "Shift", ["a"], ["b"], shift, [helper.make_opsetid("", 20)])
    places = numpy_helper.from_array(np.array([0, 3, 6], np.int64))
    sparse_value = helper.make_sparse_tensor(outside("", [3], "data/more.bin"), places, [16])

    def branch(name):
        made = helper.make_node("Constant", [], [name], sparse_value=sparse_value)
        return helper.make_graph([made], name, [], [info(name, F32, [16])])

    nodes = [helper.make_node("Shift", ["x"], ["m"], domain="org.example"),
             helper.make_node("If", ["flag"], ["s"], then_branch=branch("t"), else_branch=branch("e")),
             helper.make_node("Add", ["m", "s"], ["y"])]
    graph = helper.make_graph(nodes, "carried", [info("x", F32, [16]), info("flag", BOOL, [])], [info("y", F32, [16])])
    return model(graph, extra=[helper.make_opsetid("org.example", 1)], functions=[body])


def infos():
    """Declarations beside those that count: twice, of an input, an output, a captured value and of nothing."""
    def note(name, doc):
        return helper.make_tensor_value_info(name, F32, [2], doc_string=doc)

    def branch(name, op):
        return helper.make_graph([helper.make_node(op, ["x"], [name])], name, [], [info(name, F32, [2])],
                                 value_info=[note("x", "captured")])

    nodes = [helper.make_node("If", ["flag"], ["h"], then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs")),
             helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes, "infos", [info("x", F32, [2]), info("flag", BOOL, [])], [info("y", F32, [2])],
        value_info=[note("h", "h-first"), note("h", "h-again"), note("x", "x-too"), note("y", "y-too"),
                    note("ghost", "")])
    return model(graph)


def old():
    """Opset 9 forms that later opsets changed."""
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["u"], axes=[1]),
        helper.make_node("Squeeze", ["u"], ["s"], axes=[1]),
        helper.make_node("Clip", ["s"], ["c"], min=-1.0, max=1.0),
        helper.make_node("Slice", ["c"], ["sl"], axes=[2], starts=[0], ends=[4]),
        helper.make_node("Pad", ["sl"], ["p"], pads=[0, 0, 1, 0, 0, 1], value=0.5),
        helper.make_node("Split", ["p"], ["p1", "p2"], axis=2, split=[2, 4]),
        helper.make_node("ReduceSum", ["p1"], ["r1"], axes=[2], keepdims=1),
        helper.make_node("ReduceMean", ["p2"], ["r2"], axes=[2], keepdims=1),
        helper.make_node("Add", ["r1", "r2"], ["a"]),
        helper.make_node("Dropout", ["a"], ["d"], ratio=0.3),
        helper.make_node("Softmax", ["p2"], ["soft"]),  # over axes 1 and 2 together
        helper.make_node("Mul", ["soft", "d"], ["m"]),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array(2.0, np.float32))),
        helper.make_node("Mul", ["m", "two"], ["m2"]),
        helper.make_node("TopK", ["m2"], ["top", "at"], k=2),
        helper.make_node("BatchNormalization", ["top4", "g", "be", "mu", "var"], ["y"], epsilon=1e-3),
    ]
    nodes.insert(15, helper.make_node("Unsqueeze", ["top"], ["top4"], axes=[3]))
    ones = np.ones(3, np.float32)
    weights = [
        numpy_helper.from_array(ones * 2, "g"), numpy_helper.from_array(ones / 2, "be"),
        numpy_helper.from_array(ones / 4, "mu"), numpy_helper.from_array(ones * 3, "var"),
    ]
    graph = helper.make_graph(nodes, "old", [info("x", F32, ["n", 3, 5])],
                              [info("y", F32, ["n", 3, 2, 1]), info("at", I64, ["n", 3, 2])], weights)
    made = model(graph, opset=9)
    made.ir_version = 4
    return made


def upsample():
    """Upsample of opset 9."""
    scales = numpy_helper.from_array(np.array([1, 1, 2, 3], np.float32), "scales")
    graph = helper.make_graph([helper.make_node("Upsample", ["x", "scales"], ["y"], mode="linear")], "upsample",
                              [info("x", F32, [1, 2, 3, 3])], [info("y", F32, [1, 2, 6, 9])], [scales])
    return model(graph, opset=9)


def shuffled():
    """The first model with its nodes in reverse order, which the specification forbids but tools write."""
    made = mlp()
    nodes = list(made.graph.node)[::-1]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def unknown_fields():
    """The first model with fields that no version of ONNX knows, in model, graph and node."""
    made = mlp()
    field = b"\xa2\x3e\x05hello"  # field 996, length-delimited
    node = made.graph.node[1].SerializeToString() + field
    graph = onnx.GraphProto()
    graph.CopyFrom(made.graph)
    del graph.node[:]
    head = b"".join(tag(1, n.SerializeToString()) for n in made.graph.node[:1])
    tail = b"".join(tag(1, n.SerializeToString()) for n in made.graph.node[2:])
    body = head + tag(1, node) + tail + graph.SerializeToString() + field
    made.ClearField("graph")
    parts = made.SerializeToString()
    # Split where field 8 (the imports) begins, so that the graph keeps its place.
    at = parts.index(b"\x42", parts.index(b"the model"))
    return parts[:at] + tag(7, body) + parts[at:] + field


def everything():
    """Every message and every kind of field that IR version 13 has, in one model that no engine runs."""
    T = TensorProto
    note = onnx.StringStringEntryProto(key="made", value="by make.py")

    def noted(message, doc=True):
        message.metadata_props.append(note)
        if doc:
            message.doc_string = "a note"
        return message

    def raw(name, dtype, dims, data):
        return noted(onnx.TensorProto(name=name, data_type=dtype, dims=dims, raw_data=data))

    def value(name, ty):
        return noted(helper.make_value_info(name, ty))

    tensor = helper.make_tensor_type_proto(F32, ["n", 3, None])
    tensor.denotation = "IMAGE"
    tensor.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    opaque = onnx.TypeProto()
    opaque.opaque_type.domain, opaque.opaque_type.name = "org.example", "Thing"
    types = {
        "x": tensor,
        "flag": helper.make_tensor_type_proto(BOOL, []),
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "map": helper.make_map_type_proto(T.STRING, tensor),
        "sparse": helper.make_sparse_tensor_type_proto(F32, [2, 3]),
        "opaque": opaque,
        "unranked": helper.make_tensor_type_proto(F32, None),
        "tiny": helper.make_tensor_type_proto(T.FLOAT6E3M2, [4]),
    }
    weights = [
        raw("w.f32", F32, [2], b"\0" * 8), raw("w.f16", T.FLOAT16, [2], b"\0" * 4),
        raw("w.bf16", T.BFLOAT16, [1], b"\x80\x3f"), raw("w.f64", T.DOUBLE, [], b"\0" * 8),
        raw("w.c64", T.COMPLEX64, [1], b"\0" * 8), raw("w.c128", T.COMPLEX128, [1], b"\0" * 16),
        raw("w.i4", T.INT4, [3], b"\x7f\x08"), raw("w.u4", T.UINT4, [1], b"\x0f"),
        raw("w.i2", T.INT2, [5], b"\x1b\x03"), raw("w.u2", T.UINT2, [4], b"\xe4"),
        raw("w.f4", T.FLOAT4E2M1, [2], b"\x21"), raw("w.f6", T.FLOAT6E2M3, [4], b"\x01\x20\x0c"),
        raw("w.f6b", T.FLOAT6E3M2, [1], b"\x3f"), raw("w.f8a", T.FLOAT8E4M3FN, [1], b"\x38"),
        raw("w.f8b", T.FLOAT8E4M3FNUZ, [1], b"\x38"), raw("w.f8c", T.FLOAT8E5M2, [1], b"\x38"),
        raw("w.f8d", T.FLOAT8E5M2FNUZ, [1], b"\x38"), raw("w.f8e", T.FLOAT8E8M0, [1], b"\x7f"),
        raw("w.bool", BOOL, [2], b"\1\0"),
        noted(helper.make_tensor("w.words", T.STRING, [2], [b"lim", "b\u00e9ck".encode()])),
    ]

    def node(op, inputs, outputs, **attributes):
        made = noted(helper.make_node(op, inputs, outputs, name=op.lower() + "." + outputs[0], **attributes))
        for attribute in made.attribute:
            attribute.doc_string = "a note"
        device = made.device_configurations.add(configuration_id="two", pipeline_stage=1)
        spec = device.sharding_spec.add(tensor_name=outputs[0], device=[0, 1])
        spec.index_to_device_group_map.add(key=-1, value=[0, 1])
        dim = spec.sharded_dim.add(axis=0)
        dim.simple_sharding.add(dim_value=2, num_shards=2)
        return made

    def body(name, nodes, inputs, outputs):
        made = noted(helper.make_graph(nodes, name, inputs, outputs, [raw(name + ".w", F32, [1], b"\0" * 4)]))
        made.value_info.append(value(nodes[0].output[0], tensor))
        made.quantization_annotation.add(tensor_name=nodes[0].output[0]).quant_parameter_tensor_names.append(note)
        return made

    def branch(name):
        nodes = [node("Neg", ["x"], [name + ".n"]), node("Abs", [name + ".n"], [name])]
        return body(name, nodes, [], [value(name, tensor)])

    scalar, truth = helper.make_tensor_type_proto(I64, []), helper.make_tensor_type_proto(BOOL, [])
    loop = body("loop", [node("Add", ["s", "x"], ["sum"]), node("Identity", ["go"], ["go_on"])],
                [value("i", scalar), value("go", truth), value("s", tensor)], [value("go_on", truth), value("sum", tensor)])
    scan = body("scan", [node("Add", ["a", "b"], ["c"]), node("Identity", ["c"], ["d"])],
                [value("a", tensor), value("b", tensor)], [value("c", tensor), value("d", tensor)])
    places = numpy_helper.from_array(np.array([1], np.int64))
    stored = helper.make_sparse_tensor(numpy_helper.from_array(np.ones(1, np.float32)), places, [3])
    kinds = node("Kinds", ["x", "", "w.f32"], ["kinds", "", "opaque.out"], domain="org.example", overload="wide", f=0.5,
                 i=-1, s=b"\xff", t=raw("inner", F32, [1], b"\0" * 4), floats=[0.5, -1.0], ints=[1, -1], strings=["a", ""],
                 g=branch("kind"), tp=tensor, sparse=stored)
    for name, kind, field, content in (
            ("tensors", "TENSORS", "tensors", weights[:2]), ("graphs", "GRAPHS", "graphs", [branch("g1"), branch("g2")]),
            ("types", "TYPE_PROTOS", "type_protos", [tensor, opaque]), ("sparses", "SPARSE_TENSORS", "sparse_tensors", [stored])):
        attribute = kinds.attribute.add(name=name, type=getattr(onnx.AttributeProto, kind), doc_string="a note")
        getattr(attribute, field).extend(content)
    nodes = [
        kinds, node("If", ["flag"], ["chosen"], then_branch=branch("then"), else_branch=branch("else")),
        node("Loop", ["", "flag", "x"], ["looped"], body=loop), node("Scan", ["x", "chosen"], ["scanned", "all"], body=scan, num_scan_inputs=1),
        node("FusedMatMul", ["x", "looped"], ["product"], domain="com.microsoft", alpha=0.5),
        node("Odd", ["x", "sequence"], ["odd", "hidden"], domain="org.example"),
    ]
    outputs = ["kinds", "opaque.out", "chosen", "looped", "scanned", "all", "product"]
    graph = noted(helper.make_graph(nodes, "everything", [value(*item) for item in types.items()],
                                    [value(name, tensor) for name in outputs], weights))
    graph.output.append(value("odd", types["optional"]))
    graph.value_info.append(value("hidden", types["map"]))
    graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.append(note)
    functions = []
    for overload in ("", "wide"):
        made = helper.make_function("org.example", "Kinds", ["a"], ["b"], [node("Neg", ["a"], ["b"])],
                                    [helper.make_opsetid("", 24)], ["f"], overload=overload)
        made.attribute_proto.append(helper.make_attribute("level", 3))
        made.value_info.append(value("b", tensor))
        functions.append(noted(made))
    imports = [helper.make_opsetid("org.example", 1), helper.make_opsetid("com.microsoft", 1)]
    made = noted(model(graph, opset=24, extra=imports, functions=functions))
    made.ir_version, made.producer_version, made.domain, made.model_version = 13, "1", "org.example", 2
    training = made.training_info.add()
    training.initialization.CopyFrom(branch("init"))
    training.algorithm.CopyFrom(branch("train"))
    training.initialization_binding.append(note)
    training.update_binding.append(note)
    made.configuration.add(name="two", num_devices=2, device=["a", "b"])
    onnx.load_model_from_string(marked(made))
    return marked(made)


def marked(message):
    """A message as protobuf writes it, with a field 996 that nobody knows at the end of each message inside."""
    out = b""
    for field, content in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            alone = type(message)()
            if field.is_repeated:
                getattr(alone, field.name).extend(content)
            else:
                setattr(alone, field.name, content)
            out += alone.SerializeToString()
        else:
            for inner in content if field.is_repeated else [content]:
                out += tag(field.number, marked(inner))
    return out + b"\xa2\x3e\x05hello"


def tag(number, content):
    def varint(n):
        out = b""
        while n > 127:
            out += bytes([n & 127 | 128])
            n >>= 7
        return out + bytes([n])

    return varint(number << 3 | 2) + varint(len(content)) + content


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    folder = folder if folder.is_dir() else folder.parent
    unchecked = {"shuffled"}
    for make in (mlp, branches, loop, function, dtypes, sparse, old, upsample, infos, shuffled):
        made = make()
        if make.__name__ not in unchecked:
            onnx.checker.check_model(made)
        (folder / f"{make.__name__}.onnx").write_bytes(made.SerializeToString())
    (folder / "unknown_fields.onnx").write_bytes(unknown_fields())
    onnx.load_from_string(unknown_fields())
    (folder / "everything.onnx").write_bytes(everything())
    external(folder)
    (folder / "carried.onnx").write_bytes(carried(folder).SerializeToString())
    # What the ONNX Runtime says about the old forms, which the canonical ones are compared with.
    import onnxruntime
    x = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    y, at = onnxruntime.InferenceSession(folder / "old.onnx").run(None, {"x": x})
    for name, array in (("x", x), ("y", y), ("at", at)):
        np.save(folder / f"old.{name}.npy", array)


if __name__ == "__main__":
    main()
