"""What the kernels take of a device is as recorded, compiled here for GPUs that are not; and the check can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.resource_table import Row, changes, faults, heaviest, noted, read, write
from fastselfie.evaluation import finetune
from fastselfie.training import pretrain
from tests.command import run_module

triton = pytest.importorskip("triton")
from bench.resource_cases import EVALUATED, TESTED  # noqa: E402 (it imports Triton)

ROOT = Path(__file__).parent.parent
ROW = Row("head._kernel", "h:*bf16 N=16 warps=4", 90, registers=100, stack_bytes=0, shared_bytes=8192)


def compiled(cache: Path, part: str, *options: str) -> str:
    """The table that the command prints. Without one of this Triton version the limits alone are held."""
    name = {"around": "kernel", "trunk": "trunk"}[part]
    table = ROOT / "bench" / "results" / f"{name}_resources_triton-{triton.__version__}.json"
    check = ["--check", str(table), "--heaviest"] if table.exists() else []
    kept = {"TRITON_CACHE_DIR": str(cache)}
    done = run_module("bench.kernel_resources", "--part", part, *check, *options, cwd=ROOT, variables=kept)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_take_what_is_recorded(tmp_path: Path) -> None:
    """On one architecture, and of each kernel what takes most: all four take two minutes of a core's time."""
    told = compiled(tmp_path, "around", "--architectures", "90")
    assert told.count("sm_90") >= 20
    for operation in (
        "patch_batch.",
        "channel_sums.",
        "patch_tokens.",
        "location_head.",
        "_queries_kernel",
        "_reduce_kernel",
    ):
        assert operation in told


def test_the_trunk_takes_what_is_recorded(tmp_path: Path) -> None:
    """Likewise: all four take six minutes of a core's time."""
    told = compiled(tmp_path, "trunk", "--architectures", "90")
    assert told.count("sm_90") >= 15
    for operation in ("_convolution_kernel", "_weight_kernel", "_normalise_kernel", "_partial_sums_kernel"):
        assert operation in told


def test_the_batches_are_those_of_evaluations() -> None:
    assert (EVALUATED, TESTED) == (pretrain._EVALUATION_CHUNK, finetune._EVALUATION_CHUNK)


def test_committed_tables_have_no_fault() -> None:
    tables = sorted((ROOT / "bench" / "results").glob("*_resources_triton-*.json"))
    names = [f"{part}_resources_triton-{version}" for part in ("kernel", "trunk") for version in ("3.6.0", "3.7.1")]
    assert [path.stem for path in tables] == names
    for path in tables:
        assert faults(read(path, path.stem.rpartition("-")[2])) == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (replace(ROW, stack_bytes=8), "spills, 8 bytes"),
        (replace(ROW, shared_bytes=227 * 1024 + 1), "232449 bytes of shared memory, a block may have 232448"),
        (replace(ROW, architecture=120, shared_bytes=100 * 1024), "a block may have 101376"),
        (replace(ROW, registers=None, stack_bytes=None), "no machine code"),
    ],
)
def test_a_row_that_no_device_should_run_is_a_fault(row: Row, fault: str) -> None:
    assert faults([ROW]) == []
    (told,) = faults([ROW, row])
    assert fault in told
    assert f"sm_{row.architecture} head._kernel (h:*bf16 N=16 warps=4)" in told


@pytest.mark.parametrize(
    ("found", "change"),
    [
        ([replace(ROW, registers=109)], "109 registers, 100 recorded"),
        ([replace(ROW, stack_bytes=16)], "16 bytes of stack, 0 recorded"),
        ([replace(ROW, shared_bytes=8208)], "8208 bytes of shared memory, 8192 recorded"),
        ([], "no longer compiled"),
        ([ROW, replace(ROW, architecture=80)], "sm_80 head._kernel (h:*bf16 N=16 warps=4): new"),
    ],
)
def test_a_row_worse_than_recorded_is_named(found: list[Row], change: str) -> None:
    assert changes([ROW], [ROW]) == changes([replace(ROW, registers=108)], [ROW]) == []
    (told,) = changes(found, [ROW])
    assert change in told
    assert "head._kernel" in told


def test_the_heaviest_are_those_that_come_to_a_limit_first() -> None:
    more, shared, stack = (
        replace(ROW, arguments="h:*bf16 N=64 warps=4", registers=101),
        replace(ROW, arguments="h:*bf16 N=49 warps=4", shared_bytes=9000),
        replace(ROW, arguments="h:*bf16 N=9", stack_bytes=4),
    )
    fp32, other = replace(ROW, arguments="h:*fp32 N=16 warps=4"), replace(ROW, kernel="tokens._kernel")
    elsewhere = replace(ROW, architecture=80, registers=250)
    rows = [ROW, more, shared, stack, fp32, other, elsewhere]
    assert heaviest(rows) == {row.key for row in rows[1:]}


def test_a_note_lets_a_spill_pass_and_no_larger_one() -> None:
    recorded = [replace(ROW, stack_bytes=8, note="looked at")]
    same, larger = (noted([replace(ROW, stack_bytes=size)], recorded) for size in (8, 16))
    assert faults(same) + changes(same, recorded) == []
    assert len(faults(larger) + changes(larger, recorded)) == 1


def test_a_table_is_read_as_written_and_by_its_own_version(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, architecture=80, stack_bytes=8, note="looked at")]
    write(tmp_path / "table.json", rows, "3.7.1")
    assert read(tmp_path / "table.json", "3.7.1") == rows
    with pytest.raises(ValueError, match=r"of Triton 3\.7\.1, this is 3\.6\.0"):
        read(tmp_path / "table.json", "3.6.0")
