"""A run's config.json, read again: what was asked, and what that resolved to."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.errors import UserError

FILE = "config.json"
_KINDS: dict[str, type[PretrainConfig | FinetuneConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


def read_config(path: Path) -> dict[str, Any]:
    """The record of the run in the folder ``path``: ``command``, ``settings`` and ``facts``.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        record = json.loads((path / FILE).read_text())
        if not isinstance(record["settings"], dict) or not isinstance(record["facts"], dict):
            raise TypeError("settings or facts are none")
        return {name: record[name] for name in ("command", "settings", "facts")}
    except (FileNotFoundError, NotADirectoryError):
        what = f"is not a run's folder (no {FILE})" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path}: {what}; name the folder of a run") from None
    except PermissionError as error:
        raise UserError(f"{path}/{FILE}: cannot be read ({error.strerror}); see to its permissions") from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"{path}/{FILE}: cannot be read ({error}); remove the folder or restore it") from None


def config_of(path: Path, record: dict[str, Any]) -> PretrainConfig | FinetuneConfig:
    """The settings in the ``record`` of the run at ``path``; none that this version does not know.

    Raises:
        UserError: it is no pretraining or finetuning run, or a setting makes no sense.
    """
    kind = _KINDS.get(str(record["command"]))
    if kind is None:
        raise UserError(f"{path}: is a {record['command']} run; name the folder of a pretraining or finetuning run")
    annotations = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    settings = {name: value for name, value in record["settings"].items() if name in annotations}
    try:
        for name, value in settings.items():
            _check_type(name, value, annotations[name])
        return kind(**settings)
    except (UserError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}/{FILE}: {error}; restore the file") from None


def _check_type(name: str, value: Any, annotation: str) -> None:
    """Refuse what JSON can hold in a setting's place and the setting cannot be."""
    types: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "bool": bool, "tuple": list}
    optional = annotation.endswith("| None")
    if not (optional and value is None) and not isinstance(value, types.get(re.split(r"\W", annotation)[0], str)):
        raise TypeError(f"{name} is {json.dumps(value)[:40]}")


def with_defaults(kind: type[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with those that are younger than it at their defaults: that is what it did."""
    fields = [field for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING]
    return {**as_json({field.name: field.default for field in fields}), **settings}


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """As config.json gives them back."""
    read: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return read
