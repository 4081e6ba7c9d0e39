"""The sides of run.py: how each is built and started, and in which environment."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMBECK = ROOT / "target/release/examples/peer_step"
RUST = HERE / "rust/target/release"
FLOOR = "floor"
# A process that takes longer has failed.
MOST_SECONDS = 900


def venv(name):
    """The Python of a virtual environment of README.md."""
    return ROOT / "target/peers" / name / "bin/python"


def limbeck(engine):
    return lambda net, batch, folder, threads, steps: [LIMBECK, "time", net, batch, engine, threads, steps]


def python(interpreter, script, *variant):
    return lambda net, batch, folder, threads, steps: [interpreter, HERE / script, net, folder, threads, steps, *variant]


def rust(binary):
    return lambda net, batch, folder, threads, steps: [RUST / binary, net, folder, threads, steps]


LIMBECKS = {"limbeck-ort": limbeck("ort"), "limbeck-tract": limbeck("tract")}
PEERS = {
    "torch-eager": python(sys.executable, "torch_step.py", "eager"),
    "torch-channels-last": python(sys.executable, "torch_step.py", "channels_last"),
    "torch-compile": python(sys.executable, "torch_step.py", "compile"),
    "onnxruntime-training": python(venv("ort-training"), "ort_training_step.py"),
    "candle": rust("candle"),
    "burn": rust("burn"),
}
# Whose inputs are no images have no memory format.
NO_IMAGES = ["transformer", "autoencoder"]


def of(net, peers):
    """Limbeck's sides and the chosen peers, by name."""
    names = [name for name in peers if name != "torch-channels-last" or net not in NO_IMAGES]
    return LIMBECKS | {name: PEERS[name] for name in names}


def floor(threads):
    return [sys.executable, HERE / "floor.py", threads]


def build(peers):
    commands = [["cargo", "build", "--release", "--workspace", "--example", "peer_step"]]
    for name in {"candle", "burn"} & set(peers):
        commands.append(["cargo", "build", "--release", "--manifest-path", HERE / "rust/Cargo.toml", "--bin", name])
    for command in commands:
        subprocess.run(command, cwd=ROOT, check=True)


def environment(threads):
    """Every variable that one of the sides takes its threads from; the machine's own settings of OpenBLAS are dropped."""
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    return kept | {name: str(threads) for name in names}


def run(command, threads):
    """What a side printed, or why it could not run."""
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    if len(cpus) < threads:
        return {"error": f"{threads} threads, but {len(cpus)} CPUs"}
    command = [str(word) for word in command]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            env=environment(threads),
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
    except FileNotFoundError:
        return {"error": f"{command[0]} is not installed"}
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {MOST_SECONDS} s"}
    if done.returncode:
        # Rust says its error first, Python last.
        lines = [line for line in done.stderr.strip().splitlines() if line] or [f"exit code {done.returncode}"]
        return {"error": lines[0] if lines[0].startswith("Error:") else lines[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])
