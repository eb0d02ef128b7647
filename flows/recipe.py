"""A recipe: every setting of a run in one typed record, by name or from a file.

Defaults are the paper's and live on the stages' settings classes; a recipe says only where it
differs. A file may begin with `extends: NAME`, or the path of a file from its own folder, and
`--set a.b=c` changes one value of either.
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

import stages
from data_contracts.base import Contract
from data_contracts.errors import UserError
from flows.consistency import contradictions
from flows.recipe_keys import problem
from flows.sources import with_unknown_digests
from stages.collect_preferences import CollectPreferencesSettings
from stages.distillation import DistillationSettings
from stages.evaluate import EvaluateSettings
from stages.ghost_attention import GhostAttentionSettings
from stages.ingest import IngestSettings
from stages.ppo import PpoSettings
from stages.pretrain import PretrainSettings
from stages.rejection_sampling import RejectionSamplingSettings
from stages.reward_model import RewardModelSettings
from stages.runtime.launcher import Launch
from stages.safety_distillation import SafetyDistillationSettings
from stages.sample_pairs import SamplePairsSettings
from stages.sandbox.world import WorldSettings
from stages.sft import SftSettings
from stages.tokenize_corpus import TokenizeCorpusSettings
from stages.tokenizer import TokenizerSettings

_MOST_PROBLEMS_SHOWN = 3
_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_YEAR_MINUTES = 366 * 24 * 60
Minutes = Annotated[float, Field(gt=0, le=_YEAR_MINUTES)]
"""A limit; a timer of the system takes no infinite one, and refuses it only when it is set."""


class LaunchSettings(Contract):
    """How many processes train; results do not depend on it beyond rounding."""

    num_processes: int = Field(default=1, gt=0)
    """Ranks of every model stage."""
    by_stage: dict[str, PositiveInt] = {}
    """Ranks of single stages, by stage name, where they differ."""
    num_threads: int | None = Field(default=None, gt=0)
    """Threads of each process; all cores shared out evenly when it is not given."""
    hostfile: Path | None = None
    """Machines in DeepSpeed's format, for more than one."""
    max_retries: int = Field(default=2, ge=0)
    """Further attempts of a launched stage that crashed, from its newest whole checkpoint; what a
    user has to mend is not tried again."""
    timeout_minutes: dict[str, Minutes] = {}
    """How long one attempt may take, by stage name; no limit for the others."""
    patience_minutes: Minutes | None = None
    """How long ranks wait for one another before the attempt fails: 120 when it is not given. With
    several machines set it to less, but to more than rank 0 needs to hash and publish a model."""
    stalled_minutes: float = Field(default=30, gt=0)
    """A stage that has not moved for so long is told of (event rlhf.stage.stalled); it goes on."""
    pools: dict[str, str] = {}
    """Prefect work pool of single stages, by stage name. A worker's run hands such a stage to the
    deployment run-stage/POOL and waits; `rlhf run` and `rlhf stage` run it where they are."""

    @field_validator("by_stage", "timeout_minutes", "pools")
    @classmethod
    def _names_stages(cls, value: dict[str, Any]) -> dict[str, Any]:
        # the packages beside them (runtime, models) hold what stages share
        known = [m.name for m in pkgutil.iter_modules(stages.__path__) if not m.ispkg]
        if unknown := sorted(value.keys() - set(known)):
            raise ValueError(f"there is no stage {unknown[0]}; the stages are {', '.join(known)}")
        return value

    @field_validator("hostfile")
    @classmethod
    def _in_full(cls, value: Path | None) -> Path | None:
        """A worker's run has another current folder."""
        return value.expanduser().absolute() if value else None

    @field_validator("pools")
    @classmethod
    def _names_pools(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [pool for pool in value.values() if not _POOL_NAME.fullmatch(pool)]:
            raise ValueError(f"{wrong[0]!r} is no name of a pool: letters, digits and - _ . only")
        return value

    def of(self, stage: str) -> Launch:
        """How one stage is launched; stages without a model always run in this process."""
        minutes = self.timeout_minutes.get(stage)
        seconds = None if minutes is None else 60 * minutes
        if stage in _SINGLE_PROCESS_STAGES:
            return Launch(num_threads=self.num_threads, timeout_seconds=seconds, uses_gpus=False)
        return Launch(
            max_retries=self.max_retries,
            timeout_seconds=seconds,
            num_processes=self.by_stage.get(stage, self.num_processes),
            hostfile=self.hostfile,
            patience_minutes=self.patience_minutes,
            num_threads=self.num_threads,
        )


class LabellingSettings(Contract):
    """How a scheduled iteration waits for its labels (collect_preferences.method annotations)."""

    overlap: int = Field(default=1, ge=1)
    """Annotators who label each comparison."""
    check_every: int = Field(default=10, ge=0)
    """Every n-th item of an annotator is a gold item or an own one again; 0 for none."""
    days: float = Field(default=5.0, gt=0)
    """From publishing to the deadline."""
    quorum: float = Field(default=0.8, ge=0, le=1)
    """Share of the labels with which the iteration goes on once the deadline has passed."""


class StudentSettings(Contract):
    """A smaller model that learns from the larger one's best samples, version by version."""

    pretrain: PretrainSettings
    """The smaller base model: its size and its pretraining, or the folder it comes from."""
    distillation: DistillationSettings = DistillationSettings()


_SINGLE_PROCESS_STAGES = (
    "sandbox_world",
    "ingest",
    "tokenizer",
    "tokenize_corpus",
    "collect_preferences",
)


class Recipe(Contract):
    """One product's run, from raw text to RLHF-V`num_versions`."""

    name: str
    description: str = ""
    product: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the MLflow experiment; a home holds the iterations of one product."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    data_dir: Path | None = Field(default=None, json_schema_extra={"in_key": False})
    """Base of relative source paths; the current folder when it is not given."""
    launch: LaunchSettings = Field(default=LaunchSettings(), json_schema_extra={"in_key": False})
    labelling: LabellingSettings = Field(
        default=LabellingSettings(), json_schema_extra={"in_key": False}
    )

    num_versions: int = Field(default=5, ge=0)
    """Iterations; 0 stops after supervised fine-tuning."""
    ppo_from_version: int = Field(default=5, ge=1)
    """First version with PPO on top of rejection sampling (§3.2.3)."""
    bag_all_from_version: int = Field(default=4, ge=1)
    """First version that fine-tunes on the best samples of all versions so far (§3.2.3)."""
    gatt_from_version: int | None = Field(default=4, ge=1)
    """First version that learns Ghost Attention's dialogues (§3.3: after V3); null for none."""
    safety_distillation_from_version: int | None = Field(default=4, ge=1)
    """First version that learns answers distilled from safety preprompts, and samples the prompts
    that broke the last one (§4.2.4, the paper's last refinement); null for none."""
    rejection_sampling_start: Literal["base", "sft", "previous"] = "base"
    """The model that each version's fine-tuning starts from; the paper takes the base model."""
    reward_model_start: Literal["chat", "previous"] = "chat"
    """The model that each version's reward models start from: the paper takes the chat model and
    trains on all batches; "previous" goes on from the version before, on the newest batch and a
    replay of the others (reward_model's newest_share)."""

    world: WorldSettings | None = None
    """Make the sandbox's world instead of reading files."""
    ingest: IngestSettings | None = None
    """The files; relative paths stand in `data_dir`, or in the sandbox's world if there is one."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    tokenize_corpus: TokenizeCorpusSettings = TokenizeCorpusSettings()
    pretrain: PretrainSettings = PretrainSettings()
    sft: SftSettings = SftSettings()
    sample_pairs: SamplePairsSettings = SamplePairsSettings()
    collect_preferences: CollectPreferencesSettings = CollectPreferencesSettings()
    helpfulness_rm: RewardModelSettings = RewardModelSettings()
    safety_rm: RewardModelSettings = RewardModelSettings()
    ghost_attention: GhostAttentionSettings = GhostAttentionSettings()
    safety_distillation: SafetyDistillationSettings = SafetyDistillationSettings()
    rejection_sampling: RejectionSamplingSettings = RejectionSamplingSettings()
    ppo: PpoSettings = PpoSettings()
    student: StudentSettings | None = None
    """Distil every version's best samples into a smaller model as well (§3.2.3)."""
    evaluate: EvaluateSettings = EvaluateSettings()

    @field_validator("ingest", "tokenizer", mode="before")
    @classmethod
    def _read_without_files(cls, value: Any) -> Any:
        return with_unknown_digests(value)

    @field_validator("data_dir", mode="before")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return Path(value).expanduser() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_no_contradiction(self) -> "Recipe":
        if found := "; ".join(contradictions(self)):
            raise ValueError(found)
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    import flows.recipes as package

    return sorted(
        module.name.removeprefix("llama2_") for module in pkgutil.iter_modules(package.__path__)
    )


def load_recipe(source: str, settings: Sequence[str] = (), **overrides: Any) -> Recipe:
    """A recipe by name or from a YAML or JSON file, with `a.b=c` settings and overrides on top.

    Raises UserError for an unknown recipe, an unreadable file, an unknown key or a wrong type.
    """
    values = read_values(source)
    for setting in settings:
        values = merged(values, parse_setting(setting))
    for key, value in overrides.items():
        if value is not None:
            values = merged(values, _nested(key.split("__"), value))
    return validated(values, source)


def read_values(source: str) -> dict[str, Any]:
    """All values of a named recipe or of a file, what it extends included.

    Raises UserError for an unknown recipe, an unreadable file, and files that extend each other.
    """
    if source in recipe_names():
        return _named_values(source)
    path = Path(source).expanduser()
    if not path.exists():
        raise _no_such_recipe(f"There is no recipe {source!r} and no such file")
    return _file_values(path, ())


def _named_values(name: str) -> dict[str, Any]:
    return named_recipe(name).model_dump(mode="json")


def _file_values(path: Path, extending: Sequence[Path]) -> dict[str, Any]:
    """The values of a file on top of what it extends; `extending` are the files that led here."""
    here = path.resolve()
    if here in extending:
        chain = " extends ".join(str(file) for file in (*extending, here))
        raise UserError(
            f"A recipe file stands on itself: {chain}",
            f"Let `extends` name one of {', '.join(recipe_names())}, or another file",
        )
    values = parse_file(path)
    base = values.pop("extends", None)
    if base is None:
        return {"name": path.stem, **values}
    below = _extended_values(str(base), path, (*extending, here))
    return merged(below, {"name": path.stem, **values})


def _extended_values(base: str, path: Path, extending: Sequence[Path]) -> dict[str, Any]:
    """The values of what the file `path` extends."""
    # beside the file: a worker reads it from a folder of its own
    file = path.parent / Path(base).expanduser()
    if file.is_file():
        return _file_values(file, extending)
    if base in recipe_names():
        return _named_values(base)
    raise _no_such_recipe(f"{path} extends {base!r}: there is no such recipe and no file {file}")


def _no_such_recipe(problem: str) -> UserError:
    return UserError(
        problem, f"Take one of {', '.join(recipe_names())}, or the path of a YAML or JSON file"
    )


def named_recipe(name: str) -> Recipe:
    """The recipe that `flows/recipes` defines under this name."""
    module = f"llama2_{name}" if name[0].isdigit() else name  # no module is called 7b
    return importlib.import_module(f"flows.recipes.{module}").recipe()


def parse_file(path: Path) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds. Raises UserError with the line if it is none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The recipe file {path} cannot be read: {error}", "Check the path and its permissions"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(
            f"The recipe file {path} is not valid YAML: {_flat(error)}", "Correct that line"
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"The recipe file {path} does not hold a mapping", "Write `key: value` lines"
        )
    return values


def parse_setting(setting: str) -> dict[str, Any]:
    """`a.b=c` as a nested mapping; the value is read as YAML."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting} is not key=value", "Write --set sft.num_epochs=3")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(
            f"The value of --set {key} is not valid YAML: {_flat(error)}", "Quote the value"
        ) from error
    return _nested(key.strip().split("."), value)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top: mappings merge, everything else is replaced.

    null in place of a mapping is what there is without one: its default.
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            result[key] = merged(old, value)
        elif isinstance(old, Mapping) and value is None:
            del result[key]
        else:
            result[key] = value
    return result


def validated(values: dict[str, Any], source: str) -> Recipe:
    """The typed recipe. Raises UserError that names each wrong key, and the nearest known one."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = [problem(dict(e), Recipe) for e in error.errors(include_url=False)]
        shown = "; ".join(problems[:_MOST_PROBLEMS_SHOWN])
        hidden = len(problems) - _MOST_PROBLEMS_SHOWN
        more = f"; and {hidden} more" if hidden > 0 else ""
        raise UserError(
            f"Recipe {source}: {shown}{more}",
            "Correct the recipe or the --set option; `rlhf plan --recipe NAME --json` shows all "
            "keys of a recipe",
        ) from error


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 3e-4 as text; people who write learning rates mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
