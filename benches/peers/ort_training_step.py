"""One side of run.py: onnxruntime-training's train step. Its SGD has no momentum, so that it does a little less; running
statistics of batch normalisation are computed but not kept. See side.py."""

import contextlib
import io
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer
from safetensors.numpy import load_file

from side import KD_SHARE, RATE, TEMPERATURE, Job

# The newest opset that this version reads; none of the nets' operators has changed since.
OPSET = 20


def with_loss(model, batch, classes):
    """The net in training mode, with the loss as its only output."""
    graph = model.graph
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("training_mode", 1))
            # Its running statistics are not trained, hence not written back.
            node.output.extend([f"{node.output[0]}.mean", f"{node.output[0]}.var"])
    constants = {"temperature": TEMPERATURE, "ce_share": 1 - KD_SHARE, "kd_share": KD_SHARE * TEMPERATURE**2 / batch}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    graph.input.append(helper.make_tensor_value_info("y", TensorProto.INT64, [batch]))
    graph.input.append(helper.make_tensor_value_info("teacher_logits", TensorProto.FLOAT, [batch, classes]))
    graph.node.extend([
        helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "y"], ["ce"]),
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


def main():
    job = Job()
    tensors = load_file(job.weights)
    feeds = [tensors[name] for name in ("x", "y", "teacher_logits")]
    batch, classes = feeds[2].shape
    model = with_loss(onnx.load(job.model), batch, classes)
    stored = {i.name: i for i in model.graph.initializer}
    trained = [n for n in tensors if n in stored and "running_" not in n]
    fixed = [n for n in stored if n not in trained]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        artifacts.generate_artifacts(
            model, requires_grad=trained, frozen_params=fixed, optimizer=artifacts.OptimType.SGD, artifact_directory=folder
        )
        state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
        module = Module(f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx", session_options=options)
        optimiser = Optimizer(f"{folder}/optimizer_model.onnx", module)
    optimiser.set_learning_rate(RATE)
    module.train()

    def step():
        loss = module(*feeds)
        optimiser.step()
        module.lazy_reset_grad()
        return float(loss)

    job.time(step, sum(tensors[name].size for name in trained))


main()
