"""Private attributes of other packages that netprism uses, with the reason: each may go with their next release."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIT, EPOCH, CONNECTOR = (
    "pytorch_lightning.loops.fit_loop:_FitLoop",
    "pytorch_lightning.loops.training_epoch_loop:_TrainingEpochLoop",
    "pytorch_lightning.trainer.connectors.logger_connector.logger_connector:_LoggerConnector",
)
TABLE = [  # owner, attribute, reason
    ("pytorch_lightning:Trainer", "_logger_connector", "holds what has been logged in the running epoch"),
    ("pytorch_lightning:Trainer", "_signal_connector", "Requeue replaces Lightning's signal handlers"),
    ("pytorch_lightning:Trainer", "_accelerator_connector", "says whether the samplers are Lightning's"),
    (CONNECTOR, "_first_loop_iter", "its first batch resets the sums of an epoch"),
    (
        "pytorch_lightning.trainer.connectors.signal_connector:_SignalConnector",
        "_original_handlers",
        "restored at the end",
    ),
    (FIT, "_load_combined_loader_states", "Lightning prepares loaders before it reads the checkpoint"),
    (FIT, "_resuming_from_checkpoint", "makes it skip the iterator of a resumed epoch"),
    (FIT, "_data_fetcher", "says whether a batch is the last one"),
    (EPOCH, "_batches_that_stepped", "the step that the loggers get"),
    (EPOCH, "_results", "the sums of an epoch"),
    (EPOCH, "_should_accumulate", "no checkpoint between two micro-batches"),
    (EPOCH, "_should_check_val_fx", "no checkpoint between a batch and its validation"),
    (EPOCH, "_num_ready_batches_reached", "says whether a batch is the last one"),
    ("pytorch_lightning.loops.progress", "_ProcessedTracker", "type of the progress of epochs"),
    ("pytorch_lightning.cli:LightningCLI", "_get", "options of the chosen command, whichever it is"),
    ("pytorch_lightning.cli:LightningCLI", "_subcommand_parsers", "the options that an error may suggest"),
    ("pytorch_lightning.cli:LightningCLI", "_parse_ckpt_path", "overridden: a checkpoint must not choose the class"),
    ("pytorch_lightning.cli:LightningCLI", "_run_subcommand", "overridden: errors in one line"),
    ("pytorch_lightning.trainer.connectors.logger_connector.result:_ResultMetric", "_defaults", "the states of a sum"),
    ("pytorch_lightning.loggers:WandbLogger", "_wandb_init", "Lightning passes an option that wandb warns of"),
    ("pytorch_lightning.loggers:WandbLogger", "_experiment", "replaced where the server does not answer"),
    ("pytorch_lightning.loggers:WandbLogger", "_offline", "set where the server does not answer"),
    ("lightning_fabric.loggers.logger", "_DummyExperiment", "what a logger has on the other ranks"),
    ("torchmetrics:Metric", "_update_count", "saved in the middle of an epoch"),
    ("torchmetrics:Metric", "_plot", "draws what compute() gives"),
    ("torchmetrics:Metric", "_is_synced", "whether this rank has a slice of all samples, or all gates of its own"),
    ("torchmetrics:Metric", "_sync_dist", "overridden: slices of gates travel instead of all gates"),
    ("torchmetrics:Metric", "_copy_state_dict", "overridden: the gates would be there twice"),
    ("torchmetrics:Metric", "_computed", "forgotten on resume"),
    ("torchmetrics:Metric", "_defaults", "the names of the states"),
    ("torch.nn:Module", "_buffers", "restored after a measurement, with those that appeared"),
    ("torch.nn.modules.batchnorm", "_NormBase", "normalisation layers draw no random numbers"),
    ("torch", "_int_mm", "products of int8 matrices; public only for floating point"),
    ("torch.cpu", "_is_vnni_supported", "without these instructions int8 products are slower than float32"),
    ("torch", "_C", "activation checkpointing and function modes have no public state"),
]
PUBLIC = {"_asdict"}  # of named tuples, whose fields have the names without an underscore
FOREIGN_MODULES = {"_C", "_autograd", "_top_saved_tensors_default_hooks"}  # below torch._C


def owner_of(path):
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


@pytest.mark.parametrize(("owner", "attribute", "reason"), TABLE, ids=[f"{o}.{a}" for o, a, _ in TABLE])
def test_it_is_still_there(owner, attribute, reason):
    found = owner_of(owner)
    sources = [inspect.getsource(base) for base in getattr(found, "__mro__", ()) if base.__module__ != "builtins"]
    assert hasattr(found, attribute) or any(attribute in source for source in sources), f"it was used because: {reason}"


def test_the_table_has_all_that_the_source_uses():
    own, used = set(), {}
    for folder in ("netprism", "callbacks", "lightning_modules", "datamodules"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    own.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    own.add(node.id)
                elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                    if isinstance(node.ctx, ast.Store) and getattr(node.value, "id", None) == "self":
                        own.add(node.attr)
                    used[node.attr] = file.name
    listed = {attribute for _, attribute, _ in TABLE}
    missing = {
        attribute: file for attribute, file in used.items() if attribute not in own | listed | FOREIGN_MODULES | PUBLIC
    }
    assert not missing
