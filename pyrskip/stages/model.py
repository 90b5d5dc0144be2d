"""The model of a run, of any kind: what flex trained, with the run's pruner, or one that is served."""

from pyrskip.models.native import NativeModel
from pyrskip.models.vlm.hf import HfVlm
from pyrskip.models.vlm.served import ServedModel, build_served
from pyrskip.stages.flex import FLEX
from pyrskip.stages.pruner import pruner_of
from pyrskip.stages.run import Run


def model_of(run: Run) -> NativeModel | ServedModel:
    """The model that answers."""
    c = run.config
    if c.model.served:
        model = build_served(c.model, c.pyramid, c.vision, c.text, c.cost)
        if isinstance(model.box, HfVlm) and c.trainer.accelerator in ("gpu", "cuda"):
            model.box.to("cuda")  # the frontier asks it without a Trainer, and on a CPU it may not even fit
        model.pruner = pruner_of(run, c.pruner)
        return model
    # costs may be counted anew without training anew
    native = NativeModel.load(run.directory(FLEX), c.cost)
    native.pruner = pruner_of(run, c.pruner)
    return native
