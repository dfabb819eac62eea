"""publish: write a model as a folder that others can use."""

from pathlib import Path
from typing import Any

from setrec.errors import ConfigError, DataError
from setrec.files.hashes import read_sealed
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
    """Write a trained model as a folder for the Hugging Face hub: weights, catalogue, text encoder, model card.

    Args:
        ckpt_path: A checkpoint that fit wrote, or a version of its catalogue.
        output: Folder to write; it must not exist.
        results: File results.json of the model's test run; null: the one in the run folder of the checkpoint, if any.
        license: Licence of the weights, by the hub's name for it (mit, apache-2.0, cc-by-nc-4.0, other ...).
        data_license: What may be done with the data, in words, for the model card.
        data: Folder of the prepared data, if it is not where the checkpoint says.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder exists, or the results are of another model.
        DataError: the folder cannot be written.
    """
    folder = Path(output)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: name a new folder for the published model.")
    recommender = Recommender.load(ckpt_path, data=data)
    if results is not None:
        recommender.tested(_read_results(Path(results)))
    try:
        with whole_folder(folder) as hidden:
            recommender.save_pretrained(hidden, model_card_kwargs={"license": license, "data_license": data_license})
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}).") from None
    print(f"published: {folder}")
    if recommender.info()["results"] is None:
        print("the model card has no figures: give --results FILE, the results.json of the test run")
    return folder


def _read_results(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as results.json ({error}).") from None
