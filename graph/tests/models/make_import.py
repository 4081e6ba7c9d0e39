"""Makes the models that the importer's tests take apart, with ONNX Runtime's answers (`*.x.npy`, `*.y.npy`). Needs the
packages onnx, onnxruntime and numpy.

Usage: python make_import.py [folder]      (default: the folder of this file)
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, TensorProto, helper

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def referring(node, name, reference, kind):
    """The node with an attribute that stands for one of the caller's."""
    node.attribute.append(AttributeProto(name=name, ref_attr_name=reference, type=kind))
    return node


def calls():
    """Functions that call functions, with attributes given, left to their default and left out, an operand left out, a
    call inside a branch that captures, and functions written for another opset than the model."""
    norm = helper.make_function(
        "local", "Centre", ["x"], ["y"],
        [referring(helper.make_node("ReduceMean", ["x"], ["m"]), "axes", "axes", AttributeProto.INTS),
         helper.make_node("Sub", ["x", "m"], ["y"])],
        [helper.make_opsetid("", 13)], attributes=["axes"])
    scaled = helper.make_function(
        "local", "Scaled", ["x", "bias"], ["y", "twice"],
        [referring(helper.make_node("Constant", [], ["s"]), "value_float", "scale", AttributeProto.FLOAT),
         helper.make_node("Mul", ["x", "s"], ["scaled"]),
         helper.make_node("Clip", ["scaled", "", "bias"], ["y"]),
         helper.make_node("Add", ["y", "y"], ["twice"])],
        [helper.make_opsetid("", 17)], attribute_protos=[helper.make_attribute("scale", 2.0)])
    both = helper.make_function(
        "local", "Both", ["x"], ["y"],
        [helper.make_node("Centre", ["x"], ["c"], domain="local", axes=[-1]),
         referring(helper.make_node("Scaled", ["c"], ["s", "t"], domain="local"), "scale", "factor", AttributeProto.FLOAT),
         helper.make_node("Add", ["s", "t"], ["y"])],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)], attributes=["factor"])
    then = helper.make_graph([helper.make_node("Scaled", ["a", "limit"], ["t", "u"], domain="local", scale=0.5)], "then", [],
                             [info("t", F32, [2, 3])])
    other = helper.make_graph([helper.make_node("Both", ["a"], ["e"], domain="local")], "else", [], [info("e", F32, [2, 3])])
    nodes = [
        helper.make_node("Both", ["x"], ["a"], domain="local", factor=3.0),
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "limit"], ["large"]),
        helper.make_node("If", ["large"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    limit = helper.make_tensor("limit", F32, [], [0.25])
    graph = helper.make_graph(nodes, "calls", [info("x", F32, [2, 3])], [info("y", F32, [2, 3])], [limit])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=[both, norm, scaled], opset_imports=imports, ir_version=10)


def sequences():
    """Splits of every kind, elements at positions from both ends, inserting, erasing, lengths and both kinds of
    concatenation."""
    def const(name, value):
        return helper.make_tensor(name, I64, np.shape(value), np.ravel(value))

    nodes = [
        helper.make_node("SplitToSequence", ["x", "two"], ["pairs"], axis=1),            # 2, 2, 1
        helper.make_node("SequenceAt", ["pairs", "minus"], ["last"]),
        helper.make_node("SplitToSequence", ["x", "sizes"], ["parts"], axis=1),          # 1, 4
        helper.make_node("SequenceAt", ["parts", "one"], ["four"]),
        helper.make_node("SplitToSequence", ["x"], ["rows"], axis=0, keepdims=0),
        helper.make_node("SequenceErase", ["rows", "zero"], ["fewer"]),
        helper.make_node("SequenceAt", ["rows", "zero"], ["first"]),
        helper.make_node("SequenceInsert", ["fewer", "first"], ["turned"]),
        helper.make_node("ConcatFromSequence", ["turned"], ["stacked"], axis=0, new_axis=1),
        helper.make_node("SequenceConstruct", ["last", "four"], ["made"]),
        helper.make_node("ConcatFromSequence", ["made"], ["joined"], axis=-1),
        helper.make_node("SequenceLength", ["turned"], ["length"]),
        helper.make_node("Cast", ["length"], ["count"], to=F32),
        helper.make_node("Add", ["stacked", "joined"], ["both"]),
        helper.make_node("Mul", ["both", "count"], ["y"]),
    ]
    constants = [const("two", 2), const("sizes", [1, 4]), const("one", 1), const("zero", 0), const("minus", -1)]
    graph = helper.make_graph(nodes, "sequences", [info("x", F32, [3, 5])], [info("y", F32, [3, 5])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    folder = folder if folder.is_dir() else folder.parent
    for made in (calls(), sequences()):
        name = made.graph.name
        onnx.save(made, folder / f"{name}.onnx")
        shape = [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim]
        x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        np.save(folder / f"{name}.x.npy", x)
        np.save(folder / f"{name}.y.npy", session.run(None, {"x": x})[0])


main()
