"""SETRec as a LightningModule: the training step, the optimiser and the scores; evaluation is in ranking.py."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from setrec.backbones import Backbone, T5Backbone
from setrec.data import Catalogue
from setrec.data.known import Split
from setrec.errors import ConfigError
from setrec.grounding import Index, part_scores
from setrec.hparams import made, save_plain_hyperparameters
from setrec.model import LossSums, Recipe, SETRec
from setrec.neighbours import Counted, Near, TextGraphs, Weights, count, near, near_scores, text_graphs
from setrec.ranking import RankingModule
from setrec.schemas import Batch
from setrec.sharding import shard

BETAS = tuple(b / 10 for b in range(11))
NEIGHBOURS = (0.0, 4.0, 8.0)  # in units of log odds, like the slots' scores
RECENCY = (0.0, 0.5, 1.0, 1.5)
COLD = (0.0, 10.0, 20.0)
_TINY_T5 = lazy_instance(T5Backbone)  # a default that the command line can show and override field by field


class SETRecModule(RankingModule):
    """Trains SETRec and chooses beta on validation.

    Args:
        backbone: What reads the histories: T5Backbone (paper: T5-small). Default: a tiny T5 from random weights.
        lr: Peak learning rate of AdamW (paper: 1e-3 for T5, 3e-4 for Qwen).
        n_sem: Semantic slots an item; 0: collaborative only (paper: 4 for T5, 6 for Qwen).
        n_cf: Collaborative slots an item, one for each CF matrix of the data; 0: semantic only (paper: 1).
        alpha: Weight of the reconstruction of the history's text vectors (paper: 0.7 for T5, 0.5 for Qwen).
        bottleneck: Width H of the semantic autoencoder's bottleneck (paper: 128).
        trunk: Widths between the text vector and the bottleneck (paper: 512, 256).
        missing_cf: CF vector of items absent from training: as_is, whatever the file holds (paper); zero, none.
        objective: What the cross-entropy is over: slots, each slot alone, averaged (paper); score, the sum of all slots,
            which is what items are ranked by.
        negatives: Items in the softmax of the loss: all (paper); warm, without the cold ones, which can never be a target.
        sampled: Items drawn for the softmax of every batch, besides its targets, with the logQ correction; null: the whole
            catalogue (paper). For catalogues too large for that, see docs/scaling.md.
        sampling: How they are drawn: uniform, or popularity, by the count in training to the power 0.75.
        cf_dropout: Probability of hiding the CF vectors of a history item in training, so that the semantic slots learn to
            stand alone, as they must for cold items (paper: 0).
        cf_score_dropout: Probability of ranking a prefix's target by the semantic slots alone in training, so that they can
            rank what has no CF vector (paper: 0). Needs objective score.
        memory: Add the history's own CF and text vectors, with learned weights that fade with age, to the answers
            (paper: false). Needs objective score.
        neighbours: Add what is counted, not learned, to the score: neighbours of the history's items by co-occurrence and by
            text, and how often items occurred lately, with weights chosen on validation, cold items by text alone (paper:
            false); see neighbours.py.
        compile: Compile the backbone with torch.compile. On a CPU it took minutes and gave nothing (docs/scaling.md); on a GPU it
            has not been measured.
        start_from: Checkpoint whose weights a fit starts from; see the command `refit`.
        warmup_steps: Optimiser steps of linear warm-up before the cosine decay (paper: 100).
        weight_decay: AdamW's (paper: 0, the default of the released training script).
        filter_seen: Leave items of the user's own history out of the ranking in validation, test and predict. The paper ranks
            them too (false); test reports both.
        top_k: Items that predict lists for each user.
    """

    label = "SETRec"

    def __init__(
        self,
        backbone: Backbone = _TINY_T5,
        lr: float = 1e-3,
        n_sem: int = 4,
        n_cf: int = 1,
        alpha: float = 0.7,
        bottleneck: int = 128,
        trunk: list[int] = [512, 256],  # noqa: B006  (read only; shown by --help)
        missing_cf: Literal["as_is", "zero"] = "as_is",
        objective: Literal["slots", "score"] = "slots",
        negatives: Literal["all", "warm"] = "all",
        sampled: int | None = None,
        sampling: Literal["uniform", "popularity"] = "uniform",
        cf_dropout: float = 0.0,
        cf_score_dropout: float = 0.0,
        memory: bool = False,
        neighbours: bool = False,
        compile: bool = False,
        start_from: str | None = None,
        warmup_steps: int = 100,
        weight_decay: float = 0.0,
        filter_seen: bool = True,
        top_k: int = 10,
    ) -> None:
        super().__init__(filter_seen, top_k)
        arguments = {
            "backbone": backbone, "lr": lr, "n_sem": n_sem, "n_cf": n_cf, "alpha": alpha, "bottleneck": bottleneck,
            "trunk": trunk, "missing_cf": missing_cf, "objective": objective, "negatives": negatives,
            "sampled": sampled, "sampling": sampling,
            "cf_dropout": cf_dropout, "cf_score_dropout": cf_score_dropout,
            "memory": memory, "neighbours": neighbours, "compile": compile, "start_from": start_from,
            "warmup_steps": warmup_steps, "weight_decay": weight_decay, "filter_seen": filter_seen, "top_k": top_k,
        }  # fmt: skip
        save_plain_hyperparameters(self, arguments)
        self.backbone_settings = [made(backbone)]  # in a list: its layers belong to `model`, not to this module
        self.lr = lr
        self.n_sem, self.n_cf = n_sem, n_cf
        self.alpha = alpha
        self.recipe = Recipe(
            n_cf=n_cf,
            n_sem=n_sem,
            bottleneck=bottleneck,
            trunk=tuple(trunk),
            missing_cf=missing_cf,
            objective=objective,
            negatives=negatives,
            sampled=sampled,
            sampling=sampling,
            cf_dropout=cf_dropout,
            cf_score_dropout=cf_score_dropout,
            memory=memory,
        )
        self.neighbours = neighbours
        self.compile_backbone = compile
        self.start_from = start_from
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.variants = BETAS if n_sem and n_cf else (float(n_sem > 0),)  # one kind of slot leaves nothing to weigh
        self.model: SETRec | None = None
        self.near: Near | None = None  # what is counted beside the slots, where `neighbours` says so
        self.near_of: Catalogue | None = None
        self.counted_for: Split | None = None
        self.text_graphs: TextGraphs | None = None

    def configure_model(self) -> None:
        """Make the layers, now that the data says how wide its vectors are."""
        if self.backbone_settings[0].reads_whole_row and self.data.prefix_parallel is not False:
            raise ConfigError(
                "The bidirectional mask shows later items of a row to its earlier prefixes: "
                "add --data.prefix_parallel false, which trains one prefix a row."
            )
        if self.model is None:
            self.model = self.make_model(self.data.catalogue, self.data.targets)
            if self.compile_backbone:
                self.model.backbone.compile(dynamic=True)  # batches differ in length
            if self.device_mesh is not None:  # ModelParallelStrategy
                shard(self.model, self.device_mesh)

    def make_model(self, catalogue: Catalogue, targets: Tensor | None = None) -> SETRec:
        """The layers for a catalogue; without a Trainer, this is how a model gets them. targets: see `SETRec`."""
        return SETRec(catalogue, self.backbone_settings[0], self.recipe, targets)

    def on_fit_start(self) -> None:
        """Take the weights of another checkpoint where asked, unless a run is resumed."""
        if self.start_from is not None and self.trainer.ckpt_path is None:
            checkpoint = torch.load(self.start_from, weights_only=True, map_location="cpu")
            self.on_load_checkpoint(checkpoint)
            self.load_state_dict(checkpoint["state_dict"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the frozen base that the checkpoint leaves out, if any."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["backbone"] = self.backbone_settings[0].origin()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another data set, or another frozen base."""
        super().on_load_checkpoint(checkpoint)
        self.backbone_settings[0].check_origin(checkpoint.get("backbone", {}))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, min(self.warmup_steps, steps // 2), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --------------------------------------------------------------------------------------------------------- training
    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        assert self.model is not None
        logged = self.global_step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        sums = self.model.losses(batch, each_slot=logged)
        loss = self.average(sums)
        n_prefix = len(batch.valid)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=n_prefix)
        if logged or self.recipe.objective == "slots":
            names = [f"cf_{c}" for c in range(self.n_cf)] + [f"sem_{k}" for k in range(self.n_sem)]
            slots = sums.slots / sums.n_prefix  # (K,)
            self.log_dict({f"train/loss_{name}": slots[k] for k, name in enumerate(names)}, batch_size=n_prefix)
        reconstruction = sums.reconstruction.detach() / sums.n_reconstructed.clamp(min=1)
        self.log("train/reconstruction", reconstruction, batch_size=n_prefix)
        return loss

    def average(self, sums: LossSums) -> Tensor:
        """Mean over the prefixes of all processes, as a loss whose gradients DDP may average: see `shared`."""
        counts = self.shared(torch.stack([sums.n_prefix, sums.n_reconstructed]))  # (2,)
        n_prefix, n_reconstructed = counts.clamp(min=1e-6)  # a batch of empty histories reconstructs nothing
        return sums.ranking / n_prefix + self.alpha * sums.reconstruction / n_reconstructed

    # ---------------------------------------------------------------------------------------------------------- scoring
    def grid(self) -> list[Weights]:
        """Every beta, with every weight of what is counted beside the slots."""
        if not self.neighbours:
            return super().grid()
        cold = COLD if self.n_sem else COLD[:1]  # without text no neighbours of cold items are there to be weighed
        return [Weights(b, g, r, c) for g in NEIGHBOURS for r in RECENCY for c in cold for b in self.variants]

    def know(self, split: Split) -> None:
        """Count neighbours and recent occurrences, where the model has them."""
        catalogue = self.data.catalogue
        there = self.near is not None and self.near_of is catalogue and self.near.recent.device == self.device
        if self.neighbours and not (there and self.counted_for == split):
            self.know_items(catalogue, count(self.data.known(split), catalogue.n_items))
            self.counted_for = split

    def know_items(self, catalogue: Catalogue, counted: Counted) -> None:
        """As `know`, without a Trainer."""
        if self.near_of is not catalogue:
            self.text_graphs = None
            if catalogue.text is not None and self.n_sem:
                self.text_graphs = text_graphs(catalogue.text, catalogue.texts, catalogue.warm)
            self.near_of = catalogue
        self.near = near(counted, self.text_graphs, catalogue.warm, self.device)

    def refresh(self) -> None:
        """The index of the catalogue under the weights as they are; see `RankingModule.refresh`."""
        assert self.model is not None
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self.index: Index = self.model.index()

    def score_variants(self, batch: Batch, variants: tuple[float, ...]) -> Iterator[Tensor]:
        """Scores (B, N) under every beta, the other weights as chosen; see `RankingModule`."""
        return self.score_grid(batch, [self.chosen._replace(beta=beta) for beta in variants])

    def score_grid(self, batch: Batch, grid: Sequence[Weights]) -> Iterator[Tensor]:
        """Scores (B, N) under each of these weights: two matrix products and two sparse ones, then weighted sums.

        What they mean is said in neighbours.py.

        Always in the weights' own precision: rankings must not depend on how training was sped up.
        """
        assert self.model is not None
        with torch.autocast(self.device.type, enabled=False):
            cf, sem = part_scores(self.model.read(batch, self.index), self.index)  # (B, N), (B, N)
        if self.near is None:
            for weights in grid:
                yield torch.lerp(cf, sem, weights.beta)  # (B, N): (1 - beta) * cf + beta * sem in one pass over memory
            return
        pairs, text = near_scores(self.near, batch.history)  # (B, N), (B, N)
        cold = self.near.cold  # (cold,)
        cold_sem, cold_text = sem[:, cold], text[:, cold]  # (B, cold), (B, cold)
        for weights in grid:
            scores = torch.lerp(cf, sem, weights.beta)  # (B, N)
            scores.add_(torch.lerp(pairs, text, weights.beta), alpha=weights.neighbours)  # (B, N)
            scores.add_(self.near.recent, alpha=weights.recency)  # (B, N)
            by_text = torch.add(cold_sem, cold_text, alpha=weights.cold)  # (B, cold)
            yield scores.index_copy_(1, cold, weights.beta * by_text)  # (B, N)

    def parts(self, batch: Batch, beta: float, items: Tensor) -> dict[str, Tensor]:
        """What the score of some items is made of: the contribution of every slot and memory, weighed by beta.

        Args:
            batch: see `Batch`; one prefix a user.
            beta: as in `score_variants`; the parts of an item add up to its score there.
            items: (B, k) int64 item ids.

        Returns name -> (B, k) float: cf_0, memory_cf_0, ..., neighbours_cf; sem_0, ..., memory_text, neighbours_text; recent.
        """
        assert self.model is not None
        with torch.autocast(self.device.type, enabled=False):
            cf, sem = self.model.parts(batch, self.index, items)
        counted = {}
        if self.near is not None:
            pairs, text = near_scores(self.near, batch.history)  # (B, N), (B, N)
            by_text = torch.isin(items, self.near.cold)  # (B, k)
            text_weight = torch.where(by_text, self.cold_text_weight, self.neighbours_weight)  # (B, k)
            cf = cf | {"neighbours_cf": self.neighbours_weight * pairs.gather(1, items)}  # (B, k)
            cf = {name: part.masked_fill(by_text, 0) for name, part in cf.items()}  # of (B, k)
            sem = sem | {"neighbours_text": text_weight * text.gather(1, items)}  # (B, k)
            counted = {"recent": (self.recency_weight * self.near.recent[items]).masked_fill(by_text, 0)}  # (B, k)
        weighed = {name: (1 - beta) * part for name, part in cf.items()} | {
            name: beta * part for name, part in sem.items()
        }
        return weighed | counted
