"""The tables that stages exchange: an explicit schema, a version and checks for each.

A new nullable column raises the minor version, and readers of either version read both. Anything
else raises the major version and needs a migration.
"""

from dataclasses import dataclass

import pyarrow as pa

from data_contracts import checks
from data_contracts.checks import Check
from data_contracts.errors import UserError
from data_contracts.ratings import Domain, Rating, SafetyLabel, Split


@dataclass(frozen=True)
class TableContract:
    """What a table holds, and what every row of it must satisfy."""

    name: str
    version: str
    """"major.minor"."""
    schema: pa.Schema
    checks: tuple[Check, ...]
    row_id: str
    """The column that names a row, unique in the table."""

    @property
    def kind(self) -> str:
        """The artifact kind of such a table, for instance "preferences/1.0"."""
        return f"{self.name}/{self.version}"


def contract_named(name: str) -> TableContract:
    """The contract of a name ("preferences") or a kind ("preferences/1.0").

    Raises:
        UserError: there is none of that name.
    """
    try:
        return CONTRACTS[name.partition("/")[0]]
    except KeyError:
        known = ", ".join(CONTRACTS)
        raise UserError(f"There is no table contract {name!r}", f"Use one of: {known}") from None


MESSAGE = pa.struct({"role": pa.string(), "content": pa.string()})
TRAINED_MESSAGE = pa.struct({"role": pa.string(), "content": pa.string(), "loss": pa.bool_()})

_TEXT = pa.string()
_TOKENS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
_MESSAGES = pa.list_(MESSAGE)

_PROMPT_COLUMNS = {"prompt_id": _TEXT, "domain": _TEXT}
_DOMAINS = checks.one_of("domain", list(Domain))
_PROMPT_CHECKS = (
    checks.not_blank("prompt_id"),
    _DOMAINS,
    *checks.dialogue("messages", last_role="user"),
)


def _contract(
    name: str,
    version: str,
    columns: dict[str, pa.DataType],
    *rules: Check,
    nullable: tuple[str, ...] = (),
) -> TableContract:
    """A contract whose first column names the row; columns are required unless nullable."""
    fields = [pa.field(column, kind, column in nullable) for column, kind in columns.items()]
    row_id = fields[0].name
    nulls = [check for field in fields for check in checks.no_nulls(field)]
    # Nulls first: the rules after them may take the values for granted.
    all_checks = (*nulls, checks.not_blank(row_id), *rules)
    return TableContract(name, version, pa.schema(fields), all_checks, row_id)


DOCUMENTS = _contract(
    "documents",
    "1.0",
    {"document_id": _TEXT, "source": _TEXT, "text": _TEXT},
    checks.not_blank("text"),
)

TOKEN_SHARDS = _contract(
    "token_shards",
    "1.0",
    {
        "document_id": _TEXT,
        "source": _TEXT,
        "split": _TEXT,
        "num_bytes": pa.int64(),
        "tokens": _TOKENS,
    },
    checks.one_of("split", [Split.train, Split.validation]),
    checks.between("num_bytes", 0),
    checks.not_empty_list("tokens"),
    checks.between("tokens", 0),
)

DEMONSTRATIONS = _contract(
    "demonstrations",
    "1.0",
    {"demonstration_id": _TEXT, "source": _TEXT, "messages": pa.list_(TRAINED_MESSAGE)},
    *checks.dialogue("messages", last_role="assistant"),
    *checks.loss_on_answers("messages"),
)

PROMPTS = _contract(
    "prompts",
    "1.0",
    {
        **_PROMPT_COLUMNS,
        "source": _TEXT,
        "split": _TEXT,
        "category": _TEXT,
        "messages": _MESSAGES,
    },
    *_PROMPT_CHECKS,
    checks.one_of("split", list(Split)),
    nullable=("category",),
)

COMPARISONS = _contract(
    "comparisons",
    "1.0",
    {
        "comparison_id": _TEXT,
        **_PROMPT_COLUMNS,
        "batch": pa.int32(),
        "category": _TEXT,
        "messages": _MESSAGES,
        "response_a": _TEXT,
        "response_b": _TEXT,
        "model_a": _TEXT,
        "model_b": _TEXT,
        "temperature_a": pa.float32(),
        "temperature_b": pa.float32(),
    },
    *_PROMPT_CHECKS,
    checks.finite("temperature_a"),
    checks.finite("temperature_b"),
    checks.between("temperature_a", 0),
    checks.between("temperature_b", 0),
    nullable=("category",),
)

PREFERENCES = _contract(
    "preferences",
    "1.0",
    {
        "preference_id": _TEXT,
        **_PROMPT_COLUMNS,
        "source": _TEXT,
        "batch": pa.int32(),
        "split": _TEXT,
        "annotator": _TEXT,
        "category": _TEXT,
        "messages": _MESSAGES,
        "chosen": _TEXT,
        "rejected": _TEXT,
        "rating": _TEXT,
        "safety_label": _TEXT,
    },
    *_PROMPT_CHECKS,
    checks.one_of("split", [Split.train, Split.test]),
    checks.not_blank("chosen"),
    checks.not_blank("rejected"),
    checks.different("chosen", "rejected"),
    checks.one_of("rating", list(Rating)),
    checks.one_of("safety_label", list(SafetyLabel)),
    nullable=("category", "rating", "safety_label"),
)

SCORED_SAMPLES = _contract(
    "scored_samples",
    "1.0",
    {
        "sample_id": _TEXT,
        **_PROMPT_COLUMNS,
        "category": _TEXT,
        "version": pa.int32(),
        "messages": _MESSAGES,
        "response": _TEXT,
        "response_tokens": _TOKENS,
        "temperature": pa.float32(),
        "finished": pa.bool_(),
        "helpfulness_score": pa.float32(),
        "safety_score": pa.float32(),
        "reward": pa.float32(),
        "best": pa.bool_(),
    },
    *_PROMPT_CHECKS,
    checks.between("response_tokens", 0),
    *(checks.finite(column) for column in ("helpfulness_score", "safety_score", "reward")),
    nullable=("category",),
)

ROLLOUTS = _contract(
    "rollouts",
    "1.0",
    {
        "rollout_id": _TEXT,
        "iteration": pa.int32(),
        **_PROMPT_COLUMNS,
        "prompt_tokens": _TOKENS,
        "response_tokens": _TOKENS,
        "finished": pa.bool_(),
        "logprobs": _FLOATS,
        "ref_logprobs": _FLOATS,
        "values": _FLOATS,
        "score": pa.float32(),
        "kl": pa.float32(),
    },
    checks.not_blank("prompt_id"),
    _DOMAINS,
    checks.not_empty_list("prompt_tokens"),
    checks.not_empty_list("response_tokens"),
    checks.between("prompt_tokens", 0),
    checks.between("response_tokens", 0),
    *(checks.same_lengths(name, "response_tokens") for name in ("logprobs", "ref_logprobs")),
    checks.same_lengths("values", "response_tokens"),
    *(checks.finite(name) for name in ("logprobs", "ref_logprobs", "values", "score", "kl")),
)

EVALUATIONS = _contract(
    "evaluations",
    "1.0",
    {
        "evaluation_id": _TEXT,
        "version": _TEXT,
        **_PROMPT_COLUMNS,
        "category": _TEXT,
        "messages": _MESSAGES,
        "response": _TEXT,
        "finished": pa.bool_(),
        "helpfulness_score": pa.float32(),
        "safety_score": pa.float32(),
        "gold_helpfulness": pa.float32(),
        "gold_safety": pa.float32(),
    },
    *_PROMPT_CHECKS,
    *(
        checks.finite(column)
        for column in ("helpfulness_score", "safety_score", "gold_helpfulness", "gold_safety")
    ),
    nullable=("category", "gold_helpfulness", "gold_safety"),
)

WIN_RATES = _contract(
    "win_rates",
    "1.0",
    {
        "win_rate_id": _TEXT,
        "version": _TEXT,
        "opponent": _TEXT,
        "domain": _TEXT,
        "judge": _TEXT,
        "num_prompts": pa.int32(),
        "wins": pa.int32(),
        "ties": pa.int32(),
        "losses": pa.int32(),
        "win_rate": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
    },
    _DOMAINS,
    checks.adds_up("num_prompts", ["wins", "ties", "losses"]),
    *(checks.between(column, 0) for column in ("wins", "ties", "losses")),
    *(checks.finite(column) for column in ("win_rate", "low", "high")),
    checks.between("win_rate", 0, 1),
    checks.ordered("low", "win_rate", "high"),
)

RATES = _contract(
    "rates",
    "1.0",
    {
        "rate_id": _TEXT,
        "measure": _TEXT,
        "version": _TEXT,
        "group": _TEXT,
        "num_answers": pa.int32(),
        "num_so": pa.int32(),
        "rate": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
    },
    checks.one_of("measure", ["retention", "false_refusal"]),
    checks.between("num_answers", 1),
    checks.between("num_so", 0),
    *(checks.finite(column) for column in ("rate", "low", "high")),
    checks.between("rate", 0, 1),
    checks.ordered("low", "rate", "high"),
)

ACCURACIES = _contract(
    "accuracies",
    "1.0",
    {
        "accuracy_id": _TEXT,
        "reward_model": _TEXT,
        "test_set": _TEXT,
        "rating": _TEXT,
        "num_pairs": pa.int32(),
        "accuracy": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
    },
    checks.one_of("rating", list(Rating)),
    checks.between("num_pairs", 1),
    *(checks.finite(column) for column in ("accuracy", "low", "high")),
    checks.between("accuracy", 0, 1),
    checks.ordered("low", "accuracy", "high"),
    nullable=("rating",),
)

CALIBRATION = _contract(
    "calibration",
    "1.0",
    {
        "calibration_id": _TEXT,
        "reward_model": _TEXT,
        "test_set": _TEXT,
        "event": _TEXT,
        "bin_low": pa.float64(),
        "bin_high": pa.float64(),
        "num_items": pa.int32(),
        "predicted": pa.float64(),
        "observed": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
    },
    checks.one_of("event", ["preferred", "safe"]),
    checks.between("num_items", 1),
    *(checks.finite(column) for column in ("predicted", "observed", "low", "high")),
    checks.between("observed", 0, 1),
    checks.ordered("bin_low", "predicted", "bin_high"),
    checks.ordered("low", "observed", "high"),
)

CONTRACTS: dict[str, TableContract] = {
    contract.name: contract
    for contract in (
        DOCUMENTS,
        TOKEN_SHARDS,
        DEMONSTRATIONS,
        PROMPTS,
        COMPARISONS,
        PREFERENCES,
        SCORED_SAMPLES,
        ROLLOUTS,
        EVALUATIONS,
        WIN_RATES,
        RATES,
        ACCURACIES,
        CALIBRATION,
    )
}
"""Every table contract, by name."""
