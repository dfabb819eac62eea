"""publish: a checkpoint as a folder to hand on, from the command line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setrec.commands.words import call
from setrec.errors import ConfigError, DataError
from setrec.files.whole import whole_folder
from setrec.recommend import Recommender


def publish(
    ckpt_path: str,
    output: str,
    results: str | None = None,
    license: str = "other",
    data_license: str = "",
    data: str | None = None,
) -> Path:
    """Write a trained model as a folder in the Hugging Face hub's conventions: weights, catalogue, encoder, model card.

    Args:
        ckpt_path: A checkpoint of fit, or a version of its catalogue with added items.
        output: Folder to make; it must not exist.
        results: results.json of the model's test run; null: the one in the checkpoint's own run folder, if any.
        license: Licence of the weights, by the hub's name for it (mit, apache-2.0, cc-by-nc-4.0, other ...).
        data_license: What may be done with the data, in words, for the card.
        data: Folder of the prepared data, where it is not where the checkpoint says.

    Raises:
        ConfigError: the folder exists, or the results are of another model.
        DataError: the disk refuses.
    """
    folder = Path(output)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: name a new folder for the published model.")
    recommender = Recommender.load(ckpt_path, data=data)
    if results is not None:
        recommender.tested(_read(Path(results)))
    try:
        with whole_folder(folder) as hidden:
            recommender.save_pretrained(hidden, model_card_kwargs={"license": license, "data_license": data_license})
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}).") from None
    print(f"published: {folder}")
    if recommender.info()["results"] is None:
        print("its card has no figures: give --results RESULTS.JSON of its test run")
    return folder


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as results.json ({error}).") from None


def from_words(words: Sequence[str]) -> None:
    """Run `publish`."""
    call(publish, "publish", words)
