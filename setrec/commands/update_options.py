"""The options of `setrec update`."""

from dataclasses import dataclass
from pathlib import Path

import setrec.encoders  # noqa: F401  # so that --encoder takes their names without a module
from setrec.data.readers.table import TableFiles
from setrec.errors import ConfigError
from setrec.text import TextVectors


@dataclass(frozen=True)
class UpdateOptions:
    """The options of `update`. Those of `fit` (--model., --data., --trainer. and so on) are flags of the training.

    Args:
        current: The link to the checkpoint that is served; --publish makes it.
        events: File of new events: .parquet, JSON lines, or CSV with a header.
        database: In place of a file: URL of the database of `serve --database`; the events since the last update are taken.
        items: File of new items. With the columns that the data's own reader names for items, if it is TableFiles; otherwise as
            `add-items` takes it: id, title, text, and what the text encoder reads, or `vector`.
        reader: Names the columns of the files; null: the data's own reader, if it is TableFiles, otherwise the columns user, item
            and timestamp.
        encoder: Text encoder of new items, if the data got its text vectors from a file.
        share: Share of the new events, the newest, that both models are compared on.
        days: In place of the share: the events of so many days before the last one.
        replay: Share of the users without new events whose events are trained on again, so that they are not forgotten.
        tolerance: The updated model is worse if its mean NDCG@10 is lower by more than this share of the served one's, and that
            beyond chance: the 95% interval of the difference lies below 0. Then it is not published, and the exit status is 3.
        keep: Versions of the data that are kept with their models, the newest. What is served, and what was before it, stays.
        server: Address of a running server that is told to load the model: http://localhost:8000, with the token in SETREC_TOKEN.
            null: it watches the link (serve --watch).
        publish: Train nothing; let the link name this checkpoint, or the model of this version, such as shop.002.
        back: Train nothing; let the link name the model that was served before.
    """

    current: Path = Path("current.ckpt")
    events: Path | None = None
    database: str | None = None
    items: Path | None = None
    reader: TableFiles | None = None
    encoder: TextVectors | None = None
    share: float = 0.2
    days: float | None = None
    replay: float = 0.5
    tolerance: float = 0.02
    keep: int = 3
    server: str | None = None
    publish: str | None = None
    back: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of range, or nothing is asked for.
        """
        if not 0 < self.share <= 1 or not 0 <= self.replay <= 1 or self.tolerance < 0 or self.keep < 1:
            raise ConfigError(
                "--share must be above 0 and at most 1, --replay from 0 to 1, --tolerance 0 or more, --keep 1 or more."
            )
        if self.days is not None and not self.days > 0:
            raise ConfigError(f"--days is {self.days}; it must be above 0.")
        if sum((*(one is not None for one in (self.events, self.database, self.publish)), self.back)) != 1:
            raise ConfigError("give one of --events FILE, --database URL, --publish CHECKPOINT, --back.")
        for file in (self.events, self.items):
            if file is not None and not file.is_file():
                raise ConfigError(f"{file}: no such file.")
