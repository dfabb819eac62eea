"""SETRec as a LightningModule: training step, optimiser and scores. Its evaluation is in trainer/ranking.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import lazy_instance
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from setrec.backbones.base import Backbone
from setrec.backbones.t5 import T5Backbone
from setrec.data.catalogue import Catalogue, Histories
from setrec.errors import ConfigError
from setrec.files.checkpoint import SETREC, read_checkpoint
from setrec.hparams import instantiate_default, save_plain_hyperparameters
from setrec.model import LossSums, SETRec
from setrec.recipe import Recipe
from setrec.schemas import Batch, EvalSplit
from setrec.scoring.graphs import PAIRS, history_statistics, item_graphs
from setrec.scoring.scorer import Scorer
from setrec.scoring.text_graphs import TextGraphs, text_neighbours
from setrec.scoring.weights import Weights, state_of, weights_of
from setrec.trainer.ranking import RankingModule
from setrec.trainer.resume import check_rates
from setrec.trainer.sharding import shard

_TINY_T5 = lazy_instance(T5Backbone)  # a default whose options the command line shows and overrides one by one


class SETRecModule(RankingModule):
    """Trains SETRec and chooses the weights of its score on validation.

    Args:
        backbone: Reads the histories: T5Backbone or DecoderBackbone (paper: T5-small). Default: a tiny T5 from random weights.
        lr: Peak learning rate of AdamW (paper: 1e-3 for T5, 3e-4 for Qwen).
        alpha: Weight of the reconstruction of the history's text vectors (paper: 0.7 for T5, 0.5 for Qwen).
        compile: Compile the backbone with torch.compile. On a CPU compiling takes minutes and training gets no faster; on a GPU,
            torch 2.11 refuses to compile the tiny decoder (docs/scaling.md).
        start_from: Checkpoint whose weights a fit starts from; see the command `refit`.
        warmup_steps: Optimiser steps of linear warm-up before the cosine decay (paper: 100).
        weight_decay: Weight decay of AdamW (paper: 0, the default of the released training script).
        filter_seen: Leave the items of the user's own history out of the ranking in validation, test and predict. The paper
            ranks them too (false); test reports the figures with and without them.
        top_k: Items that predict lists for each user.
        recipe: The options of the method, see `Recipe`.
    """

    label = "SETRec"

    def __init__(
        self,
        backbone: Backbone = _TINY_T5,
        lr: float = 1e-3,
        alpha: float = 0.7,
        compile: bool = False,
        start_from: str | None = None,
        warmup_steps: int = 100,
        weight_decay: float = 0.0,
        filter_seen: bool = True,
        top_k: int = 10,
        **recipe: Any,
    ) -> None:
        super().__init__(filter_seen, top_k)
        check_rates(lr, weight_decay)
        self.recipe = Recipe(**recipe)
        arguments = {
            "backbone": backbone, "lr": lr, "alpha": alpha, "compile": compile, "start_from": start_from,
            "warmup_steps": warmup_steps, "weight_decay": weight_decay, "filter_seen": filter_seen, "top_k": top_k,
        }  # fmt: skip
        save_plain_hyperparameters(self, arguments | vars(self.recipe))
        self.backbone_settings = [
            instantiate_default(backbone)
        ]  # in a list, so that its layers are registered in `model` only
        self.lr, self.alpha = lr, alpha
        self.compile_backbone = compile
        self.start_from = start_from
        self.warmup_steps, self.weight_decay = warmup_steps, weight_decay
        for name, value in state_of(self.unchosen).items():  # chosen on validation; in the checkpoint
            self.register_buffer(name, value)
        self.register_load_state_dict_pre_hook(_convert_old_weights)  # type: ignore[no-untyped-call]
        self.model: SETRec | None = None
        self._scorer: Scorer | None = None
        self._graphs_of: tuple[EvalSplit, Histories] | None = None
        self._text_graphs: TextGraphs | None = None
        self._scorer_in_train: Scorer | None = None

    def configure_model(self) -> None:
        """Make the layers, once the widths of the data's vectors are known.

        Raises:
            ConfigError: the backbone's mask needs one prefix a row, or the layers were made for other data.
        """
        self.check_catalogue()
        if self.backbone_settings[0].reads_whole_row and self.data.prefix_parallel is not False:
            raise ConfigError(
                "The bidirectional mask shows later items of a row to its earlier prefixes: "
                "add --data.prefix_parallel false to train one prefix a row."
            )
        if self.model is not None:  # the data may be fitted in another way
            self.model.negatives = self.model.negatives_for(self.data.catalogue, self.data.targets).to(self.device)
        else:
            self.model = self.make_model(self.data.catalogue, self.data.targets)
            if self.model.chosen_tokens:
                before = self.unchosen._replace(sources=self.scorer.source_grid[0])
                for name, value in state_of(before).items():
                    if not hasattr(self, name):
                        self.register_buffer(name, value.to(self.device))
            if self.compile_backbone:
                self.model.backbone.compile(dynamic=True)  # batches differ in length
            if self.device_mesh is not None:  # ModelParallelStrategy
                shard(self.model, self.device_mesh)
        self.data.validation_passes = min(2, len(self.weightings()))
        self.data.ahead = self.recipe.ahead

    def make_model(self, catalogue: Catalogue, targets: Tensor | None = None) -> SETRec:
        """The layers for a catalogue; also for use without a Trainer. targets: see `SETRec`."""
        return SETRec(catalogue, self.backbone_settings[0], self.recipe, targets)

    def on_fit_start(self) -> None:
        """Load the weights of the checkpoint `start_from`, unless a run is resumed."""
        if self.start_from is not None and self.trainer.ckpt_path is None:
            found = read_checkpoint(Path(self.start_from))  # says what is wrong with the file
            if found.model_class != SETREC or Path(self.start_from).is_dir():
                kind = (
                    "a sharded checkpoint" if Path(self.start_from).is_dir() else f"a checkpoint of {found.model_class}"
                )
                raise ConfigError(
                    f"--model.start_from {self.start_from} is {kind}: give one file that a fit of SETRec wrote."
                )
            checkpoint = torch.load(self.start_from, weights_only=True, map_location="cpu")
            if checkpoint["catalogue"]["fingerprint"] in self.data.catalogue.grown_from:
                checkpoint["catalogue"] = self.data.catalogue.plain_identity()
            self.on_load_checkpoint(checkpoint)
            self.load_state_dict(checkpoint["state_dict"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the origin of the frozen base, which the checkpoint leaves out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["backbone"] = self.backbone_settings[0].origin()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the data set and the frozen base are those of the checkpoint.

        Raises:
            ConfigError: one of them is another.
        """
        super().on_load_checkpoint(checkpoint)
        self.backbone_settings[0].check_origin(checkpoint.get("backbone", {}))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with linear warm-up and cosine decay; the learning rate changes at every step."""
        from transformers import get_cosine_schedule_with_warmup  # here: it loads what only training needs

        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, min(self.warmup_steps, steps // 2), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --------------------------------------------------------------------------------------------------------- training
    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of a batch, averaged over the prefixes of all processes."""
        assert self.model is not None
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        logged = every > 0 and self.global_step % every == 0
        sums = self.model.losses(batch, each_slot=logged)
        loss = self.average(sums)
        n_prefix = len(batch.valid)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=n_prefix)
        if logged or self.recipe.objective == "slots":
            slots = sums.slots / sums.n_prefix  # (K,)
            names = enumerate(self.model.slot_names)
            self.log_dict({f"train/loss_{name}": slots[k] for k, name in names}, batch_size=n_prefix)
        reconstruction = sums.reconstruction.detach() / sums.n_reconstructed.clamp(min=1)
        self.log("train/reconstruction", reconstruction, batch_size=n_prefix)
        return loss

    def average(self, sums: LossSums) -> Tensor:
        """The mean over the prefixes of all processes, (), for gradients that DDP averages: see `mean_over_processes`."""
        counts = self.mean_over_processes(torch.stack([sums.n_prefix, sums.n_reconstructed]))  # (2,)
        n_prefix, n_reconstructed = counts.clamp(min=1e-6)  # empty histories have nothing to reconstruct
        loss: Tensor = sums.ranking / n_prefix + self.alpha * sums.reconstruction / n_reconstructed
        return loss

    # ---------------------------------------------------------------------------------------------------------- scoring
    @property
    def unchosen(self) -> Weights:
        """The weights before validation chooses: all slots count the same, as in the loss; no item graphs."""
        n_cf, n_sem = self.recipe.n_cf, self.recipe.n_sem
        return Weights(beta=0.5 if n_cf and n_sem else float(n_sem > 0))

    @property
    def chosen(self) -> Weights:
        """The weights that validation chose; before that `unchosen`."""
        return weights_of(dict(self.named_buffers(recurse=False)))

    @property
    def scorer(self) -> Scorer:
        """Scores histories; made when it is first used."""
        assert self.model is not None
        if self._scorer is None or self._scorer.model is not self.model:
            self._scorer, self._graphs_of, self._text_graphs = Scorer(self.model), None, None
            self._scorer_in_train = None
        return self._scorer

    def prepare_scoring(self, split: EvalSplit) -> None:
        """See `RankingModule.prepare_scoring`; item graphs are made again only for another split or other histories."""
        scorer, catalogue = self.scorer, self.data.catalogue
        if self.recipe.neighbours:
            moved = scorer.graphs is not None and scorer.graphs.recency.device != self.device
            made = self._graphs_of
            if made is None or made[0] != split or made[1] is not self.data.histories or moved:
                pairs = PAIRS[self.recipe.pairs]
                if self._text_graphs is None and self.recipe.n_sem:
                    texts = text_neighbours(catalogue, self.data.folder, keep=not self.data.prepared_only)
                    self._text_graphs = None if texts is None else texts.graphs
                statistics = history_statistics(self.data.past_events(split), catalogue.n_items, pairs)
                scorer.graphs = item_graphs(statistics, pairs, self._text_graphs, catalogue.warm, self.device)
                self._graphs_of = split, self.data.histories
        scorer.refresh()

    def score(self, batch: Batch) -> Tensor:
        """See `RankingModule.score`."""
        return next(self.scorer.scores(batch, [self.chosen]))  # (B, N)

    @property
    def counts(self) -> bool:
        """See `RankingModule.counts`: item graphs are counted."""
        return self.recipe.neighbours

    def score_in_train(self, batch: Batch) -> Tensor:
        """See `RankingModule.score_in_train`."""
        scorer = self.scorer
        assert scorer.graphs is not None
        if self._scorer_in_train is None:
            past = self.data.past_events("validation")  # what lies before validation: training
            catalogue, pairs = self.data.catalogue, PAIRS[self.recipe.pairs]
            counted = history_statistics(past, catalogue.n_items, pairs)
            graphs = item_graphs(counted, pairs, self._text_graphs, catalogue.warm, self.device)
            self._scorer_in_train = Scorer(scorer.model, graphs)
        self._scorer_in_train.index = scorer.index
        return next(self._scorer_in_train.scores(batch, [self.chosen]))  # (B, N)

    def weightings(self) -> Sequence[Weights]:
        """See `RankingModule.weightings`."""
        return self.scorer.weightings()

    def hits(self, batch: Batch, target: Tensor, seen: Tensor, grid: Sequence[Weights], k: int) -> Tensor:
        """See `RankingModule.hits`."""
        return self.scorer.hits(batch, target, seen, grid, k)  # (B, V)

    def choose(self, weights: Weights) -> None:
        """See `RankingModule.choose`."""
        for name, value in state_of(weights).items():
            self.get_buffer(name).copy_(value)


def _convert_old_weights(module: SETRecModule, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Turn the weights in a state_dict of an earlier version into those of this version."""
    weights = weights_of(state, prefix)
    state.pop(prefix + "cold_weight", None)
    for name, value in state_of(weights).items():
        state.setdefault(prefix + name, value)
