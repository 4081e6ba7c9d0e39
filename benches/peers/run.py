"""The train step of Limbeck on each engine beside that of other frameworks: same nets, first weights, batch, loss,
optimiser and threads.

Every figure comes from a process of its own, bound to as many CPUs as it has threads. In each round every side runs once,
so that a slow minute of the machine hits all of them. Prints tables in Markdown: the median over rounds of each process's
median step, the largest peak of resident memory, their ratios, and the floor. README.md says how to install the sides.

    python benches/peers/run.py [--rounds 3] [--steps 30] [--threads 1 2] [--nets ds-cnn ...] [--peers torch-eager ...]
                                [--batch-one] [--json FILE]
"""

import argparse
import json
import pathlib
import subprocess

import sides
import table

# Net and batch; benches/common has the same.
NETS = {
    "resnet8": 32,
    "resnet8-plain": 32,
    "ds-cnn": 32,
    "mobilenet-v2-0.35": 16,
    "transformer": 16,
    "autoencoder": 64,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of a process")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--peers", nargs="*", default=list(sides.PEERS), choices=sides.PEERS)
    parser.add_argument("--batch-one", action="store_true", help="steps of one sample")
    parser.add_argument("--json", type=pathlib.Path, help="file for the raw results")
    return parser.parse_args()


def write_start(net, batch):
    """Limbeck writes first weights and batch; gives the folder, the parameter count and the step's operations."""
    folder = sides.ROOT / "target/peers" / f"batch-{batch}"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sides.LIMBECK, "write", net, str(batch), folder], check=True, capture_output=True, text=True)
    return folder, json.loads(done.stdout)


def main():
    options = arguments()
    sides.build(options.peers)
    print(f"{table.machine()}; {options.rounds} rounds of {options.steps} steps, median\n", flush=True)
    kept = []
    for net in options.nets:
        batch = 1 if options.batch_one else NETS[net]
        folder, expected = write_start(net, batch)
        chosen = sides.of(net, options.peers)
        for threads in options.threads:
            results = {name: [] for name in [*chosen, sides.FLOOR]}
            for _ in range(options.rounds):
                for name, command in chosen.items():
                    results[name].append(sides.run(command(net, batch, folder, threads, options.steps), threads))
                results[sides.FLOOR].append(sides.run(sides.floor(threads), threads))
            group = {"net": net, "batch": batch, "threads": threads, "expected": expected, "results": results}
            kept.append(group)
            print(table.of(group), flush=True)
            if options.json:
                options.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
