"""The libraries we are compared with: pinned, in folders of their own, never installed from here.

Two versions of one library are needed, and neither may change the project's environment; so each
set of pins has a folder made by `pip install --target`, put in front of the path of the process
that runs the peer.
"""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """A set of pins; `name` is that of the folder and of the requirements file."""

    name: str
    title: str

    @property
    def requirements(self) -> Path:
        """The file with the pins."""
        return HERE / f"requirements-{self.name}.txt"

    def folder(self, peers: Path) -> Path:
        """Where this set is installed, below the folder of all peers."""
        return peers / self.name

    def pins(self) -> dict[str, str]:
        """Version by distribution name."""
        text = self.requirements.read_text()
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        return dict(line.split("==") for line in lines if line)

    def problem(self, peers: Path) -> str:
        """ "" when every pin is installed; else one paragraph with the command that does it."""
        installed = {
            found.metadata["Name"].lower(): found.version
            for found in metadata.distributions(path=[str(self.folder(peers))])
        }
        missing = [f"{k}=={v}" for k, v in self.pins().items() if installed.get(k.lower()) != v]
        if not missing:
            return ""
        requirements = self.requirements.relative_to(HERE.parent)
        return (
            f"{self.title} is not installed in {self.folder(peers)} (missing: "
            f"{', '.join(missing)}). Run: pip install --no-deps --target {self.folder(peers)} "
            f"-r {requirements} (or name another folder with --peers); `make bench` does this."
        )


HUGGING_FACE = Peer("trl-1.16", "TRL 1.16 with accelerate and datasets")
PPO_TRAINER = Peer("trl-1.12", "TRL 1.12, the last release with PPOTrainer,")
