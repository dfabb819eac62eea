"""Where the journal of a model lies: one journal for a link and all checkpoints that it has named.

The journal of a checkpoint, or of a published folder, is the file CKPT.items.jsonl beside it. That of a link, such as `update`
keeps, lies beside the link, so changes stay when the link leads to another checkpoint. Beside a checkpoint that a link has named,
CKPT.items.jsonl is a link to the link's journal. So whoever opens the checkpoint by its own path finds the same changes.
"""

import os
from pathlib import Path

from setrec.errors import ConfigError
from setrec.files.whole import sync_folder, whole_file
from setrec.inference.journal import Journal, JournalWriteError


def journal_path(model: Path) -> Path:
    """The journal of a checkpoint, a published folder, or a link to one, whether it is there or not."""
    path = Path(os.path.abspath(model))
    own = _beside(path)
    if path.is_symlink() and not own.exists():  # a link that nobody has written for
        named = _beside(Path(os.path.realpath(path)))
        own = named if named.exists() else own
    return Path(os.path.realpath(own)) if own.is_symlink() else own


def share_journal(link: Path, checkpoint: Path) -> str:
    """Let a link and a checkpoint have one journal, that of the link. It takes over what the checkpoint's own one holds.

    A kill at any moment loses nothing; do it again then.

    Returns:
        A sentence about what was taken over, or why the two stay apart; "" if there was nothing.

    Raises:
        ConfigError: a journal cannot be written.
        DataError: a journal is damaged.
    """
    kept, own = _beside(Path(os.path.abspath(link))), _beside(Path(os.path.realpath(checkpoint)))
    if kept == own or (own.is_symlink() and own.exists()):
        return ""
    said = ""
    try:
        if own.exists():
            said = _take_over(Journal(kept), Journal(own))
        hidden = own.with_name(f".{own.name}.new")
        hidden.unlink(missing_ok=True)
        hidden.symlink_to(os.path.relpath(kept, own.parent))
        os.replace(hidden, own)
        sync_folder(own.parent)
        own.with_name(f"{own.name}.head").unlink(missing_ok=True)
    except JournalWriteError as error:
        raise ConfigError(f"the journals of {link} and {checkpoint} cannot be joined ({error}); try again.") from None
    except OSError as error:  # a folder of models that others own
        return (
            f"{own} stays a journal of its own ({error.strerror}): who opens {checkpoint} by its path finds that one."
        )
    return said


def _take_over(kept: Journal, own: Journal) -> str:
    with kept.locked(), own.locked():
        n = len(own.changes)
        if not n:
            return ""
        if not kept.changes:
            with whole_file(kept.path) as hidden:  # byte for byte: versions name places in it
                hidden.write_bytes(own.path.read_bytes())
        elif kept.changes[-n:] != own.changes and kept.mark != own.mark:
            kept.append(own.changes)
    Journal(kept.path)  # counts the lines
    return f"{n:,} changes of the catalogue in {own.path} are in {kept.path} from now on"


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".items.jsonl")
