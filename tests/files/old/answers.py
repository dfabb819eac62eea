"""What the models answer: `python answers.py FILE`, run by make.sh where the checkpoints were made."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch

from setrec import Recommender
from setrec.cli import run

K = 5
HISTORIES: list[list[str]] = [
    [],
    ["B1CD916"],
    ["B1BC254", "nope", "B35BA36"],  # an unknown id
    ["BF5C360", "B2EF675", "BCD82CD"],  # the newest two are cold
    ["B1CD916", "BF725EF", "BFF38F6", "B1F4C3F", "B28FF72", "BF725EF", "B2AA6F9", "B2C32B8", "B34B51D", "B39EA71"],
    ["B1FF072", "BF5C360", "NEW1", "NEW4"],  # the first was removed in t5.items-001; the last two are known where added
]
MORE = {"id": "NEW9", "title": "Dunmore light telescope", "text": "title: Dunmore light telescope; category: astronomy"}
AFTER = [["NEW9"], ["B1CD916", "NEW9"]]
SHORT = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"k": K, "histories": HISTORIES, "more": MORE, "after": AFTER, "recommend": {}}
    for name in ("t5.ckpt", "t5.items-001", "published", "decoder.ckpt", "python.ckpt"):
        found["recommend"][name] = recommended(Recommender.load(name))
    found["predict"] = {"sasrec.ckpt": predicted("sasrec.ckpt")}
    found["test"] = {name: tested(name) for name in ("t5.ckpt", "decoder.ckpt", "sasrec.ckpt", "python.ckpt")}
    Path(sys.argv[1]).write_text(readable(found) + "\n")


def recommended(recommender: Recommender) -> dict[str, Any]:
    """The answers under three betas, and those after another item was added."""
    info = recommender.info()
    about = {
        key: info[key]
        for key in ("name", "n_items", "warm", "cold", "slots", "beta", "max_history", "added", "removed")
    }
    answers = {}
    for beta in (None, 0.0, 0.5):
        given = recommender.recommend(HISTORIES, k=K, explain=True, beta=beta)
        answers["default" if beta is None else str(beta)] = [plain(one, whole=beta is None) for one in given]
    recommender.add_items([MORE])
    after = [plain(one, whole=True) for one in recommender.recommend(AFTER, k=K, explain=True)]
    return {"info": about | {"label": info["model"]["label"]}, "answers": answers, "after": after}


def plain(answer: Any, whole: bool) -> dict[str, Any]:
    """An answer in plain types. whole: with the nearest items, which do not depend on beta."""
    items = []
    for item in answer.items:
        one = {"id": item.id, "score": item.score, "warm": item.warm, "parts": item.why.parts}
        if whole:
            one |= {"title": item.title, "nearest_text": item.why.nearest_text, "nearest_cf": item.why.nearest_cf}
        items.append(one)
    return {"unknown": answer.unknown, "items": items}


def predicted(checkpoint: str) -> dict[str, list[tuple[str, float]]]:
    """Every user's list, [[item, score], ...], from the command predict."""
    with tempfile.TemporaryDirectory() as folder:
        to = [
            f"--trainer.default_root_dir={folder}",
            f"--predictions.output={folder}/out.parquet",
            f"--model.top_k={K}",
        ]
        run(["predict", "--ckpt_path", checkpoint, *SHORT, *to])
        table = pl.read_parquet(f"{folder}/out.parquet")
    lists: dict[str, list[tuple[str, float]]] = {}
    for user, item, score in table.select("user_id", "item_id", "score").rows():
        lists.setdefault(user, []).append((item, score))
    return lists


def tested(checkpoint: str) -> dict[str, Any]:
    """Recall@10 and NDCG@10 of the model and of the baselines, from the command test."""
    with tempfile.TemporaryDirectory() as folder:
        run(["test", "--ckpt_path", checkpoint, *SHORT, f"--trainer.default_root_dir={folder}"])
        (path,) = Path(folder).rglob("results.json")
        results = json.loads(path.read_text())

    def figures(table: dict[str, Any]) -> dict[str, Any]:
        rows = {"model": table["metrics"], **table["baselines"]}
        return {
            name: {group: {at: row[group][at] for at in ("recall@10", "ndcg@10")} for group in row}
            for name, row in rows.items()
        }

    weights = {"beta": results["beta"], **results["protocol"]["weights"]}
    return {"weights": weights, "seen_masked": figures(results), "not_masked": figures(results["other_filter"])}


def readable(value: Any, depth: int = 0) -> str:
    """JSON with one answer or one table a line."""
    line = json.dumps(value)
    if len(line) <= 600 or depth > 5 or not isinstance(value, dict | list):
        return line
    pad, end = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        inside = [f"{json.dumps(key)}: {readable(one, depth + 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(pad + one for one in inside) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + readable(one, depth + 1) for one in value) + f"\n{end}]"


if __name__ == "__main__":
    main()
