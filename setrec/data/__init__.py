"""From raw files to batches: readers, cleaning, splits, prepared data and the data module.

The names below are public. Each is imported when it is first used, because serving reads prepared data and needs neither a reader
of raw files nor Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from setrec.data.catalogue import Catalogue, Histories
    from setrec.data.clean import Cleaning
    from setrec.data.datamodule import SETRecDataModule
    from setrec.data.readers.amazon import AmazonReviews
    from setrec.data.readers.base import EventLog, Reader, SplitLog
    from setrec.data.readers.download import Source
    from setrec.data.readers.official import OfficialRelease
    from setrec.data.readers.recbole import RecBoleFiles
    from setrec.data.readers.steam import SteamReviews
    from setrec.data.readers.synthetic import SyntheticWorld
    from setrec.data.readers.table import TableFiles
    from setrec.data.split import LeaveOneOut, Split, TimeRatioSplit, TimestampSplit
    from setrec.files.ragged import Ragged

__all__ = [
    "AmazonReviews",
    "Catalogue",
    "Cleaning",
    "EventLog",
    "Histories",
    "LeaveOneOut",
    "OfficialRelease",
    "Ragged",
    "Reader",
    "RecBoleFiles",
    "SETRecDataModule",
    "Source",
    "Split",
    "SplitLog",
    "SteamReviews",
    "SyntheticWorld",
    "TableFiles",
    "TimeRatioSplit",
    "TimestampSplit",
]

_MODULES = {  # name -> the module that defines it
    "AmazonReviews": "setrec.data.readers.amazon",
    "Catalogue": "setrec.data.catalogue",
    "Cleaning": "setrec.data.clean",
    "EventLog": "setrec.data.readers.base",
    "Histories": "setrec.data.catalogue",
    "LeaveOneOut": "setrec.data.split",
    "OfficialRelease": "setrec.data.readers.official",
    "Ragged": "setrec.files.ragged",
    "Reader": "setrec.data.readers.base",
    "RecBoleFiles": "setrec.data.readers.recbole",
    "SETRecDataModule": "setrec.data.datamodule",
    "Source": "setrec.data.readers.download",
    "Split": "setrec.data.split",
    "SplitLog": "setrec.data.readers.base",
    "SteamReviews": "setrec.data.readers.steam",
    "SyntheticWorld": "setrec.data.readers.synthetic",
    "TableFiles": "setrec.data.readers.table",
    "TimeRatioSplit": "setrec.data.split",
    "TimestampSplit": "setrec.data.split",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
