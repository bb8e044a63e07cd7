"""Registers, stack and shared memory of every kernel in every recipe's shapes, compiled for GPUs that are not there.

    python -m bench.kernel_resources --out bench/results/kernel_resources_triton-3.7.1.json
    python -m bench.kernel_resources --check bench/results/kernel_resources_triton-3.7.1.json

Fails, naming the row, where a kernel spills into its stack, wants more shared memory than a block may have, or does not
compile to machine code; with --check also where the table of the same Triton version says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton

from bench.ahead_of_time import compiled_for, registers_and_stack
from bench.resource_cases import call_all
from bench.resource_table import Row, faults, read, table, write
from fastselfie.kernels.dispatch import interpreted

ARCHITECTURES = (80, 90, 100, 120)


def rows() -> list[Row]:
    """What each kernel takes on each architecture; as many processes compile as there are cores for them."""
    processes = min(len(ARCHITECTURES), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = [row for rows in pool.map(rows_of, ARCHITECTURES) for row in rows]
    return sorted(found, key=lambda row: row.key)


def rows_of(architecture: int) -> list[Row]:
    """What each kernel takes on one architecture."""
    with compiled_for(architecture) as kernels:
        call_all()
    found = []
    for kernel in kernels:
        registers, stack_bytes = registers_and_stack(kernel.compiled) or (None, None)
        shared_bytes = kernel.compiled.metadata.shared
        found.append(Row(kernel.name, kernel.arguments, architecture, registers, stack_bytes, shared_bytes))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--check", type=Path, help="a table that this Triton version made")
    given = parser.parse_args(arguments)
    if interpreted():
        sys.exit("kernel_resources: TRITON_INTERPRET is set, and the interpreter compiles nothing")
    recorded: dict[str, Any] = {}
    if given.check:
        recorded = json.loads(given.check.read_text())
        made_by = recorded["made_by"]["triton"]
        if made_by != triton.__version__:
            sys.exit(f"kernel_resources: {given.check.name} is of Triton {made_by}, this is {triton.__version__}")
    found = rows()
    print(table(found))
    if given.out:
        write(given.out, found, triton.__version__)
    wrong = faults(found, read(recorded) if given.check else None)
    print(*wrong, sep="\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
