"""Raw files in, batches out: readers, cleaning, splits, the prepared format and the data module."""

from setrec.data.catalogue import Catalogue, Histories, Ragged
from setrec.data.clean import Cleaning
from setrec.data.datamodule import SETRecDataModule
from setrec.data.official import OfficialRelease
from setrec.data.reader import EventLog, Reader, SplitLog
from setrec.data.split import LeaveOneOut, Split, TimeRatioSplit, TimestampSplit
from setrec.data.synthetic import SyntheticWorld

__all__ = [
    "Catalogue",
    "Cleaning",
    "EventLog",
    "Histories",
    "LeaveOneOut",
    "OfficialRelease",
    "Ragged",
    "Reader",
    "SETRecDataModule",
    "Split",
    "SplitLog",
    "SyntheticWorld",
    "TimeRatioSplit",
    "TimestampSplit",
]
