"""The size of a YAML text, told before it is built."""

import os

import yaml

from setrec.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # with what aliases stand for
MAX_DEPTH = 50


def check_yaml(value: str) -> None:
    """Check that a configuration, a file or written out, is of a size that a person or a program would write.

    A few lines of YAML can stand for more values than any memory holds, since an alias (*name) repeats what is at its anchor
    (&name). Such a text is read event by event here, before a parser builds it.

    Raises:
        ConfigError: it is too large, too deep, or holds itself.
    """
    name, text = "this text", value
    if os.path.isfile(value):
        name = value
        with open(value, encoding="utf8", errors="replace") as file:
            text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ConfigError(f"--config {name} is larger than {MAX_BYTES:,} bytes: that is no configuration.")
    sizes: dict[str, int] = {}  # anchor -> values
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, values so far; the first is the text itself
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            size = 0
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_nodes.pop()
                sizes[anchor or ""] = size
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor in {anchor for anchor, _ in open_nodes}:
                    raise ConfigError(f"--config {name}: its *{event.anchor} stands inside of what it means.")
                size = sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
            anchor, before = open_nodes.pop()
            open_nodes.append((anchor, before + size))
            if before + size > MAX_VALUES or len(open_nodes) > MAX_DEPTH:
                raise ConfigError(
                    f"--config {name}, line {event.start_mark.line + 1}: more than {MAX_VALUES:,} values, or nested more than "
                    f"{MAX_DEPTH} deep: that is no configuration."
                )
    except yaml.YAMLError:
        return  # the parser says what is wrong
