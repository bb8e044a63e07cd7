"""What `fastselfie protocol` is asked for. Checked whole before anything runs; imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from fastselfie.config import ENCODERS, FinetuneConfig, PretrainConfig, flag, label_share, require
from fastselfie.errors import UserError
from fastselfie.protocol.measured import BASE
from fastselfie.protocol.variants import variant_names


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """Subsets x seeds x encoders x {scratch, pretrained} (paper, sections 3 and 4)."""

    recipe: str
    """The recipe that both stages started from."""
    data: str | None = None
    """As of pretrain; needs labels and test images."""
    out: Path | None = None
    """The protocol's folder, below runs/ when not given. A half-done protocol there is gone on with."""
    labels: str = "2%,5%,8%,20%,100%"
    """Shares of the training labels: the rows of table 1, the points of figure 4."""
    seeds: int = 5
    """Runs of each kind, with seeds 0, 1, ...: the paper has 5."""
    encoders: str = ",".join(ENCODERS)
    """Which encoders are finetuned; table 2 compares the two."""
    pretrained: Path | None = None
    """A finished pretraining run to start from. None: it is made first."""
    variants: str = BASE
    """Ablations, by name, or `all`; a wrong name lists them. The control, u = 0, comes with any of them."""
    vary_labels: bool = False
    """Another labelled subset for every seed. Off, all seeds share one."""
    tune: bool = False
    """First look for the best settings on a tenth of the labels that is held back (paper, section 3.2); never on the
    test images."""
    learning_rates: str = "0.01,0.02,0.05,0.1,0.2,0.4"
    """What --tune tries for finetuning, for each encoder, share of labels, and start: the paper's."""
    keeps: str = "0.75,0.5"
    """What --tune tries for --keep of pretraining: the paper's. A pretraining run each."""
    pretrain_learning_rates: str = ""
    """What --tune tries for pretraining, a run for each of --keeps. Empty: the rate of pretraining as it is."""
    probes: int = 1
    """Moments of every pretraining run, evenly spaced, whose frozen features are judged (`fastselfie probe`): 1 is the
    end, 0 is never."""
    jobs: int | None = None
    """Runs side by side. None: one a CPU core, or on GPUs as many as fit into their memory."""

    def __post_init__(self) -> None:
        require(1 <= self.seeds <= 1000, f"--seeds {self.seeds}: must be at least 1 and at most 1000")
        require(0 <= self.probes <= 100, f"--probes {self.probes}: must be at least 0 and at most 100")
        require(
            self.probes <= 1 or self.pretrained is None,
            f"--probes {self.probes}: a run that --from names has the checkpoints that it has; take --probes 1, and"
            " `fastselfie probe --checkpoint` for those",
        )
        require(self.jobs is None or self.jobs >= 1, f"--jobs {self.jobs}: must be at least 1")
        for share in _words("--labels", self.labels):
            label_share(share)
        for encoder in self.encoder_names:
            require(encoder in ENCODERS, f"--encoders {encoder}: must be among {', '.join(ENCODERS)}")
        variant_names(self.variants)
        require(
            not self.vary_labels or label_share(self.label_shares[0]) < 1,
            f"--vary-labels: has no effect, --labels {self.labels} leaves none out; leave it out or take a smaller"
            " share too",
        )
        for name in ("learning_rates", "keeps", "pretrain_learning_rates"):
            numbers(flag(name), getattr(self, name))
            self._check_tried(name)
        require(bool(self.learning_rates), "--learning-rates: name at least one")
        require(bool(self.keeps), "--keeps: name at least one")

    def _check_tried(self, name: str) -> None:
        """Refuse a list that --tune has no use for."""
        value, said = getattr(self, name), flag(name)
        if value != getattr(type(self), name):
            require(self.tune, f"{said} {value}: is what --tune tries; add that, or leave this out")
            require(
                self.pretrained is None or name == "learning_rates",
                f"{said} {value}: is tried in pretraining, and --from names a run that is done; leave one of them out",
            )

    @property
    def label_shares(self) -> tuple[str, ...]:
        """As asked, each once, from the smallest: 5.0% is 5%."""
        by_share = {label_share(share): share for share in reversed(_words("--labels", self.labels))}
        return tuple(by_share[share] for share in sorted(by_share))

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """As asked, each once."""
        return tuple(dict.fromkeys(_words("--encoders", self.encoders)))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A protocol with the settings of both stages.

    Attributes:
        pretrain, finetune: settings that every run starts from; data, out, labels, seed, encoder and start are the
            protocol's business. recipe: the recipe's own, which a run's command line starts from.
    """

    protocol: ProtocolConfig
    pretrain: PretrainConfig
    finetune: FinetuneConfig
    recipe: tuple[PretrainConfig, FinetuneConfig]

    def __post_init__(self) -> None:
        protocol, finetune = self.protocol, self.finetune
        require(
            not protocol.vary_labels or finetune.label_seed == self.recipe[1].label_seed,
            f"--label-seed {finetune.label_seed}: has no effect, with --vary-labels every seed has its own; leave one"
            " of them out",
        )
        if protocol.pretrained is not None:
            self._check_given()
        if protocol.tune:
            self._check_tuned()
        if protocol.probes > 1:
            self._check_saved()

    def _check_given(self) -> None:
        """Refuse settings of pretraining that is done already. What was said to both stages is finetuning's too."""
        for field in dataclasses.fields(PretrainConfig):
            value, default = getattr(self.pretrain, field.name), getattr(self.recipe[0], field.name)
            require(
                value in (default, getattr(self.finetune, field.name, default)),
                f"{flag(field.name, 'pretrain')} {value}: has no effect, --from names a run that is done; leave"
                " one of them out",
            )

    def _check_tuned(self) -> None:
        """Refuse settings that --tune will choose. A rate that was said to both stages is pretraining's."""
        keep, rate, own = self.pretrain.keep, self.pretrain.lr, self.finetune.lr
        tuned = {
            f"--keep {keep}": ("--keeps", keep == self.recipe[0].keep),
            f"--pretrain.lr {rate}": (
                "--pretrain-learning-rates", rate == self.recipe[0].lr or not self.protocol.pretrain_learning_rates
            ),
            f"--finetune.lr {own}": (
                "--learning-rates",
                own == self.recipe[1].lr or (own == rate and self.protocol.pretrained is None),
            ),
        }  # fmt: skip
        for said, (among, fits) in tuned.items():
            require(fits, f"{said}: has no effect, --tune chooses among {among}; name it there")

    def _check_saved(self) -> None:
        """Refuse another rhythm of checkpoints than the probes'. What was said to both stages is finetuning's."""
        probes = self.protocol.probes
        for name in ("checkpoint_every", "keep_checkpoints"):
            value = getattr(self.pretrain, name)
            require(
                value in (getattr(self.recipe[0], name), getattr(self.finetune, name)),
                f"{flag(name, 'pretrain')} {value}: has no effect, with --probes {probes} pretraining is saved"
                " where it will be probed; leave one of them out",
            )


def numbers(flag: str, text: str) -> tuple[float, ...]:
    """Positive numbers separated by commas, ascending, each once.

    Raises:
        UserError: one is none.
    """
    found = []
    for word in _words(flag, text) if text else ():
        try:
            found.append(float(word))
        except ValueError:
            raise UserError(f"{flag} {word}: is no number; separate numbers by commas") from None
        require(0 < found[-1] < 1e3, f"{flag} {word}: must be above 0 and below 1000")
    return tuple(sorted(set(found)))


def _words(flag: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    require(all(words), f"{flag} {text or repr('')}: separate what you want by commas, without empty places")
    return words
