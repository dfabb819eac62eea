"""The methods that every model of the Hugging Face hub has: save_pretrained, from_pretrained, push_to_hub."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download

from setrec.errors import ConfigError
from setrec.inference.answers import Snapshot, chosen_beta
from setrec.inference.model_card import model_card
from setrec.inference.published import write_published
from setrec.inference.restore import Trained
from setrec.inference.versions import table_of


class HubModel(ModelHubMixin):
    """A trained model that can be published; inference/published.py describes the files."""

    _trained: Trained
    _snapshot: Snapshot

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, device: str = "cpu", data: str | Path | None = None) -> Self:
        """See `Recommender.load`."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """See `Recommender.info`."""

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write everything that `save_pretrained` writes, except the model card."""
        snapshot, trained = self._snapshot, self._trained
        items = table_of(trained.items, snapshot.changes)
        patched = {name for fields in snapshot.changes.patched.values() for name in fields}
        items = items.with_columns(snapshot.attributes.table.select(sorted(patched)))
        text = snapshot.changes.encoder or trained.text
        write_published(save_directory, trained, snapshot.restored, snapshot.catalogue, items, text)

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # takes no other keyword than device
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str = "cpu",
    ) -> Self:
        """Read a published folder of this machine or of the hub; `from_pretrained` calls this."""
        if Path(model_id).is_dir():
            return cls.load(model_id, device)
        folder = snapshot_download(
            model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only, token=token,
        )  # fmt: skip
        return cls.load(folder, device)

    def generate_model_card(self, license: str = "other", data_license: str = "") -> ModelCard:
        """Make the model card. `save_pretrained` calls this, with its `model_card_kwargs`, for a folder without a card.

        Args:
            license: the licence of the weights, by the hub's name for it.
            data_license: what may be done with the data, in words.
        """
        trained = self._trained
        text = self._snapshot.changes.encoder or trained.text
        return ModelCard(
            model_card(self.info(), trained.arguments, trained.results, text, trained.origin, license, data_license)
        )

    def tested(self, results: dict[str, Any]) -> None:
        """Keep the figures of this model's test run, for `info` and the model card.

        Args:
            results: the content of results.json.

        Raises:
            ConfigError: the figures are of another model: another data set, or another beta.
        """
        try:
            same = results["protocol"]["dataset"] == self._trained.catalogue.name
            same = same and abs(results["beta"] - chosen_beta(self._snapshot)) < 1e-6
            summary(results)
        except (KeyError, TypeError):
            same = False
        if not same:
            raise ConfigError("the results are not those of this model: another data set, or another beta.")
        self._trained = self._trained._replace(results=results)


def summary(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """The figures of results.json that `info` gives: recall@10 and ndcg@10 of every group of items."""
    if results is None:
        return None
    figures = {
        group: {name: row[name] for name in ("recall@10", "ndcg@10")} for group, row in results["metrics"].items()
    }
    protocol = results["protocol"]
    return {"filter_seen": protocol["filter_seen"], "date": protocol["date"], "metrics": figures}
