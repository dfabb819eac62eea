"""Do image vectors pay where they tell what the text does not? A generated world whose texts do not name the brand.

    python -m tests.benchmarks.images [FOLDER]

The image of an item is a vector of its brand and its kind of product, with noise; every tenth item has none. Validation of three
seeds, without and with the images; without, once more with the brand as a text field of its own, which nobody has in a picture.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from setrec.cli import run
from setrec.data.readers.synthetic import SyntheticWorld

SEEDS = (1, 2, 3)
WORLD = {"users": 600, "items": 240, "brand_in_text": False}
WIDTH, NOISE, LACKING = 24, 0.7, 10


def write_images(path: Path) -> None:
    """Write the images of the world, columns id and vector."""
    items = SyntheticWorld(**WORLD).read(None).items  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    looks: dict[str, np.ndarray] = {}
    rows = []
    for n, (own, brand, category) in enumerate(items.select("id", "brand", "category").iter_rows()):
        parts = [looks.setdefault(look, rng.standard_normal(WIDTH)) for look in (brand, category)]
        if n % LACKING:
            rows.append((own, (sum(parts) + NOISE * rng.standard_normal(WIDTH)).tolist()))
    pl.DataFrame(rows, {"id": pl.String, "vector": pl.List(pl.Float64)}, orient="row").write_parquet(path)


def measured(folder: Path, name: str, seed: int, *flags: str) -> dict[str, float]:
    """Fit, and return the best validation's figures by Recall@10."""
    here = folder / f"{name}.{seed}"
    words = [
        "fit", f"--data.name={name}", f"--data.root={folder / 'data'}", "--data.reader=SyntheticWorld",
        *(f"--data.reader.{option}={json.dumps(value)}" for option, value in WORLD.items()),
        "--data.batch_size=128", f"--data.seed={seed}", f"--seed_everything={seed}", "--model.backbone=T5Backbone",
        "--model.backbone.shape=nano", "--model.backbone.recency_bias=true", "--model.backbone.attention_dropout=0",
        "--model.n_sem=2", "--model.lr=3e-3", "--model.objective=score", "--model.negatives=warm",
        "--model.missing_cf=zero", "--model.cf_dropout=0.2", "--model.memory=true", "--trainer.max_epochs=8",
        f"--trainer.default_root_dir={here}", "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={here}",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", *flags,
    ]  # fmt: skip
    run(words)
    rows = pl.read_csv(next(here.rglob("metrics.csv")), infer_schema_length=None)
    rows = rows.filter(pl.col("validation/all/recall@10").is_not_null()).sort("validation/all/recall@10")
    return {name: value for name, value in rows.row(-1, named=True).items() if name.startswith("validation/")}


def main() -> None:
    """Print a line for every form."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else made)
        folder.mkdir(parents=True, exist_ok=True)
        write_images(folder / "images.parquet")
        image = {"class_path": "setrec.vectors.FileVectors", "init_args": {"file": str(folder / "images.parquet")}}
        encoder = {"class_path": "setrec.text.TfidfSVD", "init_args": {"width": 10}}
        brand = {"class_path": "setrec.text.FieldText", "init_args": {"field": "brand", "encoder": encoder}}
        forms = {
            "plain": [],
            "image": [f"--data.vectors={json.dumps({'image': image})}"],
            "brand": [f"--data.vectors={json.dumps({'brand': brand})}"],
        }
        for name, flags in forms.items():
            found = [measured(folder, name, seed, *flags) for seed in SEEDS]
            for group in ("all", "cold"):
                pairs = [[one[f"validation/{group}/{figure}@10"] for figure in ("recall", "ndcg")] for one in found]
                print(f"{name:6} {group:5}", ", ".join(f"{recall:.4f} / {ndcg:.4f}" for recall, ndcg in pairs))
            print(f"{name:6} share", [{k: v for k, v in one.items() if "source" in k} for one in found])


if __name__ == "__main__":
    main()
