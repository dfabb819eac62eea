"""SETRec: order-agnostic set identifiers for generative recommendation."""

from typing import TYPE_CHECKING, Any

from setrec.class_names import register

if TYPE_CHECKING:
    from setrec.recommend import Recommender

__all__ = ["Recommender", "register"]


def __getattr__(name: str) -> Any:
    """`from setrec import Recommender`, without torch being imported by who only wants a submodule."""
    if name == "Recommender":
        from setrec.recommend import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
