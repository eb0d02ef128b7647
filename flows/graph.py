"""The pipeline as data: which stage reads which output, for every version of a recipe.

    base   sandbox_world → ingest → tokenizer → tokenize_corpus → pretrain → sft
    vN     sample_pairs → collect_preferences → reward_model-helpfulness, reward_model-safety
           [→ ghost_attention, safety_distillation] → rejection_sampling [→ ppo]
           [→ distillation] → evaluate

A node is a stage at its place. Its configuration is built when its inputs are known, so a plan
can be made of a graph of which nothing has run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_contracts.base import Contract
from data_contracts.ratings import Domain
from flows.node import BASE, Node, NodeId, Output, Source
from flows.recipe import Recipe
from flows.sources import NoSources
from stages.evaluate import BEFORE_PPO, STUDENT

STUDENT_BASE = "pretrain-student"
"""Node of the smaller base model."""


def nodes(recipe: Recipe) -> list[Node]:
    """Every node of a recipe, each after everything it reads."""
    return [
        *base_nodes(recipe),
        *(n for v in range(1, recipe.num_versions + 1) for n in version_nodes(recipe, v)),
    ]


def base_nodes(recipe: Recipe) -> list[Node]:
    """From raw text to the chat model."""
    world = [_node(recipe, BASE, "sandbox_world", recipe.world)] if recipe.world else []
    files = _base("sandbox_world", "files") if recipe.world else None
    documents, tokenizer = _base("ingest", "documents"), _base("tokenizer", "tokenizer")
    return [
        *world,
        _node(recipe, BASE, "ingest", recipe.ingest or NoSources(), files=files),
        _node(recipe, BASE, "tokenizer", recipe.tokenizer, {"documents": documents}),
        _node(
            recipe,
            BASE,
            "tokenize_corpus",
            recipe.tokenize_corpus,
            {"documents": documents, "tokenizer": tokenizer},
        ),
        _node(
            recipe,
            BASE,
            "pretrain",
            recipe.pretrain,
            {"token_shards": _base("tokenize_corpus", "token_shards"), "tokenizer": tokenizer},
        ),
        _node(
            recipe,
            BASE,
            "sft",
            recipe.sft,
            {
                "init_from": _base("pretrain", "model"),
                "demonstrations": _base("ingest", "demonstrations"),
            },
        ),
        *student_base_nodes(recipe, tokenizer),
    ]


def student_base_nodes(recipe: Recipe, tokenizer: Output) -> list[Node]:
    """The smaller base model of a recipe that distils."""
    if recipe.student is None:
        return []
    shards = _base("tokenize_corpus", "token_shards")
    inputs: dict[str, Source] = {"token_shards": shards, "tokenizer": tokenizer}
    return [_node(recipe, BASE, "pretrain", recipe.student.pretrain, inputs, name=STUDENT_BASE)]


def version_nodes(recipe: Recipe, version: int) -> list[Node]:
    """One iteration, RLHF-V`version`: from sampling pairs to evaluation."""
    helpfulness_rm = _at(version, reward_model_name(Domain.helpfulness), "model")
    safety_rm = _at(version, reward_model_name(Domain.safety), "model")
    prompts = _base("ingest", "prompts")
    return [
        *preference_nodes(recipe, version),
        reward_model_node(recipe, version, Domain.helpfulness, recipe.helpfulness_rm),
        reward_model_node(recipe, version, Domain.safety, recipe.safety_rm),
        *demonstration_nodes(recipe, version),
        _node(
            recipe,
            version,
            "rejection_sampling",
            recipe.rejection_sampling,
            {
                "prompts": prompts,
                "policy": policy(recipe, version - 1),
                "start_from": fine_tuning_start(recipe, version),
                "helpfulness_rm": helpfulness_rm,
                "safety_rm": safety_rm,
                "earlier_samples": earlier_samples(recipe, version),
                "demonstrations": _base("ingest", "demonstrations"),
                "extra_demonstrations": extra_demonstrations(recipe, version),
                "red_team": red_team(recipe, version),
            },
            {"version": version},
        ),
        *ppo_nodes(recipe, version),
        *distillation_nodes(recipe, version),
        _node(
            recipe,
            version,
            "evaluate",
            recipe.evaluate,
            {
                "models": evaluated_models(recipe, version),
                "helpfulness_rm": helpfulness_rm,
                "safety_rm": safety_rm,
                "prompts": prompts,
            },
            {"version": version},
        ),
    ]


def preference_nodes(recipe: Recipe, version: int) -> list[Node]:
    """The weekly batch: sampled from two model variants and labelled, or cut from an import."""
    settings = recipe.collect_preferences
    if settings.method == "imported":
        imported = {"imported": _base("ingest", "preferences")}
        return [
            _node(recipe, version, "collect_preferences", settings, imported, {"batch": version})
        ]
    newest, other = version - 1, max(version - 2, 0)
    return [
        _node(
            recipe,
            version,
            "sample_pairs",
            recipe.sample_pairs,
            {
                "prompts": _base("ingest", "prompts"),
                "model_a": policy(recipe, newest),
                "model_b": policy(recipe, other),
            },
            {
                "batch": version,
                "label_a": policy_label(newest),
                "label_b": policy_label(other),
            },
        ),
        _node(
            recipe,
            version,
            "collect_preferences",
            settings,
            *_labels(recipe, version),
        ),
    ]


def _labels(recipe: Recipe, version: int) -> tuple[dict[str, Source], dict[str, Any]]:
    """What collect_preferences reads: comparisons to label, or the delivery of labelled ones."""
    folder = recipe.collect_preferences.deliveries
    if recipe.collect_preferences.method == "annotations" and folder is not None:
        file = (recipe.data_dir or Path()) / folder.expanduser() / f"v{version}.parquet"
        return {}, {"batch": version, "delivery": {"path": file.absolute()}}
    return {"comparisons": _at(version, "sample_pairs", "comparisons")}, {"batch": version}


def reward_model_node(recipe: Recipe, version: int, domain: Domain, settings: Contract) -> Node:
    """A reward model on all preferences so far, from the chat model or the version before's."""
    goes_on = recipe.reward_model_start == "previous" and version > 1
    before = _at(version - 1, reward_model_name(domain), "model")
    return _node(
        recipe,
        version,
        "reward_model",
        settings,
        {
            **({"continue_from": before} if goes_on else {}),
            "init_from": _base("sft", "model"),
            "preferences": tuple(
                _at(v, "collect_preferences", "preferences") for v in range(1, version + 1)
            ),
            "open_preferences": _base("ingest", "open_preferences"),
        },
        {"domain": domain},
        name=reward_model_name(domain),
    )


def demonstration_nodes(recipe: Recipe, version: int) -> list[Node]:
    """What the last version's model makes for this one's fine-tuning to learn."""
    inputs: dict[str, Source] = {
        "prompts": _base("ingest", "prompts"),
        "policy": policy(recipe, version - 1),
    }
    safety_rm = {"safety_rm": _at(version, reward_model_name(Domain.safety), "model")}
    fixed = {"version": version}
    made = []
    if has_ghost_attention(recipe, version):
        made.append(
            _node(recipe, version, "ghost_attention", recipe.ghost_attention, inputs, fixed)
        )
    if has_safety_distillation(recipe, version):
        settings = recipe.safety_distillation
        made.append(
            _node(recipe, version, "safety_distillation", settings, inputs | safety_rm, fixed)
        )
    return made


def has_ghost_attention(recipe: Recipe, version: int) -> bool:
    """Whether a version learns Ghost Attention's dialogues."""
    return recipe.gatt_from_version is not None and version >= recipe.gatt_from_version


def has_safety_distillation(recipe: Recipe, version: int) -> bool:
    """Whether a version learns answers distilled from safety preprompts."""
    first = recipe.safety_distillation_from_version
    return first is not None and version >= first


def extra_demonstrations(recipe: Recipe, version: int) -> tuple[Output, ...]:
    """Demonstrations that rejection sampling's fine-tuning learns beside the best answers."""
    return tuple(
        _at(version, node.id.name, "demonstrations")
        for node in demonstration_nodes(recipe, version)
    )


def red_team(recipe: Recipe, version: int) -> tuple[Output, ...]:
    """Prompts that broke the last version."""
    if not has_safety_distillation(recipe, version):
        return ()
    return (_at(version, "safety_distillation", "red_team"),)


def ppo_nodes(recipe: Recipe, version: int) -> list[Node]:
    """PPO on top of rejection sampling, from the recipe's version on."""
    if version < recipe.ppo_from_version:
        return []
    return [
        _node(
            recipe,
            version,
            "ppo",
            recipe.ppo,
            {
                "policy": _at(version, "rejection_sampling", "model"),
                "helpfulness_rm": _at(version, reward_model_name(Domain.helpfulness), "model"),
                "safety_rm": _at(version, reward_model_name(Domain.safety), "model"),
                "prompts": _base("ingest", "prompts"),
            },
        )
    ]


def distillation_nodes(recipe: Recipe, version: int) -> list[Node]:
    """The smaller model on this version's bag of best samples."""
    if recipe.student is None:
        return []
    own = _at(version, "rejection_sampling", "scored_samples")
    inputs: dict[str, Source] = {
        "init_from": _base(STUDENT_BASE, "model"),
        "samples": (*earlier_samples(recipe, version), own),
    }
    return [_node(recipe, version, "distillation", recipe.student.distillation, inputs)]


def reward_model_name(domain: Domain) -> str:
    """Name of a domain's reward model node."""
    return f"reward_model-{domain.value}"


def policy(recipe: Recipe, version: int) -> Output:
    """The model that a version hands on: SFT's, PPO's if it has one, or rejection sampling's."""
    if version == BASE:
        return _base("sft", "model")
    stage = "ppo" if version >= recipe.ppo_from_version else "rejection_sampling"
    return _at(version, stage, "model")


def policy_label(version: int) -> str:
    """Version name as tables write it: "sft", "v1", …"""
    return "sft" if version == BASE else f"v{version}"


def fine_tuning_start(recipe: Recipe, version: int) -> Output:
    """The model that rejection sampling fine-tunes (§3.2.3: the base model)."""
    if recipe.rejection_sampling_start == "base":
        return _base("pretrain", "model")
    if recipe.rejection_sampling_start == "sft":
        return _base("sft", "model")
    return policy(recipe, version - 1)


def earlier_samples(recipe: Recipe, version: int) -> tuple[Output, ...]:
    """Scored samples of all versions before, once the recipe keeps them in the bag."""
    if version < recipe.bag_all_from_version:
        return ()
    return tuple(_at(v, "rejection_sampling", "scored_samples") for v in range(1, version))


def evaluated_models(recipe: Recipe, version: int) -> dict[str, Output]:
    """SFT's model and the policies of all versions so far, by label, oldest first.

    A version with PPO is also compared with the rejection-sampling model that PPO began with, and
    one that is distilled with its student.
    """
    models = {policy_label(v): policy(recipe, v) for v in range(version)}
    if version >= recipe.ppo_from_version:
        before_ppo = _at(version, "rejection_sampling", "model")
        models[policy_label(version) + BEFORE_PPO] = before_ppo
    if recipe.student is not None:
        models[policy_label(version) + STUDENT] = _at(version, "distillation", "model")
    return {**models, policy_label(version): policy(recipe, version)}


def _node(
    recipe: Recipe,
    version: int,
    stage: str,
    settings: Contract,
    inputs: Mapping[str, Source] | None = None,
    fixed: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    files: Output | None = None,
) -> Node:
    return Node(
        NodeId(version, name or stage),
        stage,
        settings,
        recipe.seed,
        inputs or {},
        fixed or {},
        files,
        recipe.data_dir or Path(),
    )


def _base(node: str, role: str) -> Output:
    return Output(NodeId(BASE, node), role)


def _at(version: int, node: str, role: str) -> Output:
    return Output(NodeId(version, node), role)
