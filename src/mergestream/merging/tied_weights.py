"""Tied weights: one parameter under several names, such as the embedding and the head of a language model."""

from __future__ import annotations

from dataclasses import dataclass, field

from mergestream.merging.checkpoints import Checkpoint, same_content
from mergestream.merging.tensors import is_statistic
from mergestream.runtime.errors import UserError

# How the names end that transformers ties where a config says so: tie_word_embeddings, which is true by default.
TIED = (
    *("lm_head.weight", "proj_out.weight", "embed_out.weight", "decoder.weight", "pred_layer.proj.weight"),
    *("shared.weight", "wte.weight", "embed_tokens.weight", "tokens_embed.weight", "embed_in.weight"),
    *("word_embeddings.weight", "tok_embeddings.weight", "embeddings.weight"),
    *("predictions.bias", "predictions.decoder.bias", "lm_head.bias", "lm_head.decoder.bias"),
)


@dataclass
class Ties:
    """The tied names of a checkpoint.

    Args:
        kept: for each further name of a parameter, its first name.
        certain: the further names that share memory, or that the config ties; others are merely equal.
    """

    kept: dict[str, str] = field(default_factory=dict)
    certain: set[str] = field(default_factory=set)

    def names(self, name: str) -> list[str]:
        """Return all names of the parameter that `name` belongs to."""
        first = self.kept.get(name, name)
        return [first, *(other for other, keeper in self.kept.items() if keeper == first)]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Ties:
        """Find the names of `checkpoint` that share memory, and those of embeddings and heads that are equal."""
        ties, first = cls(), dict[object, str]()
        for name, file in checkpoint.holders.items():
            place = file.places.get(checkpoint.stored.get(name, name))
            key = (file.path, place, is_statistic(name))  # statistics are merged in their own way
            if place is not None and (keeper := first.setdefault(key, name)) != name:
                ties.kept[name] = keeper
        ties.certain |= ties.kept.keys()
        configured = checkpoint.ties_embeddings()
        if configured is not False:
            found = [name for name in checkpoint.entries if may_be_tied(name) and name not in ties.kept]
            for at, name in enumerate(found):
                firsts = [other for other in found[:at] if other not in ties.kept]
                for other in firsts:
                    if same_content(checkpoint, other, checkpoint, name):
                        ties.kept[name] = other
        if configured:
            ties.certain |= ties.kept.keys()
        return ties

    @classmethod
    def of_base(cls, base: Checkpoint) -> Ties:
        """Find the tied names of the base, which are merged once.

        Raises:
            UserError: if names share a part of their memory.
        """
        for file in base.files:
            if file.overlap:
                one, other = file.overlap
                raise UserError(
                    f"names must share a whole tensor or nothing; {one} and {other} overlap in memory in "
                    f"{file.path}. Save {other}.clone() instead."
                )
        return cls.of(base)

    def complete(self, checkpoint: Checkpoint, base: Checkpoint) -> None:
        """Give `checkpoint` the names of `base` that it holds under another one, and take those that it holds twice.

        safetensors keeps one of the names that share memory, and transformers one of those that a config ties.
        """
        for name in base.entries.keys() - checkpoint.entries.keys():
            others = [*self.names(name), checkpoint.metadata.get(name)]
            if checkpoint.ties_embeddings() and may_be_tied(name):
                shape = base.entries[name].shape
                others += [o for o, entry in checkpoint.entries.items() if may_be_tied(o) and entry.shape == shape]
            if (other := next((o for o in others if o in checkpoint.entries), None)) is not None:
                checkpoint.add_name(name, other)
        if more := checkpoint.entries.keys() - base.entries.keys():
            own = Ties.of(checkpoint)
            for name in more:
                others = [other for other in own.names(name) if other in base.entries]
                kept = base.metadata.get(name)
                if others or (kept in checkpoint.entries and same_content(checkpoint, kept, checkpoint, name)):
                    checkpoint.remove_name(name)

    def require_in(self, checkpoint: Checkpoint, base: Checkpoint) -> None:
        """Check that names which the base ties are equal in `checkpoint`; ties that are not certain end if they differ.

        Raises:
            UserError: if they differ.
        """
        for name, kept in list(self.kept.items()):
            if not {name, kept} <= checkpoint.entries.keys() or same_content(checkpoint, name, checkpoint, kept):
                continue
            if name in self.certain:
                raise UserError(
                    f"tied weights are merged as one, so they must be equal in all files; {base.path} ties {name} to "
                    f"{kept}, and they differ in {checkpoint.path}. To merge them apart, save the base with a clone of "
                    "each, and tie_word_embeddings=false in its config.json."
                )
            del self.kept[name]


def may_be_tied(name: str) -> bool:
    """Return whether a name is that of an embedding or a head."""
    return f".{name}".endswith(tuple(f".{end}" for end in TIED))
