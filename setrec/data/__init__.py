"""From raw files to batches: readers, cleaning, splits, prepared data and the data module.

The names below are public. Each is imported when it is first used, because serving reads prepared data and needs neither a reader
of raw files nor Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

from setrec.class_names import CLASSES

if TYPE_CHECKING:
    from setrec.data.catalogue import Catalogue, Histories
    from setrec.data.clean import Cleaning
    from setrec.data.datamodule import SETRecDataModule
    from setrec.data.duckdb_engine import DuckDBEngine
    from setrec.data.engines import Engine, PolarsEngine
    from setrec.data.kinds import Kinds
    from setrec.data.readers.amazon import AmazonReviews
    from setrec.data.readers.base import EventLog, Reader, SplitLog
    from setrec.data.readers.download import Source
    from setrec.data.readers.official import OfficialRelease
    from setrec.data.readers.recbole import RecBoleFiles
    from setrec.data.readers.steam import SteamReviews
    from setrec.data.readers.synthetic import SyntheticWorld
    from setrec.data.readers.table import TableFiles
    from setrec.data.spark_engine import SparkEngine
    from setrec.data.split import LeaveOneOut, Split, TimeRatioSplit, TimestampSplit
    from setrec.files.ragged import Ragged

__all__ = [
    "AmazonReviews",
    "Catalogue",
    "Cleaning",
    "DuckDBEngine",
    "Engine",
    "EventLog",
    "Histories",
    "Kinds",
    "LeaveOneOut",
    "OfficialRelease",
    "PolarsEngine",
    "Ragged",
    "Reader",
    "RecBoleFiles",
    "SETRecDataModule",
    "Source",
    "SparkEngine",
    "Split",
    "SplitLog",
    "SteamReviews",
    "SyntheticWorld",
    "TableFiles",
    "TimeRatioSplit",
    "TimestampSplit",
]

_OTHERS = {  # public names that no file holds, and the modules that define them
    "Catalogue": "setrec.data.catalogue",
    "Engine": "setrec.data.engines",
    "EventLog": "setrec.data.readers.base",
    "Histories": "setrec.data.catalogue",
    "Ragged": "setrec.files.ragged",
    "Reader": "setrec.data.readers.base",
    "Split": "setrec.data.split",
    "SplitLog": "setrec.data.readers.base",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    module = CLASSES.get(f"setrec.data.{name}") or _OTHERS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
