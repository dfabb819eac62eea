"""Public names of retrieval: the best k of a large catalogue, exact or by faiss."""

from setrec.scoring.retrieval import ExactSearch, FaissSearch, Found, Retriever, Search, overlap

__all__ = ["ExactSearch", "FaissSearch", "Found", "Retriever", "Search", "overlap"]
