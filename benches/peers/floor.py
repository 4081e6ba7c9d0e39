"""The floor of run.py: what a matrix product reaches with THREADS threads, in GFLOP/s, best of many.

Usage: python floor.py THREADS
"""

import json
import sys
import time

import torch

SIDE, SECONDS = 1024, 2.0


def main():
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    a, b, c = (torch.rand(SIDE, SIDE) for _ in range(3))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=c)
        best = min(best, time.perf_counter() - start)
    print(json.dumps({"gflops": 2 * SIDE**3 / best / 1e9}))


main()
