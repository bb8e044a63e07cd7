"""From words on the command line to the settings of a run, or to the arguments of another command."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro import _errors as tyro_errors  # its documented hook for parse errors, not yet public: hence the version cap
from tyro._docstrings import get_field_docstring

from fastselfie.config import FinetuneConfig, PretrainConfig, RunConfig, check_effect
from fastselfie.errors import UserError
from fastselfie.evaluation.probe_config import ProbeConfig
from fastselfie.importing import importing
from fastselfie.recipes import RECIPES, recipe
from fastselfie.training.weights_header import header_settings, is_weights_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Words of Python's and of the parser's for what is no number.
_NUMBERS = {
    r"invalid literal for int\(\) with base 10: '(.*)'": "a whole number",
    "could not convert string to float: '(.*)'": "a number",
    r"Could not parse arguments \[(.*)\] into tuple type typing\.Tuple\[float.*": "numbers",
}
C = TypeVar("C", bound=RunConfig | ProbeConfig)
D = TypeVar("D", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class PretrainArguments(PretrainConfig):
    """Pretrain by masked-patch classification. Usage: fastselfie pretrain RECIPE [options]."""

    recipe: Annotated[str, tyro.conf.Suppress] = ""
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from", metavar="FILE")] = None
    """A .safetensors file to start the trunk from: what `fastselfie export` writes, or saved from timm's resnetv2_50.
    Its width becomes the default."""


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(FinetuneConfig):
    """Finetune on labels and test. Usage: fastselfie finetune RECIPE (--from RUN|FILE | --scratch) [options]."""

    recipe: Annotated[str, tyro.conf.Suppress] = ""
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN|FILE")] = None
    """A pretraining run's folder to start from; its --width and the rest of its shape become the defaults. Or a
    .safetensors file, what `fastselfie export` writes or saved from timm's resnetv2_50."""


@dataclass(frozen=True, kw_only=True)
class ProbeArguments(ProbeConfig):
    """Classify by the features of a frozen network. Usage: fastselfie probe RECIPE --from RUN [options]."""

    recipe: Annotated[str, tyro.conf.Suppress] = ""
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """The pretraining run whose network is looked at."""


def parse_pretrain(words: Sequence[str]) -> PretrainConfig:
    """The configuration that ``RECIPE [options]`` means. Raises `UserError` in one line."""
    name, options = split_recipe("pretrain", words)
    default = recipe(name).pretrain
    started_from = _value_of("--from", options)
    if started_from is not None:
        default = dataclasses.replace(default, **header_settings(Path(started_from)))
    return _parse(PretrainArguments, PretrainConfig, default, options, f"fastselfie pretrain {name}")


def parse_finetune(words: Sequence[str]) -> FinetuneConfig:
    """The configuration that ``RECIPE [options]`` means; the network's shape is that of what ``--from`` names unless
    given.

    Raises:
        UserError: in one line.
    """
    name, options = split_recipe("finetune", words)
    default = recipe(name).finetune
    started_from = _value_of("--from", options)
    if started_from is not None and is_weights_file(Path(started_from)):
        default = dataclasses.replace(default, **header_settings(Path(started_from)))
    elif started_from is not None:
        with importing():  # torch: only when there is a run to read
            from fastselfie.evaluation.pretrained import inherited, read_settings

        settings = read_settings(Path(started_from))
        _same_size("finetune", started_from, settings, name, default.image_size)
        encoder = _value_of("--encoder", options) or default.encoder
        default = dataclasses.replace(default, **inherited(settings, encoder))
    return _parse(FinetuneArguments, FinetuneConfig, default, options, f"fastselfie finetune {name}")


def parse_probe(words: Sequence[str]) -> ProbeConfig:
    """What a probe looks at. Raises `UserError` in one line."""
    name, options = split_recipe("probe", words)
    started_from, size = _value_of("--from", options), recipe(name).pretrain.image_size
    if started_from is not None:
        with importing():  # torch: only when there is a run to read
            from fastselfie.evaluation.pretrained import read_settings

        _same_size("probe", started_from, read_settings(Path(started_from)), name, size)
    return _parse(ProbeArguments, ProbeConfig, ProbeConfig(recipe=name), options, f"fastselfie probe {name}")


def _same_size(command: str, run: str, settings: dict[str, Any], name: str, size: int) -> None:
    """Refuse a run whose images are not of the size that recipe ``name`` has."""
    theirs, its = settings.get("recipe"), settings.get("image_size")
    if theirs != name and its != size:
        raise UserError(
            f"--from {run}: was pretrained by recipe {theirs} on {its}x{its} images, and {name} has {size}x{size};"
            f" {command} with recipe {theirs}"
        )


def parse(kind: type[Any], words: Sequence[str], program: str, default: Any = None) -> Any:
    """``kind`` filled from ``words``, over ``default`` where there is one. Raises `UserError` in one line."""
    if {"-h", "--help"} & set(words):
        _join_lines(kind)
    start = {} if default is None else {"default": default}
    with one_line_errors():
        return tyro.cli(kind, args=list(words), prog=program, **start)


def _join_lines(kind: type[Any]) -> None:
    """Make the help of each option one paragraph: the parser would break it where the docstring's lines end."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            _join_lines(hint)
        elif text := get_field_docstring(kind, name, ()):
            kind.__annotations__[name] = Annotated[hint, tyro.conf.arg(help=" ".join(text.split()))]


def _parse(kind: type[Any], result: type[C], default: C, words: Sequence[str], program: str) -> C:
    """Override ``default`` by ``words``. ``kind`` is ``result`` with annotations for the parser."""
    parsed = parse(kind, words, program, as_kind(kind, default))
    config = as_kind(result, parsed)
    if isinstance(config, RunConfig) and isinstance(default, RunConfig):
        check_effect(config, default)
    return config


def as_kind(kind: type[D], settings: Any) -> D:
    """A ``kind`` with what ``settings`` have under the names of its fields: for the parser, and back."""
    return kind(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)})


def split_recipe(command: str, words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The recipe's name and the options after it. Asking for help without a recipe shows the first one's defaults."""
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if "--help" in words or "-h" in words:
        return next(iter(RECIPES)), ["--help"]
    raise UserError(f"{command}: name a recipe first, one of {', '.join(RECIPES)}")


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """The word after ``flag``, or after ``flag=``, the last one as for the parser; None without it."""
    found = None
    for word, following in itertools.zip_longest(words, words[1:]):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def one_line_errors() -> AbstractContextManager[None]:
    """While it is open, the parser's errors are `UserError`."""
    return tyro_errors.on_parse_error(_refuse)


def _refuse(event: tyro_errors.ParseErrorEvent) -> None:
    """Turn what the parser would print as a box into one line."""
    match event:
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            reason = f"{' '.join(tokens)}: there is no such option"
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            reason = f"{_flag(argument)} {value}: must be one of {', '.join(choices)}"
        case tyro_errors.BadValue(argument=argument):
            values = argument.lowered.nargs or 1
            reason = f"{_flag(argument)}: takes {values if isinstance(values, int) else 'a'} value{'s' * (values != 1)}"
        case tyro_errors.InstantiationFailure(message=message, argument=argument):
            for theirs, ours in _NUMBERS.items():
                message = re.sub(rf"^{theirs}$", rf"must be {ours}, not \1", message)
            reason = message if argument is None else f"{_flag(argument)}: {message}"
        case tyro_errors.MissingArgs(missing_arguments=missing):
            reason = f"{', '.join(_flag(context.arg) for context in missing)}: must be given"
        case _:
            reason = f"the command line cannot be understood ({type(event).__name__})"
    raise UserError(f"{reason}; see {event.prog} --help")


def _flag(argument: Any) -> str:
    """What the user types there."""
    return str(argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[-1])
