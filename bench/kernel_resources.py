"""Registers, stack and shared memory of every kernel in every recipe's shapes, compiled for GPUs that are not there.

    python -m bench.kernel_resources --out bench/results/kernel_resources_triton-3.7.1.json
    python -m bench.kernel_resources --check bench/results/kernel_resources_triton-3.7.1.json
    python -m bench.kernel_resources --part trunk --check bench/results/trunk_resources_triton-3.7.1.json

With --check, --heaviest compiles a fifth of them: of each kernel, in bf16 and in fp32, those rows of the table that
take most; that the others are still wanted is checked all the same, and what is not in the table is compiled.

Fails, naming the row, where a kernel spills into its stack, wants more shared memory than a block may have, or does not
compile to machine code; with --check also where it is worse than in the table of the same Triton version. A spill that
a person has looked at passes with a "note" in its row of the table; notes stay when --out writes a table anew.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import triton

from bench.ahead_of_time import compiled_for, registers_and_stack
from bench.resource_cases import call_around_the_trunk, call_trunk
from bench.resource_table import Row, changes, faults, heaviest, noted, read, table, write
from fastselfie.kernels.dispatch import interpreted

ARCHITECTURES = (80, 90, 100, 120)
PARTS = {"around": call_around_the_trunk, "trunk": call_trunk}


def rows(part: str, architectures: Sequence[int], trusted: Sequence[Row] = ()) -> list[Row]:
    """What each kernel takes on each architecture; as many processes compile as there are cores for them, none beside
    this one where that is one.

    Args:
        trusted: rows that are taken as they are where their kernels are wanted.
    """
    processes = min(len(architectures), len(os.sched_getaffinity(0)))
    compiled = partial(rows_of, part, trusted)
    if processes == 1:
        found = [compiled(architecture) for architecture in architectures]
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(compiled, architectures))
    return sorted((row for rows in found for row in rows), key=lambda row: row.key)


def rows_of(part: str, trusted: Sequence[Row], architecture: int) -> list[Row]:
    """What each kernel takes on one architecture."""
    known = {row.key: row for row in trusted}
    found: list[Row] = []

    def left_out(name: str, arguments: str) -> bool:
        row = known.get((name, arguments, architecture))
        if row is not None:
            found.append(row)
        return row is not None

    with compiled_for(architecture, left_out) as kernels:
        PARTS[part]()
    for kernel in kernels:
        registers, stack_bytes = registers_and_stack(kernel.compiled) or (None, None)
        shared_bytes = kernel.compiled.metadata.shared
        found.append(Row(kernel.name, kernel.arguments, architecture, registers, stack_bytes, shared_bytes))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--check", type=Path, help="a table that this Triton version made")
    parser.add_argument("--part", default="around", choices=sorted(PARTS), help="the kernels around the trunk, or its")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--heaviest", action="store_true", help="compile only what takes most by the table of --check")
    given = parser.parse_args(arguments)
    if given.heaviest and not given.check:
        parser.error("--heaviest: which those are is told by the table of --check; give it too")
    if given.out and tuple(given.architectures) != ARCHITECTURES:
        parser.error("--architectures: a table is of all of them; give it with --check alone")
    if interpreted():
        sys.exit("kernel_resources: TRITON_INTERPRET is set, and the interpreter compiles nothing")
    before = given.check or given.out
    try:
        recorded = read(before, triton.__version__) if before and (given.check or before.exists()) else []
    except (OSError, ValueError) as error:
        sys.exit(f"kernel_resources: {error}")
    recorded = [row for row in recorded if row.architecture in given.architectures]
    trusted = [row for row in recorded if row.key not in heaviest(recorded)] if given.heaviest else []
    found = noted(rows(given.part, given.architectures, trusted), recorded)
    print(table(row for row in found if row not in trusted))
    if given.out:
        write(given.out, found, triton.__version__)
    wrong = faults(found) + (changes(found, recorded) if given.check else [])
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
