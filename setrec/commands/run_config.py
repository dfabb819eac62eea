"""config.yaml: every option of a run, in the run's folder."""

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from setrec.errors import SETRecError
from setrec.files.whole import whole_file
from setrec.trainer.run_folder import folder_of


class RunConfig(SaveConfigCallback):
    """As Lightning's, but the file is written whole or not at all."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, once.

        Raises:
            SETRecError: the folder cannot be written to.
        """
        folder = folder_of(trainer)
        if self.already_saved or folder is None:
            return
        self.already_saved = True
        if trainer.is_global_zero:
            try:
                with whole_file(folder / self.config_filename) as hidden:
                    self.parser.save(self.config, str(hidden), skip_unset=False, overwrite=True)
            except OSError as error:
                raise SETRecError(
                    f"{folder} cannot be written to ({error}): give another --trainer.default_root_dir."
                ) from None
