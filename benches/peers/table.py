"""Results of run.py as a table in Markdown."""

import os
import pathlib
import platform
import statistics

import sides

# The first losses, before and after the first update, agree among sides to this relative error.
TOLERANCE = 1e-3
COLUMNS = ["side", "ms a step", "of the fastest peer", "of the floor", "peak MB", "of torch eager"]


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def of(group):
    """One table: a net at one batch and one number of threads."""
    results = dict(group["results"])
    floors = [run["gflops"] for run in results.pop(sides.FLOOR) if "gflops" in run]
    floor = group["expected"]["flops"] / statistics.median(floors) / 1e6 if floors else None
    reference = losses_of(results.get("limbeck-ort")) or losses_of(results.get("limbeck-tract"))
    wrong = {name: fault(runs, group["expected"]["parameters"], reference) for name, runs in results.items()}
    right = {name: figures(runs) for name, runs in results.items() if not wrong[name]}
    fastest = min((ms for name, (ms, _) in right.items() if name in sides.PEERS), default=None)
    torch_memory = right["torch-eager"][1] if "torch-eager" in right else None
    title = f"{group['net']}, batch {group['batch']}, {group['threads']} threads"
    lines = [f"**{title}**, {group['expected']['parameters']:,} parameters\n", row(COLUMNS), row(["---"] * len(COLUMNS))]
    for name in results:
        if name in right:
            ms, memory = right[name]
            cells = [f"{ms:.2f}", ratio(ms, fastest), ratio(ms, floor), f"{memory:.0f}", ratio(memory, torch_memory)]
        else:
            cells = [wrong[name]] + [""] * 4
        lines.append(row([name, *cells]))
    if floor:
        speed = statistics.median(floors)
        lines.append(row([f"floor: {speed:.0f} GFLOP/s", f"{floor:.2f}", ratio(floor, fastest), "1.00", "", ""]))
    return "\n".join(lines) + "\n"


def row(cells):
    return f"| {' | '.join(cells)} |"


def ratio(value, base):
    return f"{value / base:.2f}" if base else ""


def figures(runs):
    """Median time and largest peak."""
    return statistics.median(run["ms"] for run in runs), max(run["peak_mb"] for run in runs)


def losses_of(runs):
    return next((run["losses"][:2] for run in runs or [] if "losses" in run), None)


def fault(runs, parameters, reference):
    """Why a side's figures do not count, if they do not."""
    for run in runs:
        if "error" in run:
            return f"could not run: {run['error']}"
        if run["parameters"] != parameters:
            return f"not the same net: {run['parameters']:,} parameters"
        for ours, theirs in zip(reference or [], run["losses"]):
            if not abs(ours - theirs) <= TOLERANCE * abs(ours):
                return f"not the same step: loss {theirs:.5f} where Limbeck has {ours:.5f}"
    return None
