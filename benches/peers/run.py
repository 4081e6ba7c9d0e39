"""Train steps of Limbeck on each engine beside torch eager: same nets, batch, loss, optimiser and threads.

Every figure comes from a process of its own; the processes of a row alternate, so that a slow minute of the machine
hits all of them. Prints a table in Markdown: the median over rounds of each process's median step, the ratio to torch,
and the largest peak of resident memory.

    pip install -r benches/peers/requirements.txt
    cargo xtask ort                                  # the line it prints makes ONNX Runtime known
    python benches/peers/run.py [--rounds 3] [--steps 30] [--threads 1 2] [--nets resnet8 transformer]
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NETS = ["digits-student", "resnet8", "transformer"]


def run(command, threads):
    """What a side printed, or why it could not run."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout)


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--nets", nargs="+", default=NETS, choices=NETS)
    arguments = parser.parse_args()
    build = ["cargo", "build", "--release", "--example", "peer_step"]
    subprocess.run(build, cwd=ROOT, check=True)
    ours = ROOT / "target/release/examples/peer_step"
    print(f"{machine()}; {arguments.rounds} rounds of {arguments.steps} steps, median\n")
    print("| net | threads | side | ms a step | of torch | peak MB | of torch |")
    print("|---|---|---|---|---|---|---|")
    for net in arguments.nets:
        for threads in arguments.threads:
            sides = {
                "torch eager": [sys.executable, HERE / "torch_step.py", net, threads, arguments.steps],
                "Limbeck on ONNX Runtime": [ours, net, "ort", threads, arguments.steps],
                "Limbeck on tract": [ours, net, "tract", threads, arguments.steps],
            }
            results = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side, command in sides.items():
                    results[side].append(run(command, threads))
            base = None
            for side, runs in results.items():
                errors = [r["error"] for r in runs if "error" in r]
                if errors:
                    print(f"| {net} | {threads} | {side} | could not run: {errors[0]} | | | |")
                    continue
                time = statistics.median(r["ms"] for r in runs)
                memory = max(r["peak_mb"] for r in runs)
                base = base or (time, memory)
                print(f"| {net} | {threads} | {side} | {time:.2f} | {time / base[0]:.2f} | {memory:.0f} | {memory / base[1]:.2f} |")


if __name__ == "__main__":
    main()
