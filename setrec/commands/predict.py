"""predict: recommend to the users of the data, with Lightning, or to the users of a file, without it."""

import sys
from collections.abc import Sequence

from setrec.commands.words import call, ckpt_path_of, values_of, with_value
from setrec.inference.journal import Journal
from setrec.inference.journal_place import journal_path
from setrec.inference.versions import list_versions


def from_words(words: Sequence[str]) -> None:
    """Run `predict`: with --histories FILE for the users of the file, otherwise for those of the data."""
    if values_of(words, "--histories"):
        from setrec.commands.predict_file import predict_file  # here: predicting with Lightning needs none of it

        call(predict_file, "predict", with_value(words, "--explain"))
    else:
        from setrec.commands.fit import run  # here: Lightning takes seconds to import

        path = ckpt_path_of(words)
        if path is not None and (list_versions(path) or Journal(journal_path(path), writable=False).changes):
            print(
                f"predict ranks the items of the training for the users of the data; the catalogue of {path} has changed since "
                "(add-items, serve): give --histories FILE to rank it as it is now.",
                file=sys.stderr,
            )
        run(["predict", *words])
