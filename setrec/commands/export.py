"""export: write a model as files that other programs serve, without this project."""

from pathlib import Path

from setrec.errors import ConfigError, DataError
from setrec.files.whole import whole_folder
from setrec.inference.exported import EXAMPLE, Format
from setrec.recommend import Recommender


def export(
    ckpt_path: str,
    output: str,
    formats: list[Format] = ["onnx"],  # noqa: B006  (read only; shown by --help)
    data: str | None = None,
) -> Path:
    """Write a trained model as files that other programs serve: the user tower, the item table, an example that needs no SETRec.

    Args:
        ckpt_path: A checkpoint that fit wrote, a version of its catalogue, or a published folder.
        output: Folder to write; it must not exist. Triton and other servers of the KServe V2 protocol read it.
        formats: How the user tower is written: onnx, torch (a program of torch.export), or both.
        data: Folder of the prepared data, if it is not where the checkpoint says.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder exists, a package is missing, or the backbone can't be exported.
        DataError: the folder cannot be written.
        ModelError: the exported program computes something else than the model.
    """
    folder = Path(output)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: name a new folder for the exported model.")
    recommender = Recommender.load(ckpt_path, data=data)
    try:
        with whole_folder(folder) as hidden:
            found = recommender.export(hidden, formats)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}).") from None
    if found.refused is not None:
        print(f"{found.refused}: a program of torch.export was written in its place.")
    closeness = f"differs from the model by {found.difference:.1e} of its largest number"
    print(f"exported: {folder} ({' and '.join(found.formats)}; {closeness})")
    print(f"next: python {folder / EXAMPLE} ITEM_ID ...")
    return folder
