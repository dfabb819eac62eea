"""Raw files in, batches out: readers, cleaning, splits, the prepared format and the data module."""

from setrec.data.amazon import AmazonReviews
from setrec.data.catalogue import Catalogue, Histories, Ragged
from setrec.data.clean import Cleaning
from setrec.data.datamodule import SETRecDataModule
from setrec.data.download import Source
from setrec.data.official import OfficialRelease
from setrec.data.reader import EventLog, Reader, SplitLog
from setrec.data.recbole import RecBoleFiles
from setrec.data.split import LeaveOneOut, Split, TimeRatioSplit, TimestampSplit
from setrec.data.steam import SteamReviews
from setrec.data.synthetic import SyntheticWorld
from setrec.data.table import TableFiles

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
