"""One file for each group of findings; `FINDINGS` is all of them in the order of the letters."""

from paper.finding import Finding
from paper.findings import (
    carbon,
    demonstrations,
    dialogues,
    policies,
    preference_losses,
    reward_models,
    sampling,
    versions,
)

FINDINGS: tuple[Finding, ...] = tuple(
    sorted(
        (
            *carbon.FINDINGS,
            *demonstrations.FINDINGS,
            *dialogues.FINDINGS,
            *policies.FINDINGS,
            *preference_losses.FINDINGS,
            *reward_models.FINDINGS,
            *sampling.FINDINGS,
            *versions.FINDINGS,
        ),
        key=lambda finding: finding.letter,
    )
)
