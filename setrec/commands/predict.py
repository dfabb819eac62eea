"""predict: recommend to the users of the data, with Lightning, or to the users of a file, without it."""

from collections.abc import Sequence

from setrec.commands.words import call, values_of, with_value


def from_words(words: Sequence[str]) -> None:
    """Run `predict`: with --histories FILE for the users of the file, otherwise for those of the data."""
    if values_of(words, "--histories"):
        from setrec.commands.predict_file import predict_file  # here: predicting with Lightning needs none of it

        call(predict_file, "predict", with_value(words, "--explain"))
    else:
        from setrec.commands.fit import run  # here: Lightning takes seconds to import

        run(["predict", *words])
