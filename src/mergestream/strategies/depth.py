"""How deep in the network a weight lies, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergestream.runtime.errors import UserError

# visual.transformer.resblocks.3. (open_clip), encoder.layers.3., h.3. (transformers), blocks.3. (timm), layer2.0.
# (ResNet), stages.1.blocks.0. (several stages): the tower, the block, and the block in its stage.
BLOCK = re.compile(
    r"((?:.*?\.)??(?:resblocks|layers?|blocks?|h|stages|encoder_layer_)\.?)(\d+)(?:\.(?:blocks\.)?(\d+))?\."
)
# What comes after the blocks; everything else outside of the blocks comes before them.
AFTER: tuple[str, ...] = ("ln_post", "ln_final", "post_layernorm", "final_layer_norm", "final_layernorm", "ln_f")
AFTER += ("norm", "fc_norm", "head", "lm_head", "classifier", "score", "fc", "proj", "attnpool", "pooler")
AFTER += ("visual_projection", "text_projection", "embed_out", "logit_scale", "logit_bias")
BEFORE = re.compile(r"embed(?!_out)")  # patch_embed.proj, embeddings.norm


@dataclass(frozen=True)
class Depth:
    """Where a weight is.

    Args:
        block: its block, from 0; None outside of the blocks.
        blocks: L, how many blocks its tower has.
        last: whether a weight outside of the blocks comes after them.
    """

    block: int | None = None
    blocks: int = 0
    last: bool = False

    @property
    def fraction(self) -> float:
        """l/(L − 1): 0 in the first block and before it, 1 in the last block and after it."""
        if self.block is None:
            return float(self.last)
        return self.block / (self.blocks - 1) if self.blocks > 1 else 0.0


def depths(names: Iterable[str], key: str) -> dict[str, Depth]:
    """Return the depth of each weight in its tower: of text and image towers, each has its own L.

    The blocks of a network with several stages are counted through all of them; what a stage has besides blocks, such
    as its downsampling, belongs to its first block.

    Args:
        names: all weights of a model.
        key: the config key that asks, for the message.

    Raises:
        UserError: if no tower has two blocks.
    """
    names = list(names)
    found = {name: match for name in names if (match := BLOCK.match(name))}
    towers: dict[str, list[tuple[int, ...]]] = {}
    for match in found.values():
        towers.setdefault(match[1], []).append(_place(match))
    orders = {tower: _ordered(places) for tower, places in towers.items()}
    if all(len(order) < 2 for order in orders.values()):
        raise UserError(
            f"{key} needs weights in two or more numbered blocks, such as transformer.resblocks.0, encoder.layers.0 or "
            f"blocks.0; this model has none, but for example {names[0] if names else 'nothing'}. Leave {key} out"
        )

    def depth(name: str) -> Depth:
        if name not in found:
            return Depth(last=not BEFORE.search(name) and not {*name.split(".")}.isdisjoint(AFTER))
        order, place = orders[found[name][1]], _place(found[name])
        return Depth(next(at for at, other in enumerate(order) if other[: len(place)] == place), len(order))

    return {name: depth(name) for name in names}


def interpolated(values: Sequence[float], fraction: float) -> float:
    """Return the value at a fraction of the way along `values`, linear between neighbours: mergekit's gradients."""
    scaled = fraction * (len(values) - 1)
    lower = min(int(scaled), len(values) - 1)
    upper, share = min(lower + 1, len(values) - 1), scaled - lower
    return (1 - share) * values[lower] + share * values[upper]


def _place(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(number) for number in match.groups()[1:] if number is not None)


def _ordered(places: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the different blocks in order, without the stages that have blocks of their own."""
    unique = sorted(set(places))
    stages = {place[:1] for place in unique if len(place) > 1}
    return [place for place in unique if len(place) > 1 or place not in stages]
