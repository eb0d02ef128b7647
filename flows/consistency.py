"""Settings that contradict each other: told before the first stage, not in the fifth."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from stages.pretrain import PretrainSettings


def contradictions(recipe: "Recipe") -> Iterator[str]:
    """What cannot be, and what to do about it."""
    yield from _weeks(recipe)
    yield from _sources(recipe, recipe.pretrain, "pretrain")
    if recipe.student is not None:
        yield from _sources(recipe, recipe.student.pretrain, "student.pretrain")
    if recipe.pretrain.init_from is None:
        yield from _room(recipe, recipe.pretrain.model.max_seq_len)


def _weeks(recipe: "Recipe") -> Iterator[str]:
    collected = recipe.collect_preferences
    if collected.method == "imported" and recipe.num_versions > collected.num_batches:
        yield (
            f"num_versions {recipe.num_versions} exceeds collect_preferences.num_batches "
            f"{collected.num_batches}, the weeks that the import is cut into: lower the one, or "
            "raise the other (before the first run: the cut changes with it)"
        )


def _sources(recipe: "Recipe", pretrain: "PretrainSettings", key: str) -> Iterator[str]:
    """A weight for a source that is not read. Rows may name sources of their own (source_field)."""
    if recipe.ingest is None or pretrain.init_from is not None:
        return
    documents = [source for source in recipe.ingest.sources if source.role == "documents"]
    if any(source.source_field for source in documents):
        return
    names = [source.name for source in documents]
    weights = pretrain.source_weights
    if unknown := [name for name, weight in weights.items() if weight and name not in names]:
        yield (
            f"{key}.source_weights names {', '.join(unknown)}, and the sources of documents are "
            f"{', '.join(names) or 'none'}: correct it, or set {key}.source_weights to null, which "
            "weighs them by size"
        )


def _room(recipe: "Recipe", context: int) -> Iterator[str]:
    """Responses that leave no token of the context for a prompt, where they are sampled."""
    last = recipe.num_versions
    people = recipe.collect_preferences.method != "imported"
    sampled = {
        "sample_pairs": last >= 1 and people,
        "rejection_sampling": last >= 1,
        "ghost_attention": (recipe.gatt_from_version or last + 1) <= last,
        "safety_distillation": (recipe.safety_distillation_from_version or last + 1) <= last,
        "ppo": recipe.ppo_from_version <= last,
        "evaluate": last >= 1,
    }
    sequence = recipe.rejection_sampling.finetuning.sequence_length
    length = recipe.rejection_sampling.max_new_tokens
    if sampled["rejection_sampling"] and sequence < context and length >= sequence:
        yield (
            f"rejection_sampling.max_new_tokens {length} leaves no room for a prompt in "
            f"rejection_sampling.finetuning.sequence_length {sequence}, in which its answers are "
            "learnt: lower the one or raise the other"
        )
    for stage, is_used in sampled.items():
        length = getattr(recipe, stage).max_new_tokens
        if is_used and length >= context:
            yield (
                f"{stage}.max_new_tokens {length} leaves no room for a prompt in "
                f"pretrain.model.max_seq_len {context}: lower the one or raise the other"
            )
