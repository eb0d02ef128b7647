"""What a user says of the cards on the command line. Imports nothing heavy: `--help` reads it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CardOptions:
    """None where the default holds."""

    num_gpus: int | None = None
    card: str | None = None
    mfu: float | None = None
    watts: float | None = None
    pue: float | None = None
    kgco2_per_kwh: float | None = None
    assumptions: tuple[str, ...] = ()
    """Of the data, as KEY=VALUE."""

    @property
    def is_given(self) -> bool:
        """Whether there is anything to plan for."""
        return self != CardOptions()
