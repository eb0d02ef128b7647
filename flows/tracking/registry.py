"""MLflow's model registry: the versions of `policy`, `helpfulness-rm` and `safety-rm`, and the
champion of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from data_contracts.errors import UserError
from data_contracts.ratings import Domain
from flows.environment import Places, prepare
from flows.graph import policy, reward_model_name
from flows.node import BASE, Node
from flows.recipe import Recipe
from flows.tracking.access import all_pages, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ITERATION_TAG = "rlhf.iteration"
DIGEST_TAG = "rlhf.digest"
PROMOTED_TAG = "rlhf.promoted_by"
CHAMPION = "champion"
"""Alias of the version that the gates let through last."""


@dataclass
class Moves:
    """What has become of a promotion, by registered name."""

    champions: dict[str, str] = field(default_factory=dict)
    """Digests of the models that are the champions now."""
    kept: dict[str, str] = field(default_factory=dict)
    """Why the champion has stayed."""
    unregistered: list[str] = field(default_factory=list)
    """Models that MLflow does not have, and so cannot make champions."""


class Registry:
    """The registered models of one product; methods raise what MLflow does."""

    def __init__(self, client: "MlflowClient", tracking_uri: str, experiment: str) -> None:
        self._client = client
        self._tracking_uri = tracking_uri
        self._experiment = experiment

    def promote(self, version: int, digests: Mapping[str, str], why: str) -> Moves:
        """Make models of an iteration the champions, by name and digest, and keep `why`.

        Called by the gates, and by who overrides them. A champion of a later iteration stays.
        """
        moves = Moves()
        for name, digest in digests.items():
            versions = self._client.search_model_versions(f"name = '{name}'")
            own = [v for v in versions if _is_model(v.tags, digest, version)]
            if not own:
                moves.unregistered.append(name)
            elif (champion := self._champion_iteration(name, versions)) > version:
                moves.kept[name] = f"v{champion} is champion already"
            else:
                newest = max(own, key=lambda v: int(v.version))
                self._client.set_registered_model_alias(name, CHAMPION, newest.version)
                self._client.set_model_version_tag(name, newest.version, PROMOTED_TAG, why)
                moves.champions[name] = digest
        return moves

    def _champion_iteration(self, name: str, versions: "list[ModelVersion]") -> int:
        """n of the iteration whose model is a name's champion, 0 when there is none."""
        alias = self._client.get_registered_model(name).aliases.get(CHAMPION)
        champions = [v for v in versions if str(v.version) == str(alias)]
        return int(champions[0].tags[ITERATION_TAG]) if champions else BASE

    def never_promoted(self, version: int, digests: Mapping[str, str]) -> dict[str, str]:
        """Those of an iteration's models, by name and digest, that were not yet made champions."""
        return {
            name: digest
            for name, digest in digests.items()
            if not any(
                PROMOTED_TAG in (v.tags or {}) and _is_model(v.tags, digest, version)
                for v in self._client.search_model_versions(f"name = '{name}'")
            )
        }

    @cached_property
    def _known(self) -> set[tuple[str, str, str]]:
        """Name, digest and iteration of all that is registered: one question for a whole walk."""
        versions = all_pages(lambda token: self._client.search_model_versions(page_token=token))
        tags = [(v.name, v.tags or {}) for v in versions]
        return {(name, own.get(DIGEST_TAG, ""), own.get(ITERATION_TAG, "")) for name, own in tags}

    def has(self, name: str, iteration: int, digest: str) -> bool:
        """Whether this model of this iteration was registered when this object first asked, or
        has been by it."""
        return (name, digest, str(iteration)) in self._known

    def register(self, name: str, iteration: int, digest: str, path: str, run_id: str) -> None:
        """A version of a registered model, unless this model of this iteration is one already."""
        if self.has(name, iteration, digest):
            return
        self._ensure_registered(name)
        # asked anew: a try before this one may have got through although its answer did not
        versions = self._client.search_model_versions(f"name = '{name}'")
        if not any(_is_model(version.tags, digest, iteration) for version in versions):
            self._create(name, iteration, digest, path, run_id)
        self._known.add((name, digest, str(iteration)))

    def _create(self, name: str, iteration: int, digest: str, path: str, run_id: str) -> None:
        from mlflow import create_external_model, set_tracking_uri

        set_tracking_uri(self._tracking_uri)
        tags = {
            DIGEST_TAG: digest,
            ITERATION_TAG: str(iteration),
            "rlhf.path": path,
        }
        model = create_external_model(
            f"{name}-v{iteration}",
            source_run_id=run_id,
            tags=tags,
            experiment_id=self._experiment,
        )
        self._client.create_model_version(
            name,
            source=f"models:/{model.model_id}",
            run_id=run_id,
            tags=tags,
            model_id=model.model_id,
        )

    def _ensure_registered(self, name: str) -> None:
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)


def registered_name(recipe: Recipe, node: Node) -> str | None:
    """Name in the model registry of what a node of an iteration makes, if it is registered."""
    version = node.id.version
    if version == BASE:
        return None
    if policy(recipe, version).node == node.id:
        return "policy"
    names = {reward_model_name(domain): f"{domain.value}-rm" for domain in Domain}
    return names.get(node.id.name)


def registered_digests(where: Places) -> set[str]:
    """Digests of all versions of all registered models; none when there is no MLflow yet.

    Raises UserError when MLflow cannot be asked.
    """
    is_local = where.mlflow == f"sqlite:///{where.mlflow_database}"
    if is_local and not where.mlflow_database.exists():
        return set()
    prepare(where)
    from mlflow import MlflowClient

    try:
        client = MlflowClient(where.mlflow, registry_uri=where.mlflow)
        versions = all_pages(lambda token: client.search_model_versions(page_token=token))
        return {v.tags[DIGEST_TAG] for v in versions if DIGEST_TAG in v.tags}
    except Exception as error:  # whatever MLflow, its HTTP client or its database raises
        raise UserError(
            f"MLflow at {where.mlflow} does not say which models are registered: "
            f"{reason_of(error)}",
            "Start it and try again: a registered model's files must not be removed",
        ) from error


def _is_model(tags: Mapping[str, str] | None, digest: str, iteration: int) -> bool:
    """Whether a model version's tags say that it is this model of this iteration."""
    found = tags or {}
    return (found.get(DIGEST_TAG), found.get(ITERATION_TAG)) == (digest, str(iteration))
