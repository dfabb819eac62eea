"""Words of a text in any script, and texts without the labels of their fields."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

# scripts that write no blanks between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese, Chinese; and Korean, which joins them
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_LAST_MARK = 0x1F000  # beyond it stand no vowel signs


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    """Words; the pieces of a word of both kinds of scripts; the letters of an unspaced script, each with its marks."""
    marks = "".join(
        chr(point)
        for point in range(0x300, _LAST_MARK)
        if not 0x3400 <= point < 0xA000 and unicodedata.category(chr(point)).startswith("M")
    )
    unspaced = re.compile(rf"[{_UNSPACED}]")
    piece = rf"(?:[{_UNSPACED}][{marks}]*)+|[^{_UNSPACED}]+"
    return re.compile(rf"[\w{marks}]+"), unspaced, re.compile(piece), re.compile(rf".[{marks}]*", re.DOTALL)


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters, those of one letter left out.

    In a script that writes no blanks between words, these are the letters and the pairs of neighbours.
    """
    text = text.lower()
    if text.isascii():
        return re.findall(r"\w\w+", text)
    word, unspaced, piece, letter = _patterns()
    found = []
    for run in word.findall(unicodedata.normalize("NFC", text)):
        if not unspaced.search(run):
            found += [run] if len(run) > 1 else []
            continue
        for match in piece.finditer(run):
            if not unspaced.match(match[0]):
                found += [match[0]] if len(match[0]) > 1 else []
                continue
            letters = letter.findall(match[0])
            found += letters
            around = [run[match.start() - 1 : match.start()], *letters, run[match.end() : match.end() + 1]]
            found += [one + other for one, other in pairwise(around) if one and other]
    return found


def without_labels(texts: Iterable[str], labels: Iterable[str]) -> list[str]:
    """Take the names of the fields from texts of the form "title: ...; brand: ..."."""
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True) if label)
    label = re.compile(rf"(?:^|(?<=; ))(?:{names}): ")
    return [label.sub("", text) for text in texts] if names else list(texts)
