"""Readers of raw files, one module a form. Importing this package imports every reader."""

from setrec.data.readers.amazon import AmazonReviews
from setrec.data.readers.official import OfficialRelease
from setrec.data.readers.recbole import RecBoleFiles
from setrec.data.readers.steam import SteamReviews
from setrec.data.readers.synthetic import SyntheticWorld
from setrec.data.readers.table import TableFiles

__all__ = ["AmazonReviews", "OfficialRelease", "RecBoleFiles", "SteamReviews", "SyntheticWorld", "TableFiles"]
