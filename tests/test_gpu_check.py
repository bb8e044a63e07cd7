"""`make gpu-check` runs on a machine with its own packages, among which the argument parser is not."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_check
from bench.gpu_check import LOG, parts, run

ROOT = Path(__file__).parent.parent


def test_gpu_tests_are_collected_without_the_argument_parser() -> None:
    program = (
        "import sys; sys.modules['tyro'] = None\n"
        "import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-m', 'gpu', 'tests', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("test_gpu.py::test_patches_are_the_cpus", "test_host_sync.py::", "test_randomness.py::"):
        assert name in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_what_takes_too_long_still_tells_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's traceback comes at the end; and nothing goes on that a part has started."""
    monkeypatch.setattr(gpu_check, "_TOLD_WITHIN_S", 150)  # on a busy machine
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell leaves it to what runs in the background
    (tmp_path / "test_part.py").write_text(
        "import subprocess, sys, time\nfrom pathlib import Path\n"
        "def test_fails():\n    assert 'a kernel' == 'another'\n"
        "def test_hangs():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    Path({str(tmp_path)!r}, 'child').write_text(str(child.pid))\n    time.sleep(600)\n"
    )
    log, words = tmp_path / LOG, ["-m", "pytest", "-v", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)]
    try:
        assert run(words, log, 10) == "took over 10 s"
    finally:
        signal.signal(signal.SIGINT, before)
    assert "assert 'a kernel' == 'another'" in log.read_text()
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}/stat").exists()


def test_a_parts_status(tmp_path: Path) -> None:
    assert run(["-c", "print('told')"], tmp_path / LOG, 60) == 0
    assert run(["-c", "raise SystemExit(3)"], tmp_path / LOG, 60) == 3
    assert "told\n== -c raise SystemExit(3)" in (tmp_path / LOG).read_text()


def test_at_most_eight_files_come_back(tmp_path: Path) -> None:
    commands = parts(tmp_path)
    words = [word for command in commands.values() for word in command]
    written = {Path(word.rpartition("=")[2]).name for word in words if str(tmp_path) in word} - {tmp_path.name}
    assert {"kernels.json", "trunk_tiles.json"} <= written
    assert commands["report"][-2:] == ["--out", str(tmp_path)]
    of_the_report = {"report.json", "report.md", "roofline.png", "profile.txt"}  # tests/test_bench_smoke.py
    tables = {name for name in written if "_resources_triton-" in name}  # of a Triton that has none yet
    assert len(written - tables | of_the_report | {LOG}) <= 8


def test_kernel_tests_and_resources_are_among_the_parts(tmp_path: Path) -> None:
    commands = parts(tmp_path)
    assert {"tests", "kernel tests", "kernels", "resources", "trunk resources"} <= commands.keys()
    files, left_out = commands["kernel tests"][:-2], commands["kernel tests"][-2:]
    for name in ("test_kernel_resources.py", "test_kernels_in_training.py", "test_trunk_bottleneck.py"):
        assert str(ROOT / "tests" / name) in files
    for words in left_out:
        path, _, name = words.removeprefix("--deselect=").partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()
    tables = {str(path) for path in (ROOT / "bench" / "results").glob("*_resources_triton-*.json")}
    for part in ("resources", "trunk resources"):
        made_here = not tables & set(commands[part])
        assert made_here == ("--out" in commands[part])
