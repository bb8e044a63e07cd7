"""What bounds a measurement, in words, from the shares that it took of what could bound it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

WAITING = 0.3
"""Share of the wall time from which on waiting for one thing is what bounds."""
NEAR = 0.6
"""Share of a measured ceiling from which on the ceiling is what bounds."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Each in [0, 1] or a little above, None where it was not measured.

    Attributes:
        decode: of the wall time, spent waiting for data. all_reduce: of the wall time, gone without gradients meeting.
        idle: of the wall time, in which the device runs no kernel and waits for the host to launch one.
        decoder: of the rate at which the same files are decoded and nothing else. matrix: of the measured matrix rate.
        copy: of the measured copy bandwidth.
    """

    decode: float | None = None
    all_reduce: float | None = None
    idle: float | None = None
    decoder: float | None = None
    matrix: float | None = None
    copy: float | None = None


_WORDS = {
    "decode": "decode", "all_reduce": "all-reduce", "idle": "launches", "decoder": "decode", "matrix": "arithmetic",
    "copy": "memory",
}  # fmt: skip
_TOLD = {
    "decode": "waiting for data", "all_reduce": "all-reduce", "idle": "idle device",
    "decoder": "of decoding alone", "matrix": "of the matrix rate",
    "copy": "of the copy bandwidth",
}  # fmt: skip


def verdict(shares: Shares) -> str:
    """ "bound by ..." with the share that says so, or that nothing dominates, with the two largest shares. Where a
    device's bytes were not counted, what does not bind.

    Waiting for data or for other processes comes first: whatever the rest does, it is not at work then. A device that
    is idle may still be near a ceiling on the average, so launches come after the ceilings.
    """
    known = {name: share for name, share in asdict(shares).items() if share is not None}
    waits = {name: known[name] for name in ("decode", "all_reduce") if known.get(name, 0) >= WAITING}
    ceilings = {name: known[name] for name in ("decoder", "matrix", "copy") if known.get(name, 0) >= NEAR}
    launches = {"idle": known["idle"]} if known.get("idle", 0) >= WAITING else {}
    for group in (waits, ceilings, launches):
        if group:
            name = max(group, key=lambda one: group[one])
            return f"bound by {_WORDS[name]} ({_told(name, group[name])})"
    if not known:
        return "not told: no share was measured"
    if "copy" not in known and {"matrix", "idle"} <= known.keys():
        told = f"{_told('matrix', known['matrix'])}, {_told('idle', known['idle'])}"
        return f"not arithmetic, not launches ({told}); bytes were not counted"
    largest = sorted(known, key=lambda name: known[name], reverse=True)[:2]
    return f"nothing dominates ({', '.join(_told(name, known[name]) for name in largest)})"


def _told(name: str, share: float) -> str:
    return f"{share:.0%} {_TOLD[name]}"
