"""Measure one core of this machine: 8-bit products per second alone, with loads, with stores, with compares.

    python benchmarks/ceilings.py [--seconds 0.5] [--json FILE]

Random data, 128 dimensions, blocks that stay in the first cache levels; processor time of the best of five runs, so
that other work on the machine has little effect. The goal for the exact join is half of "with loads".
"""

from __future__ import annotations

import argparse
import json
import platform
import time

from nearcast.kernels import isa as isa_module
from nearcast.kernels import isa_info

LOOPS = ("multiplications alone", "with loads", "with loads and stores", "with loads and compares")


def rate(isa: str, loop: int, seconds: float) -> float:
    """Return products per second of processor time."""
    run = isa_module.native().ceiling
    rounds = 1000
    while True:
        start = time.thread_time()
        run(isa, loop, rounds)
        spent = time.thread_time() - start
        if spent > seconds / 5:
            break
        rounds *= 4
    best = 0.0
    for _ in range(5):
        start = time.thread_time()
        products = run(isa, loop, rounds)
        best = max(best, products / (time.thread_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json")
    options = parser.parse_args()
    table = {}
    print(f"{'G products / s, one core':28}" + "".join(f"{name:>26}" for name in LOOPS))
    for isa in isa_info().available:
        if isa in ("numpy", "portable", "amx-emulated"):
            continue
        table[isa] = [rate(isa, loop, options.seconds) / 1e9 for loop in range(len(LOOPS))]
        print(f"{isa:28}" + "".join(f"{value:26.1f}" for value in table[isa]))
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"machine": platform.processor(), "loops": LOOPS, "g_products_per_second": table}, out, indent=2)


if __name__ == "__main__":
    main()
