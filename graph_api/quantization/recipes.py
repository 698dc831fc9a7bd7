"""What a recipe does to a linear layer: the format of its weights, of its activations, and how scales are found."""

from __future__ import annotations

from dataclasses import dataclass

from trtforge.bindings.errors import UsageError

#: Of the errors whose sum the scale of a 4-bit group makes least. Of 1.5, 2, 2.4, 3 and 3.5 it cost the shipped model
#: least perplexity on text that it was trained on (the text that recipes are judged by had no part in the choice).
POWER = 2.4
#: Elements along K that share a scale of 4-bit weights; ``trtforge::dequantize_int4`` has this width built in.
GROUP = 128


@dataclass(frozen=True)
class WeightFormat:
    """Codes of a weight [N, K]. ``strategy``: one scale for the ``tensor``, per ``channel`` (row, one of N), or per
    ``group`` of ``group_size`` along K. All are symmetric."""

    num_bits: int
    type: str
    strategy: str
    group_size: int | None = None

    @property
    def codes(self) -> str:
        """The name of the code format: ``int4``, or the kit's dtype."""
        return "int4" if self.num_bits == 4 else "int8" if self.type == "int" else "float8_e4m3fn"

    @property
    def group(self) -> tuple[int, int]:
        """Rows and columns that share a scale, 0 for all of them."""
        return {"tensor": (0, 0), "channel": (1, 0), "group": (1, self.group_size or 0)}[self.strategy]


@dataclass(frozen=True)
class ActivationFormat:
    """Codes of the rows that a layer multiplies: a scale per ``token`` found when it runs (``dynamic``), or one for
    the ``tensor`` found by calibration."""

    num_bits: int
    type: str
    strategy: str
    dynamic: bool

    @property
    def codes(self) -> str:
        return "int8" if self.type == "int" else "float8_e4m3fn"


@dataclass(frozen=True)
class Scheme:
    """The formats of a quantized linear layer; without ``activations`` only its weights are quantized."""

    weights: WeightFormat
    activations: ActivationFormat | None = None

    @property
    def static(self) -> bool:
        return self.activations is not None and not self.activations.dynamic


@dataclass(frozen=True)
class Recipe:
    """A scheme and the way to it.

    ``smooth``: the exponent with which magnitude moves from activations into weights (SmoothQuant), None for not at
    all. ``search``: scales per input channel and clipped groups are searched on calibration data (AWQ). ``power``: the
    largest magnitude of each group of weights is shrunk to make the sum of |error|^power least; None: it is kept.
    """

    name: str
    scheme: Scheme
    doc: str
    smooth: float | None = None
    search: bool = False
    power: float | None = None

    @property
    def needs_data(self) -> bool:
        return self.smooth is not None or self.search or self.scheme.static


_TOKEN8 = ActivationFormat(8, "int", "token", True)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "int8_smoothquant",
            Scheme(WeightFormat(8, "int", "channel"), _TOKEN8),
            "W8A8: int8 weights per channel, int8 activations per token, outliers moved into the weights with exponent "
            "0.5 (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438)",
            smooth=0.5,
        ),
        Recipe(
            "fp8_tensor",
            Scheme(WeightFormat(8, "float", "tensor"), ActivationFormat(8, "float", "tensor", False)),
            "fp8 e4m3 weights and activations, one scale each, that of the activations from calibration",
        ),
        Recipe(
            "fp8_token",
            Scheme(WeightFormat(8, "float", "channel"), ActivationFormat(8, "float", "token", True)),
            "fp8 e4m3 weights per channel, activations per token with scales found when they run",
        ),
        Recipe("w8a16", Scheme(WeightFormat(8, "int", "channel")), "int8 weights per channel, activations untouched"),
        Recipe(
            "w4a16",
            Scheme(WeightFormat(4, "int", "group", GROUP)),
            f"4-bit weights in groups of {GROUP}, rounded to nearest with scales of least error, activations untouched",
            power=POWER,
        ),
        Recipe(
            "w4a16_awq",
            Scheme(WeightFormat(4, "int", "group", GROUP)),
            f"4-bit weights in groups of {GROUP}; channels that matter to the activations are scaled up first, groups "
            "are clipped, both by a search on calibration data (AWQ, Lin et al. 2023, arXiv:2306.00978)",
            search=True,
        ),
    )
}

#: Code formats of a quantized KV cache.
CACHES = ("float8_e4m3fn", "int8")


def recipe_of(name: str | Recipe) -> Recipe:
    """The recipe of that name. Raises UsageError for an unknown one."""
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise UsageError(f"recipe is {name!r}; accepted: {', '.join(RECIPES)}")
    return RECIPES[name]
