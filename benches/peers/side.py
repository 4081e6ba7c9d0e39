"""What the Python sides share: the command line, the clock, the line of JSON.

Usage of a side: python SIDE_step.py NET FOLDER THREADS STEPS [VARIANT]; FOLDER holds NET.safetensors and NET.onnx.
"""

import json
import pathlib
import statistics
import sys
import time

WARM_UP = 5
RATE, MOMENTUM, TEMPERATURE, KD_SHARE = 0.001, 0.9, 4.0, 0.9


class Job:
    def __init__(self):
        net, folder, threads, steps, *variant = sys.argv[1:]
        self.net, self.threads, self.steps = net, int(threads), int(steps)
        self.weights = pathlib.Path(folder, f"{net}.safetensors")
        self.model = pathlib.Path(folder, f"{net}.onnx")
        self.variant = variant[0] if variant else None

    def time(self, step, parameters):
        """Runs `step`, which returns the loss as a number, and prints what came of it."""
        times, losses = [], []
        for _ in range(WARM_UP + self.steps):
            start = time.perf_counter()
            losses.append(step())
            times.append((time.perf_counter() - start) * 1e3)
        median = statistics.median(times[WARM_UP:])
        print(json.dumps({"ms": median, "peak_mb": peak_mb(), "losses": losses, "parameters": parameters}))


def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
