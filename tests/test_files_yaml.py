"""Texts of YAML that stand for more than a memory holds: one sentence, at once, in every command."""

import time
from pathlib import Path

import pytest
import torch
import yaml

from setrec.cli import main
from setrec.errors import ConfigError
from setrec.files.checkpoint import read_checkpoint
from setrec.files.yaml_size import MAX_BYTES, check_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 10)}]\n  y{i}: 1\n" for i in range(1, 12)
)
BOMBS = {
    "billion laughs": (LAUGHS, "more than 100,000 values"),
    "merges": (MERGES, "more than 100,000 values"),
    "flow": ("data: " + "[" * 50_000 + "]" * 50_000, "nested more than 50 deep"),
    "open flow": ("data: " + "[" * 50_000, "nested more than 50 deep"),
    "maps": ("{a: " * 50_000 + "1" + "}" * 50_000, "nested more than 50 deep"),
    "block": ("- " * 50_000 + "x", "nested more than 50 deep"),
    "itself": ("data: &a [*a]", "stands inside of what it means"),
    "large": ("data: {x: " + "y" * MAX_BYTES + "}", "larger than"),
}


@pytest.fixture(params=BOMBS)
def bomb(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    text, said = BOMBS[request.param]
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    return path, said


@pytest.mark.parametrize(
    "command",
    [
        ["fit", "--config", "{}"], ["fit", "--config=quickstart", "--config={}"], ["test", "-c", "{}"],
        ["fit", "--config=quickstart", "--data={}"], ["predict", "--config={}"],
        ["predict", "--histories=x.csv", "--config={}"], ["serve", "--config={}"],
        ["serve", "--ckpt_path=x", "--encoder={}"], ["estimate", "--config={}"], ["ablate", "--config={}", "--output=x"],
        ["report", "--config", "{}"], ["publish", "--config={}"], ["add-items", "--config={}"], ["refit", "--config={}"],
    ],
)  # fmt: skip
def test_every_command_ends_with_one_sentence(
    command: list[str], bomb: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, said = bomb
    words = [word.format(path) for word in command]
    if command[0] == "refit":
        words.append(f"--ckpt_path={path}")
    start = time.perf_counter()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert error.startswith(f"error: --config {path}")
    assert said in error
    assert len(error.splitlines()) == 1
    assert time.perf_counter() - start < 20


def test_what_is_written_out_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="this text, line 5: more than 100,000 values"):
        check_yaml(LAUGHS)


def test_honest_texts_pass(tmp_path: Path) -> None:
    for path in Path("configs").rglob("*.yaml"):
        check_yaml(str(path))
    check_yaml("base: &base {x: 1}\nmodel: {<<: *base, y: 2}\ndata: [*base, *base]\n")
    check_yaml("{broken")  # the parser says what is wrong
    check_yaml("")
    (tmp_path / "many.yaml").write_text(yaml.safe_dump({"a": list(range(20_000))}))
    check_yaml(str(tmp_path / "many.yaml"))


def test_a_checkpoint_of_many_arguments(tmp_path: Path) -> None:
    """Lists that hold the one below twice: 60 lists stand for 10^18 values."""
    doubled: list = []
    for _ in range(60):
        doubled = [doubled, doubled]
    content = {"hyper_parameters": {"x": doubled}, "datamodule_hyper_parameters": {}, "state_dict": {}}
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="more than 100,000 arguments"):
        read_checkpoint(tmp_path / "x.ckpt")
    endless: list = []
    endless.append(endless)
    torch.save(content | {"hyper_parameters": {"x": endless}}, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="more than 100,000 arguments"):
        read_checkpoint(tmp_path / "x.ckpt")
