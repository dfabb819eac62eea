"""Links and paths in the documentation lead to something that exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOLDERS = ("setrec/", "tests/", "configs/", "docs/", ".ci/")  # data/ and lightning_logs/ hold what commands write
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(<?([^)>\s]+)>?(?: \"[^\"]*\")?\)|\b(?:src|href)=\"([^\"]+)\"")
PLACEHOLDER = re.compile(r"\{[^}]*\}|<[^>]*>|\*+")  # configs/{toys,steam}_t5.yaml, configs/<name>.yaml, configs/*.yaml


def links(page: str) -> Iterator[str]:
    """The targets of a page's links, those to other hosts left out."""
    for found in LINK.finditer(CODE.sub("", FENCE.sub("", page))):
        target = found[1] or found[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def paths(page: str) -> Iterator[str]:
    """The words in code, fenced or in backticks, that are paths inside this repository."""
    code = [found[0] for found in FENCE.finditer(page)] + CODE.findall(FENCE.sub("", page))
    for word in " ".join(code).split():
        word = word.strip("\"'`(),;:").rpartition("=")[2]
        word = word.removeprefix("./").split("::")[0].rstrip(".")
        if word.startswith(FOLDERS):
            yield word


def anchors(page: str) -> set[str]:
    """What a link can name after #: the headings, as GitHub writes them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [path for path in paths(text) if not any(ROOT.glob(PLACEHOLDER.sub("*", path).rstrip("/")))]
    for link in links(text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        inside = target.resolve().is_relative_to(ROOT)
        if not inside or not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            missing.append(link)
    assert not missing, f"{page.name} names what does not exist: {missing}"


def test_code_and_configurations_name_pages_that_exist() -> None:
    files = [*ROOT.glob("setrec/**/*.py"), *ROOT.glob("configs/**/*.yaml")]
    named = {path for file in files for path in re.findall(r"\bdocs/[\w/.]+\.md", file.read_text(encoding="utf-8"))}
    assert named
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]


def test_what_counts_as_a_link_or_a_path() -> None:
    page = (
        '# On `a.b`: one & two\n[x](docs/a.md#b) [y](https://z) `[no](link)` <img src="i.png">\n'
        "`python main.py fit --config=configs/x.yaml` and `setrec/a.py::f`\n"
        "```bash\ncat configs/{a,b}.yaml [no](link)\n```\n"
    )
    assert list(links(page)) == ["docs/a.md#b", "i.png"]
    assert list(paths(page)) == ["configs/{a,b}.yaml", "configs/x.yaml", "setrec/a.py"]
    assert anchors(page) == {"on-ab-one--two"}
