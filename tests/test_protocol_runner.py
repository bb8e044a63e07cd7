"""Tasks side by side in real processes: order, room, failure, signals, early stops, and what is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastselfie.protocol.measured import Failure
from fastselfie.protocol.places import Cores, Gpus
from fastselfie.protocol.process import last_words, start
from fastselfie.protocol.progress import Progress
from fastselfie.protocol.runner import Runner
from fastselfie.protocol.task import PRUNED, RunTask
from fastselfie.training import signals
from fastselfie.training.signals import Stopped

# Stands for a run: logs a line every 50 ms, saves itself on SIGTERM, and writes its result at the end.
RUN = """
import json, os, pathlib, signal, sys, time
folder, steps, how = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
def saved(*_):
    (folder / "saving").touch()
    time.sleep({"saves slowly": 60, "works": 0.6}.get(how, 0))
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, saved)
with (folder / "events").open("a") as events:
    print("begun", time.monotonic(), os.environ.get("OMP_NUM_THREADS"), file=events, flush=True)
    for step in range(1, steps + 1):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "peak_gib": 1.0}) + "\\n")
        time.sleep(0.05)
    if how == "killed":
        print("step 4 of 9", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "diverges":
        print(f"fastselfie: {folder}: the loss is nan at step 4", file=sys.stderr)
        sys.exit(2)
    if how == "fails" or (how == "fails once" and not (folder / "failed").exists()):
        (folder / "failed").touch()
        print("fastselfie: --lr 9: was too much", file=sys.stderr)
        sys.exit(2)
    print("ended", time.monotonic(), file=events, flush=True)
(folder / "result.json").write_text("{}")
"""


def task(folder: Path, name: str, steps: int = 4, how: str = "works", needs: RunTask | None = None) -> RunTask:
    return RunTask(
        name=name, folder=folder / name, words=(str(folder / name), str(steps), how), steps=steps, needs=needs
    )


def runner(folder: Path, jobs: int = 2) -> Runner:
    return Runner(Cores(jobs), folder / "logs", Progress(), program=(sys.executable, "-c", RUN))


def times(folder: Path, name: str) -> tuple[float, float]:
    lines = [line.split() for line in (folder / name / "events").read_text().splitlines()]
    (begun,), (ended,) = ([float(line[1]) for line in lines if line[0] == what] for what in ("begun", "ended"))
    return begun, ended


def test_two_at_a_time_and_what_is_needed_first(tmp_path: Path) -> None:
    first = task(tmp_path, "a")
    others = [task(tmp_path, "b", needs=first), task(tmp_path, "c"), task(tmp_path, "d")]
    runner(tmp_path).run(lambda: [first, *others])
    assert all(one.done for one in (first, *others))
    spans = {name: times(tmp_path, name) for name in "abcd"}
    assert spans["b"][0] > spans["a"][1]
    for begun, _ in spans.values():
        assert sum(start <= begun < end for start, end in spans.values()) <= 2
    assert spans["c"][0] < spans["a"][1], "a and c are ready at once and must run side by side"
    assert (tmp_path / "logs" / "a.log").read_text().startswith("$ fastselfie ")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "a"), task(tmp_path, "b")]
    runner(tmp_path).run(lambda: tasks)
    before = {one.name: (one.folder / "events").read_text() for one in tasks}
    runner(tmp_path).run(lambda: [*tasks, task(tmp_path, "c")])
    assert before == {one.name: (one.folder / "events").read_text() for one in tasks}
    assert (tmp_path / "c" / "result.json").exists()


def test_what_a_task_decides_is_done_while_others_run(tmp_path: Path) -> None:
    quick, slow, decided = task(tmp_path, "quick", steps=1), task(tmp_path, "slow", steps=30), task(tmp_path, "decided")
    runner(tmp_path).run(lambda: [quick, slow, *([decided] if quick.done else [])])
    assert times(tmp_path, "decided")[0] > times(tmp_path, "quick")[1]
    assert times(tmp_path, "decided")[0] < times(tmp_path, "slow")[1]
    assert slow.done


def test_a_failure_costs_what_needs_it_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, long = task(tmp_path, "bad", how="fails once", steps=1), task(tmp_path, "long", steps=20)
    needy = task(tmp_path, "needy", needs=bad)
    tasks = [bad, long, needy, task(tmp_path, "needier", needs=needy), task(tmp_path, "later")]
    once = runner(tmp_path)
    once.run(lambda: tasks)
    assert {one.name for one in tasks if one.done} == {"long", "later"}
    assert {one.name for one in tasks if not one.folder.exists()} == {"needy", "needier"}
    assert once.failures == {"bad": Failure(run="bad", why="--lr 9: was too much", log="logs/bad.log")}
    assert f"bad: failed: --lr 9: was too much; its log is {tmp_path}/logs/bad.log\n" in capsys.readouterr().err
    again = runner(tmp_path)
    again.run(lambda: tasks)  # the same command tries it again
    assert all(one.done for one in tasks)
    assert not again.failures


def test_what_fails_everything_is_not_ground_through(tmp_path: Path) -> None:
    bad = [task(tmp_path, name, how="fails", steps=1) for name in "abcd"]
    tasks = [*bad, task(tmp_path, "good", steps=1)]
    once = runner(tmp_path, jobs=1)
    once.run(lambda: tasks)
    assert once.gave_up
    assert list(once.failures) == ["a", "b", "c"]
    assert not (tmp_path / "d").exists()
    # Those that failed come last, or they would keep the others from being tried for ever.
    again = runner(tmp_path, jobs=1)
    again.run(lambda: tasks, late=once.failures)
    assert list(again.failures) == ["d", "a", "b", "c"]
    assert tasks[-1].done


def test_a_success_between_failures_tells_that_not_everything_fails(tmp_path: Path) -> None:
    how = {"a": "fails", "b": "fails", "c": "works", "d": "fails", "e": "fails", "f": "works"}
    tasks = [task(tmp_path, name, how=each, steps=1) for name, each in how.items()]
    once = runner(tmp_path, jobs=1)
    once.run(lambda: tasks)
    assert list(once.failures) == ["a", "b", "d", "e"]
    assert not once.gave_up
    assert tasks[-1].done


def test_a_run_that_the_kernel_kills_says_so(tmp_path: Path) -> None:
    once = runner(tmp_path)
    once.run(lambda: [task(tmp_path, "a", how="killed"), task(tmp_path, "b", how="diverges")])
    assert once.failures["a"].why == "ended by SIGKILL, last said: step 4 of 9"
    assert once.failures["b"].why == "the loss is nan at step 4", "the run is named beside it"
    (tmp_path / "log").write_text("$ fastselfie pretrain\nout of room\n$ fastselfie pretrain\n")
    assert last_words(tmp_path / "log", 1) == "without a word", "what an earlier try said is not said again"


def test_a_failure_that_is_forgiven_stops_nothing(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "bad", how="fails"), task(tmp_path, "good", steps=20)]
    heard = []

    def forgiven(one: RunTask, words: str) -> dict[str, float] | None:
        heard.append((one.name, words))
        return {"step": 4, "validation_accuracy": 0.0}

    runner(tmp_path).run(lambda: tasks, forgiven=forgiven)
    assert heard == [("bad", "--lr 9: was too much")]
    assert json.loads((tmp_path / "bad" / PRUNED).read_text()) == {"step": 4, "validation_accuracy": 0.0}
    assert (tmp_path / "good" / "result.json").exists()
    runner(tmp_path).run(lambda: tasks)  # done, so it is not tried again


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_saves_all_once_and_says_what_is_left(tmp_path: Path, times: int) -> None:
    """Also one that comes twice at once, as timeout(1) sends it to its child and to the child's group."""
    tasks = [task(tmp_path, "short", steps=1), task(tmp_path, "a", steps=400), task(tmp_path, "b", steps=400)]

    def send() -> None:
        deadline = time.monotonic() + 20
        while not all((one.folder / "events").exists() for one in tasks) and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # until it is passed on

    threading.Thread(target=send).start()
    with pytest.raises(Stopped, match=r"1 of 3 runs done, the others are saved; the same command") as stopped:
        runner(tmp_path).run(lambda: tasks)
    assert stopped.value.status == 128 + signal.SIGTERM
    assert [one.name for one in tasks if (one.folder / "saved").exists()] == ["a", "b"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_in_earnest_ends_runs_that_take_long_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_SAME_S", 0.0)
    slow = task(tmp_path, "slow", steps=400, how="saves slowly")

    def send() -> None:
        """The second once the first has reached the run."""
        for name in ("metrics.jsonl", "saving"):
            deadline = time.monotonic() + 20
            while not (slow.folder / name).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    with pytest.raises(Stopped, match=r"0 of 1 runs done"):
        runner(tmp_path).run(lambda: [slow])
    assert not (slow.folder / "saved").exists()


def test_a_signal_to_all_processes_of_a_job_is_no_failure_of_a_run(tmp_path: Path) -> None:
    """As a batch system sends it; the runs are gone before the protocol looks at them."""
    tasks = [task(tmp_path, "a", steps=400)]

    def send() -> None:
        deadline = time.monotonic() + 20
        while not (tmp_path / "a" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()  # other tests' among them
        (ours,) = [child for child in children if str(tmp_path) in Path(f"/proc/{child}/cmdline").read_text()]
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(int(ours), signal.SIGTERM)

    threading.Thread(target=send).start()
    with pytest.raises(Stopped, match=r"0 of 1 runs done"):
        runner(tmp_path).run(lambda: tasks)
    assert (tmp_path / "a" / "saved").exists()


def test_a_hopeless_trial_is_stopped_and_recorded(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "good", steps=8), task(tmp_path, "bad", steps=400)]

    def hopeless(one: RunTask) -> dict[str, float] | None:
        return {"step": 3, "validation_accuracy": 0.1} if one.name == "bad" and len(one.lines()) >= 3 else None

    runner(tmp_path).run(lambda: tasks, hopeless)
    assert json.loads((tmp_path / "bad" / PRUNED).read_text()) == {"step": 3, "validation_accuracy": 0.1}
    assert not (tmp_path / "good" / PRUNED).exists()
    assert all(one.done for one in tasks)


def test_a_protocol_that_is_killed_leaves_no_run_behind(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_protocol_runner import runner, task
runner(Path({str(tmp_path)!r})).run(lambda: [task(Path({str(tmp_path)!r}), "a", steps=400)])
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not (tmp_path / "a" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while not (tmp_path / "a" / "saved").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "a" / "saved").exists()


def test_a_run_is_told_apart_from_our_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters start jobs as torchrun does, also of one process: runs side by side would want the port of its group."""
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    words = ("--data", os.fsdecode(b"my caf\xe9"))
    program = (sys.executable, "-c", "import os; print(*{'WORLD_SIZE', 'MASTER_PORT'} & os.environ.keys(), os.nice(0))")
    assert start(words, tmp_path / "log", {}, program).wait() == 0
    assert (tmp_path / "log").read_bytes() == b"$ fastselfie --data 'my caf\xe9'\n0\n"


def test_cores_are_shared_out() -> None:
    from fastselfie.pipelines.allotment import cores

    assert Cores(1).next([], []) == {"OMP_NUM_THREADS": str(cores())}
    assert Cores(1).next([{}], [None]) is None
    assert Cores(10 * cores()).next([{}], [None]) == {"OMP_NUM_THREADS": "1"}
    assert Cores(None).jobs == cores()


@pytest.mark.parametrize("ours", [["2", "5"], ["GPU-8f1c", "GPU-03be"]])
def test_runs_keep_to_the_gpus_that_the_protocol_may_use(ours: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(ours))
    gpus = Gpus(3, free_gib=[80.0, 80.0])
    given: list[dict[str, str]] = []
    for _ in range(3):
        environment = gpus.next(given, [None] * len(given))
        assert environment is not None
        given.append(environment)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in given] == [*ours, ours[0]]


def test_runs_go_to_the_gpu_that_has_fewest_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    two = Gpus(None, free_gib=[80.0, 30.0])
    first = two.next([], [])
    assert first == {"CUDA_VISIBLE_DEVICES": "0"}
    assert two.next([first], [None]) == {"CUDA_VISIBLE_DEVICES": "1"}
    both = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert two.next(both, [None, None]) is None, "what they need is not known yet"
    # 19 GiB and a context of 1 take 20; another such, a fifth more to be safe, makes 44: on the first only.
    assert two.next(both, [None, 19.0]) is None
    assert two.next(both, [19.0, 19.0]) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert two.next([*both, both[0]], [19.0, 19.0, 19.0]) == {"CUDA_VISIBLE_DEVICES": "0"}  # 20 + 20 + 24 of 80
    assert two.next([*both, both[0], both[0]], [19.0] * 4) is None  # 20 + 20 + 20 + 24 = 84
    assert Gpus(1, free_gib=[80.0]).next([first], [1.0]) is None
    assert Gpus(2, free_gib=[8.0]).next([first], [None]) == {"CUDA_VISIBLE_DEVICES": "0"}, "asked for"
    assert Gpus(None, free_gib=[80.0]).next([first] * 4, [0.1] * 4) is None, "four on a GPU at most"


def test_what_a_crash_left_of_a_run_is_passed_over(tmp_path: Path) -> None:
    """The lines of a run that is watched while it starts again, before it cuts them back."""
    one = task(tmp_path, "one", 9, "works")
    one.folder.mkdir()
    left = b'{"step": 1}\n\xff\xfe{"step"\n\0\0\0\n7\n' + b"[" * 100_000 + b'\n{"step": 2}\n{"step": 3'
    (one.folder / "metrics.jsonl").write_bytes(left)
    assert one.lines() == [{"step": 1}, {"step": 2}]
