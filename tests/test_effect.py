"""Options that would do nothing beside the others: refused where a user names them, and not where a recipe does."""

from __future__ import annotations

import pytest

from fastselfie.arguments import parse_finetune, parse_pretrain
from fastselfie.errors import UserError
from fastselfie.recipes import RECIPES


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cifar10 --min-area 0.3", "--min-area 0.3: has no effect, --crop pad takes whole images"),
        ("imagenet224 --pad 4", "--pad 4: has no effect, --crop resized pads nothing"),
        ("imagenet224 --pad-mode reflect", "--pad-mode reflect: has no effect, --crop resized pads nothing"),
        ("cifar10 --crop resized --pad 2", "--pad 2: has no effect, --crop resized pads nothing"),
        ("cifar10 --pad 0 --pad-mode reflect", "--pad-mode reflect: has no effect, --pad 0 pads nothing"),
        ("cifar10 --knn-images 9", "--knn-images 9: has no effect, without --knn-every there are no neighbours"),
        ("tiny --held-out 0 --evaluate-every 7", "--evaluate-every 7: has no effect, --held-out 0 leaves nothing"),
    ],
)
def test_settings_without_effect(words: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_pretrain(words.split())
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "words",
    [
        "imagenet224", "cifar10", "cifar10 --crop resized --min-area 0.3", "imagenet224 --crop pad --pad-mode zero",
        "imagenet224 --crop pad --pad 8 --pad-mode reflect", "cifar10 --pad 0", "cifar10 --knn-images 9 --knn-every 5",
        *(f"{name} --held-out 0" for name in RECIPES), "tiny --held-out 9 --evaluate-every 7",
    ],
)  # fmt: skip
def test_what_a_recipe_has_itself_is_not_held_against_the_user(words: str) -> None:
    parse_pretrain(words.split())
    if "knn" not in words and "held-out" not in words:
        parse_finetune(words.split())
