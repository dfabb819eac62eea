"""Pages of the site that stand at the top of the repository: README as its first page, CONTRIBUTING and CHANGELOG.

mkdocs calls `on_files`, named under `hooks` in mkdocs.yml. So each text stands in one place.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

TOP = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, their links as seen from docs/."""
    for name, page in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (TOP / name).read_text())
        for other, its_page in PAGES.items():
            text = text.replace(f"]({other})", f"]({its_page})")
        files.append(File.generated(config, page, content=text))
    return files
