"""Shards behind a real HTTP server: what is asked of it, how failures end, and reads that go on beside each other."""

from __future__ import annotations

import gc
import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastselfie.cli import status
from fastselfie.errors import LocalError
from fastselfie.pipelines import gathering, reading, remote_client, remote_folder
from fastselfie.pipelines.gathering import Gatherer
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.reading import Reader
from fastselfie.pipelines.remote_folder import RemoteFolder
from fastselfie.pipelines.rows import AllBut
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.sources import open_source
from tests.data_sources import refusal
from tests.http_folder import Asked, Served, http_folder
from tests.packed_shards import write_packed

pytest.importorskip("aiohttp", reason="fastselfie[http] is not installed")

IMAGES = [b"\xff\xd8\xff" + np.random.default_rng(seed).bytes(20_000 + 977 * seed) + b"\xff\xd9" for seed in range(40)]
A_SHARD = 8


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Five packed shards of 40 images. Nobody waits between tries."""
    monkeypatch.setattr(remote_folder, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(RemoteFolder, "pauses_s", (0.0, 0.0))
    monkeypatch.setattr(reading, "_TOGETHER_S", 0.0)
    folder = write_packed(tmp_path / "packed", IMAGES, labels=[0, 1] * 20, classes=("ant", "bee"), a_shard=A_SHARD)
    with http_folder(folder) as served:
        yield served


def opened(served: Served, index: Path | None = None) -> Shards:
    train = open_source(served.url, 224, index).train
    assert isinstance(train, Shards)
    return train


def test_an_image_costs_one_request_of_its_own_bytes(served: Served) -> None:
    train = opened(served)
    served.asked.clear()
    served.sent = 0
    order = np.random.default_rng(0).permutation(40).tolist()
    assert [train.read(index) for index in order] == [IMAGES[index] for index in order]
    assert [method for method, _, _ in served.asked] == ["GET"] * 40
    assert served.sent == sum(map(len, IMAGES))


def test_opening_packed_shards_reads_no_shard(served: Served, tmp_path: Path) -> None:
    index = tmp_path / "kept"
    opened(served, index)
    assert (served.count("GET", ".npy"), served.count("GET", ".json"), served.count("HEAD", ".tar")) == (1, 1, 5)
    small = sum((served.folder / name).stat().st_size for name in ("dataset.json", "train.npy"))
    assert served.sent == small + 1  # and a byte, to see whether the server gives parts
    opened(served, index)
    assert served.count("GET", ".npy") == 1


def test_tars_are_read_through_once(served: Served, tmp_path: Path) -> None:
    """Also when processes of a run open them at the same time; with an index, none again."""
    for name in ("dataset.json", "train.npy"):
        (served.folder / name).unlink()
    begin = threading.Barrier(2)

    def read() -> list[bytes]:
        begin.wait()
        train = opened(served, tmp_path / "kept")
        return [train.read(index) for index in range(0, 40, 13)]

    with ThreadPoolExecutor(2) as pool:  # with a lock that excludes threads as it does processes
        for future in [pool.submit(read) for _ in range(2)]:
            assert future.result() == IMAGES[::13]
    total = sum(path.stat().st_size for path in served.folder.iterdir())
    images = sum(map(len, IMAGES[::13]))
    assert total * 0.9 < served.sent < total * 1.1 + 2 * images + 4096


def test_reads_go_on_beside_each_other(served: Served) -> None:
    """As many as there are readers: 32 that wait are with the server at once, and none of them first."""
    train, together = opened(served), threading.Barrier(32)

    def status(asked: Asked, turn: int) -> int:
        together.wait(20)  # nobody is answered before all have asked
        return 200

    served.status, served.most_at_once = status, 0
    with ThreadPoolExecutor(train.readers) as pool:
        assert list(pool.map(train.read, range(32))) == IMAGES[:32]
    assert train.readers == 32
    assert served.most_at_once == 32


def test_after_a_fork_parent_and_child_read_on(served: Served) -> None:
    """The child's end closes no connection on which the parent waits."""
    train = opened(served)
    served.latency_s = 0.2
    forked = multiprocessing.get_context("fork")
    results = forked.SimpleQueue()
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(train.read, index) for index in range(40)]
        time.sleep(0.1)
        child = forked.Process(target=lambda: results.put([zlib.crc32(train.read(index)) for index in (3, 30)]))
        child.start()
        assert [future.result() for future in futures] == IMAGES
    child.join(20)
    assert child.exitcode == 0
    assert results.get() == [zlib.crc32(IMAGES[3]), zlib.crc32(IMAGES[30])]


def test_connections_of_the_parent_outlive_a_fork(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed in the child, whose loop is a copy, they would never tell the parent of an answer again."""
    monkeypatch.setattr(remote_client, "_PATIENCE_S", 2.0)
    train = opened(served)
    assert train.read(0) == IMAGES[0]
    forked = multiprocessing.get_context("fork")
    results = forked.SimpleQueue()

    def work() -> None:
        data = train.read(1)
        gc.collect()
        results.put(zlib.crc32(data))

    child = forked.Process(target=work)
    child.start()
    assert results.get() == zlib.crc32(IMAGES[1])
    child.join(20)
    assert [train.read(index) for index in range(8)] == IMAGES[:8]


def test_a_server_that_knows_no_ranges(served: Served) -> None:
    """It is said before a run begins, and a shard is not fetched for an image when a server forgets them later."""
    train = opened(served)
    served.ranges = False
    assert "the server sends whole files where parts are asked for" in refusal(served.url)
    with pytest.raises(LocalError, match="whole files"):
        train.read(5)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(503, "the server answers 503"), (0, "payload"), (-1, "the answer was cut off"), (-2, "no answer in time")],
)
def test_failures_of_a_read(served: Served, answer: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the storage that another try gets over; a short answer is not taken for the file's end."""
    monkeypatch.setattr(remote_client, "_PATIENCE_S", 0.2)
    train = opened(served)
    served.status = lambda asked, turn: answer if asked[0] == "GET" else 200
    with pytest.raises(OSError, match=f"(?i){said}") as caught:
        train.read(9)
    assert caught.value.strerror
    served.status = lambda asked, turn: 200
    assert train.read(9) == IMAGES[9]


def test_a_shard_that_became_shorter(served: Served) -> None:
    train = opened(served)
    path = served.folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: int(train.entries_S["offset"][9]) + 10])
    with pytest.raises(BadImage, match="is cut off"):
        train.read(9)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        train.read(9)


@pytest.mark.parametrize("answer", [503, 0, -1])
def test_opening_gets_over_single_failures(served: Served, answer: int) -> None:
    """Every request fails the first time that it is made."""
    seen = set[Asked]()

    def status(asked: Asked, turn: int) -> int:
        new = asked not in seen
        seen.add(asked)
        return answer if new and asked[0] == "GET" else 200

    served.status = status
    train = opened(served)
    served.status = lambda asked, turn: 200
    assert train.read(7) == IMAGES[7]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (403, "may not be read (the server answers 403 Forbidden): see to the credentials"),
        (500, "cannot be read (the server answers 500 Internal Server Error): see to the server"),
        (404, "does not exist"),
        (-2, "cannot be read (no answer in time): see to the server"),
    ],
)
def test_refusals(served: Served, answer: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is called a missing file but the missing file."""
    monkeypatch.setattr(remote_client, "_PATIENCE_S", 0.2)
    served.status = lambda asked, turn: answer
    assert f"{served.url} {said}" in refusal(served.url)


@pytest.mark.parametrize(("answer", "said"), [(503, "the server answers 503"), (-2, "no answer in time")])
def test_storage_that_is_gone_is_left_alone_for_a_while(
    served: Served, answer: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every read has three tries here until eight in a row failed after all of them; then all fail at once.

    Later each gets one try, until one succeeds and gives the rest theirs.
    """
    monkeypatch.setattr(remote_client, "_PATIENCE_S", 0.05)
    reader, now = Reader(opened(served), 1), 0.0
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: now))

    def fails(index: int) -> int:
        served.asked.clear()
        with pytest.raises(BadImage, match=said):
            reader.read(index)
        return len(served.asked)

    served.status = lambda asked, turn: answer
    assert [fails(index) for index in range(12)] == [3] * 8 + [0] * 4
    gone, now = reader.lost, 31.0
    assert gone
    assert [fails(20), fails(21)] == [1, 0]
    served.status = lambda asked, turn: 200
    assert fails(22) == 0
    now = 62.0
    with pytest.raises(BadImage, match="header"):  # it was read, and its random bytes looked at
        reader.read(20)
    assert not reader.lost
    served.status = lambda asked, turn: answer
    assert fails(23) == 3


def test_a_read_is_tried_for_so_long_and_not_so_often(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries where each takes half a minute; as many as there are pauses where an answer comes at once."""
    train, now = opened(served), 0.0
    train.pauses_s = (0.0,) * 5
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: now))
    for index, (a_try_s, tries) in enumerate([(30.0, 2), (10.0, 5), (0.0, 6)]):

        def status(asked: Asked, turn: int, a_try_s: float = a_try_s) -> int:
            nonlocal now
            now += a_try_s
            return 503

        served.status = status
        served.asked.clear()
        with pytest.raises(BadImage):
            Reader(train, 1).read(index)
        assert len(served.asked) == tries


def test_a_missing_object_is_asked_for_once(served: Served) -> None:
    """And many of them do not make one think that the storage is gone."""
    reader = Reader(opened(served), 1)
    (served.folder / "train-000001.tar").unlink()
    served.asked.clear()
    for index in range(A_SHARD, 2 * A_SHARD):
        with pytest.raises(BadImage, match="No such file"):
            reader.read(index)
    assert len(served.asked) == A_SHARD
    assert not reader.lost


def test_no_read_begins_while_others_find_the_storage_gone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 that eight readers have before them: each would wait for half a minute, and the process for each."""
    monkeypatch.setattr(reading, "_TOGETHER_S", 30.0)
    monkeypatch.setattr(remote_client, "_PATIENCE_S", 0.3)
    train = opened(served)
    train.readers = 8
    reader = Reader(train, 1)
    served.status = lambda asked, turn: -2
    served.asked.clear()
    results = [result for read in reader.submit(range(40)) for result in read.result()]
    assert [str(result) for result in results] == ["cannot be read (no answer in time)"] * 40
    assert len(served.asked) == 8 * 3


def test_nobody_sleeps_until_the_next_try_where_the_storage_is_gone(served: Served) -> None:
    """A process ends after all of its reads."""
    train = opened(served)
    train.pauses_s = (60.0,)
    reader = Reader(train, 9)
    served.status = lambda asked, turn: 503
    (sleeper,) = reader.submit([0])
    train.pauses_s = ()
    while not served.count("GET", "train-000000.tar"):
        time.sleep(0.01)
    for reading_ in reader.submit(range(1, 9)):
        reading_.result()
    (result,) = sleeper.result(timeout=20)
    assert isinstance(result, BadImage)


def test_a_batch_of_storage_that_is_gone_ends_without_substitutes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it a batch of which fewer than half are bad."""
    monkeypatch.setattr(gathering, "_FORGIVEN", 100)
    train = opened(served)
    gatherer = Gatherer(train, AllBut(len(train)), 0, 1)
    served.status = lambda asked, turn: 503
    served.asked.clear()
    sample_B = torch.arange(30)
    with pytest.raises(LocalError, match=r"answers 503 .*, and so it is with [0-9]+ more for a batch of 30"):
        gatherer.finish(gatherer.begin((0, 30), torch.zeros_like(sample_B), sample_B, substituted=True))
    assert len({asked[1:] for asked in served.asked}) == 30  # of which none is another image's


@pytest.mark.parametrize(
    ("answer", "said"),
    [(503, "answers 503"), (401, "may not be read"), (-2, "no answer in time"), (-3, "Disconnected")],
)
def test_a_shard_that_cannot_be_asked_for_is_not_missing(
    served: Served, answer: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing it again would not help."""
    monkeypatch.setattr(remote_client, "_PATIENCE_S", 0.2)
    served.status = lambda asked, turn: answer if asked[1] == "train-000002.tar" else 200
    message = refusal(served.url)
    assert said in message
    assert "missing" not in message


def test_a_url_is_no_folder_to_write_to(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("prepare", "x", served.url), ("pretrain", "tiny", "--out", served.url, "--data", "synthetic")):
        assert status(list(words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "what is written lies on this machine" in line


def test_missing_objects(served: Served) -> None:
    (served.folder / "train-000003.tar").unlink()
    assert "train-000003.tar is missing: pack it again, or copy it again" in refusal(served.url)


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "_PAUSES_S", (0.0, 0.0))
    tmp_path.joinpath("x").mkdir()
    with http_folder(tmp_path / "x") as served:
        url = served.url
    assert "cannot be read (Connect call failed" in refusal(url)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other try helps; with the certificate named, as the line says, it is read."""
    folder = write_packed(tmp_path / "packed", IMAGES[:2], labels=[0, 1], classes=("ant", "bee"), a_shard=A_SHARD)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    with http_folder(folder, certificate=both) as served:
        assert "certificate of the server is not trusted (self-signed certificate): see to the address, or" in refusal(
            served.url
        )
        assert not served.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        code = f"from fastselfie.pipelines import remote_folder as r; print(r.RemoteFolder({served.url!r}).names())"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train-000000.tar" in ended.stdout


def test_a_server_that_speaks_no_tls(served: Served) -> None:
    """Python calls this an operation that is not permitted."""
    message = refusal(served.url.replace("http:", "https:"))
    assert "cannot be read ([SSL" in message
    assert "see to the server" in message


def test_a_changed_file_has_another_state(served: Served) -> None:
    """Of the same size: so that an index of what was there before is not taken."""
    storage = RemoteFolder(served.url)
    before = storage.state("dataset.json")
    assert before == storage.state("dataset.json")
    served.modified += 60
    assert storage.state("dataset.json")[0] == before[0]
    assert storage.state("dataset.json") != before


def test_settings_of_the_user_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    monkeypatch.setitem(conf, "http", {"client_kwargs": {"trust_env": True, "timeout": "theirs"}, "encoded": True})
    system, _ = remote_client.client("http://127.0.0.1:1/x")
    assert system.client_kwargs == {"trust_env": True, "timeout": "theirs"}
    assert system.encoded
    assert json.dumps(system.kwargs) == "{}"


def test_a_server_that_sends_a_byte_now_and_then(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every byte one would begin to wait anew."""
    monkeypatch.setattr(remote_client, "_PATIENCE_S", 1.0)
    images = opened(served)
    served.status = lambda asked, turn: -4
    with pytest.raises(OSError, match="no answer in time"):
        images.read(3)
    served.status = lambda asked, turn: 200
    assert images.read(3) == IMAGES[3]
