"""Write the embedded world's files: documents, demonstrations, prompts and open preferences.

    rlhf stage sandbox_world --recipe demo
    python -m stages.sandbox_world --config world.json --home RLHF_HOME

They are the files that a user would have, so everything after `ingest` is the same for both.
"""

from data_contracts.base import StageConfig
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.sandbox.world import WorldSettings, write_world

VERSION = "2"


class Config(StageConfig, WorldSettings):
    """The world's settings; `seed` decides every word of it."""


def run(config: Config, work: WorkDir) -> StageOutput:
    """Generate the four files."""
    folder = work.output("files")
    num_rows = write_world(folder, config, config.seed) if work.rank.is_main else {}
    return StageOutput(
        {"files": (folder, "files")}, {f"num_{name}": float(n) for name, n in num_rows.items()}
    )


if __name__ == "__main__":
    main(Config, run)
