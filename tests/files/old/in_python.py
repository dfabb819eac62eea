"""A checkpoint made without the command line, which names classes by their whole module path: `python in_python.py FILE`."""

import sys

from lightning import Trainer, seed_everything

from setrec.backbones import DecoderBackbone
from setrec.cf import CooccurrenceSVD
from setrec.data import Cleaning, SETRecDataModule, TableFiles
from setrec.module import SETRecModule
from setrec.text import TfidfSVD


def main() -> None:
    """A Qwen3 with everything beside the slots; the weights that validation would choose are set by hand, none is 0."""
    seed_everything(1)
    columns = {"user": "customer", "item": "product", "timestamp": "bought_at", "rating": "stars", "item_id": "id"}
    data = SETRecDataModule(
        name="shop",
        reader=TableFiles("events.csv", "items.csv", **columns, text_fields=["title", "category", "brand"]),
        text=TfidfSVD(16),
        cf=[CooccurrenceSVD(8)],
        cleaning=Cleaning(min_rating=2, k_core=3),
        raw="tests/files",
        root="data",
        batch_size=128,
    )
    module = SETRecModule(
        DecoderBackbone(family="qwen3", shape="nano"),
        lr=8e-3,
        n_sem=1,
        bottleneck=8,
        trunk=[16],
        objective="score",
        memory=True,
        neighbours=True,
    )
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    module.beta.fill_(0.4)
    module.neighbours_weight.fill_(4.0)
    module.recency_weight.fill_(0.5)
    module.cold_text_weight.fill_(10.0)
    trainer.save_checkpoint(sys.argv[1], weights_only=True)


if __name__ == "__main__":
    main()
