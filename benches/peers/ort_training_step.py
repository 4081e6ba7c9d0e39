"""One side of run.py: onnxruntime-training's train step. Its SGD has no momentum, so that it does a little less; running
statistics of batch normalisation are computed but not kept. A process before writes its models, so that their making does
not count as memory. See side.py."""

import importlib.util
import subprocess
import sys
import tempfile
import types

import onnxruntime
from safetensors.numpy import load_file

from side import KD_SHARE, RATE, TEMPERATURE, Job

# The package's own __init__ loads torch, for parts that are not used here; it would count as memory.
package = types.ModuleType("onnxruntime.training")
package.__path__ = [f"{path}/training" for path in importlib.util.find_spec("onnxruntime").submodule_search_locations]
sys.modules["onnxruntime.training"] = package

# The newest opset that this version reads; none of the nets' operators has changed since.
OPSET = 20


def with_loss(model, batch, classes):
    """The net in training mode, with the loss as its only output."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("training_mode", 1))
            # Its running statistics are not trained, hence not written back.
            node.output.extend([f"{node.output[0]}.mean", f"{node.output[0]}.var"])
        elif node.op_type == "LayerNormalization":
            # Its gradient reads them.
            node.output.extend([f"{node.output[0]}.mean", f"{node.output[0]}.deviation"])
    constants = {"temperature": TEMPERATURE, "ce_share": 1 - KD_SHARE, "kd_share": KD_SHARE * TEMPERATURE**2 / batch}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    graph.input.append(helper.make_tensor_value_info("y", TensorProto.INT64, [batch]))
    graph.input.append(helper.make_tensor_value_info("teacher_logits", TensorProto.FLOAT, [batch, classes]))
    graph.node.extend([
        helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "y"], ["ce", "ce_log"]),
        helper.make_node("Div", ["logits", "temperature"], ["student_cool"]),
        helper.make_node("Div", ["teacher_logits", "temperature"], ["teacher_cool"]),
        helper.make_node("LogSoftmax", ["student_cool"], ["student_log"], axis=1),
        helper.make_node("LogSoftmax", ["teacher_cool"], ["teacher_log"], axis=1),
        helper.make_node("Softmax", ["teacher_cool"], ["teacher_p"], axis=1),
        helper.make_node("Sub", ["teacher_log", "student_log"], ["ratio"]),
        helper.make_node("Mul", ["teacher_p", "ratio"], ["terms"]),
        helper.make_node("ReduceSum", ["terms"], ["kl"], keepdims=0),
        helper.make_node("Mul", ["kl", "kd_share"], ["kd_part"]),
        helper.make_node("Mul", ["ce", "ce_share"], ["ce_part"]),
        helper.make_node("Add", ["ce_part", "kd_part"], ["loss"]),
    ])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = min(model.ir_version, 9)
    return onnx.shape_inference.infer_shapes(model)


def write_models(job, tensors, folder):
    import onnx
    from onnxruntime.training import artifacts

    batch, classes = tensors["teacher_logits"].shape
    model = with_loss(onnx.load(job.model), batch, classes)
    trained = trained_of(tensors)
    fixed = [initializer.name for initializer in model.graph.initializer if initializer.name not in trained]
    artifacts.generate_artifacts(
        model, requires_grad=trained, frozen_params=fixed, optimizer=artifacts.OptimType.SGD, artifact_directory=folder
    )


def trained_of(tensors):
    return [name for name in tensors if ".running_" not in name and name not in ("x", "y", "teacher_logits")]


def time(job, tensors):
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *sys.argv, folder], check=True, stdout=subprocess.DEVNULL)
        state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
        module = Module(f"{folder}/training_model.onnx", state, session_options=options)
        optimiser = Optimizer(f"{folder}/optimizer_model.onnx", module)
    optimiser.set_learning_rate(RATE)
    module.train()
    feeds = [tensors[name] for name in ("x", "y", "teacher_logits")]

    def step():
        loss = module(*feeds)
        optimiser.step()
        module.lazy_reset_grad()
        return float(loss)

    job.time(step, sum(tensors[name].size for name in trained_of(tensors)))


def main():
    job = Job()
    tensors = load_file(job.weights)
    if job.variant:
        write_models(job, tensors, job.variant)
    else:
        time(job, tensors)


main()
