"""What finished stages left, as later ones take it up: samples, the model, rollout tables, gates."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pyrskip.config import Config, to_plain
from pyrskip.data.cache import CachedDataset, check_cache, fingerprint, read_components
from pyrskip.data.faults import FaultLog
from pyrskip.data.reader import Samples, ShardDataset, collate
from pyrskip.data.shards import parse_index, read_index
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gates.gate import GateConfig
from pyrskip.models.hf import HfVlm
from pyrskip.models.native import NativeModel
from pyrskip.models.served import ServedModel, build_served, file_digest, identity
from pyrskip.models.tiles import moments
from pyrskip.models.vision import VisionEncoder, map_stride
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import RolloutTable, check_origin
from pyrskip.run import Run, digest
from pyrskip.sample import Batch

ROLLED = ("gate", "val", "test")
"""Splits that are rolled out."""
STATISTICS = 300
"""Training images that statistics of the encoder's features are taken from."""
# directories of gates: the config's own, and the ablations by the gate that they train
METHODS = {"predictor": "query_only", "glance": "glance_only", "joint": "joint"}


def samples_of(run: Run, split: str) -> ShardDataset:
    data = ShardDataset(run.directory("data"), split, run.config.pyramid.size, fault_log(run, split))
    if data.faults:
        tell_faults(run, split)
    return data


def inputs_of(run: Run, split: str, vision: VisionEncoder) -> ShardDataset | CachedDataset:
    """A split's samples, with their maps where those are cached."""
    data = samples_of(run, split)
    if run.cache is None:
        return data
    check_cache_of(run, vision)
    return CachedDataset(data, run.cache, split, pyramid_of(run.config))


def encoder_of(run: Run) -> VisionEncoder:
    """The encoder that the config asks for. Its components are those that its cache holds, or are fitted to
    training images; a cache of another run that holds no such ones is left to `check_cache_of`."""
    config = run.config
    torch.manual_seed(config.flex.seed)  # weights=none are drawn, and in every stage alike
    vision = VisionEncoder(config.vision)
    if vision.components is None or (run.cache is not None and read_components(run.cache, vision.components)):
        return vision
    if config.data.cache in (None, "run"):
        batches = first_batches(samples_of(run, "train"), config.loader.rollout_images, config.pyramid.size)
        whole = vision.whole()
        share = vision.components.fit(*moments(whole, pyramid_of(config), batches))
        run.say(
            f"{vision.channels} components of {whole.channels} channels keep {share:.1%} of their variance"
        )
    return vision


def first_batches(data: Samples, images: int, side: int) -> Iterator[Batch]:
    """The first images of the data, STATISTICS of them at most, each of them without what cannot be read."""
    for low in range(0, min(STATISTICS, len(data)), images):
        batch = collate(data.__getitems__(range(low, min(low + images, len(data)))), side)
        if len(batch):
            yield batch


def check_cache_of(run: Run, vision: VisionEncoder) -> None:
    data = run.directory("data") if run.done("data") else None
    assert run.cache is not None
    check_cache(run.cache, fingerprint(run.config.vision, vision, pyramid_of(run.config), data))


def pyramid_of(config: Config) -> Pyramid:
    p = config.pyramid
    return Pyramid(p.size, p.levels, map_stride(config.vision), tuple(p.grid))


def model_of(run: Run) -> NativeModel | ServedModel:
    c = run.config
    if c.model.served:
        model = build_served(c.model, c.pyramid, c.vision, c.text, c.cost)
        if isinstance(model.box, HfVlm) and c.trainer.accelerator in ("gpu", "cuda"):
            model.box.to("cuda")  # the frontier asks it without a Trainer, and on a CPU it may not even fit
        return model
    # costs may be counted anew without training anew
    return NativeModel.load(run.directory("flex"), c.cost)


def tables_of(run: Run, splits: Sequence[str]) -> dict[str, RolloutTable]:
    """The run's rollouts. Raises UserError where they are not what this run would roll out."""
    directory = run.directory("rollouts")
    tables = {split: RolloutTable.load(directory / split) for split in splits}
    for split, origin in origins_of(run, splits).items():
        check_origin(tables[split], origin, directory / split)
    return tables


def crossed_tables(run: Run, tables: Mapping[str, RolloutTable]) -> dict[str, RolloutTable] | None:
    """The rollouts of evaluation.cross."""
    place = run.config.evaluation.cross
    return None if place is None else other_tables(tables, place, "evaluation.cross")


def other_tables(tables: Mapping[str, RolloutTable], place: str, key: str) -> dict[str, RolloutTable]:
    """The rollouts of the run in `place`, which `key` names: alike in everything but the model's weights."""
    directory = Path(place) / "rollouts"
    others = {split: RolloutTable.load(directory / split) for split in tables}
    for split, table in others.items():
        own = tables[split].origin
        if table.origin.get("model") == own["model"]:
            raise UserError(
                f"{key}={place} holds rollouts of this run's own model; allowed: a run with another "
                "flex.seed on the same data"
            )
        check_origin(table, {**own, "model": table.origin.get("model", "none")}, directory / split)
    return others


def origins_of(run: Run, splits: Sequence[str]) -> dict[str, dict[str, str]]:
    """What each split's rollouts depend on, in words that a refusal can name."""
    config = run.config
    index = read_index(run.directory("data"))
    pyramid = pyramid_of(config)
    actions = ActionSet.of(pyramid, config.budget, config.actions)
    if config.model.served:
        model, longest = identity(config.model), config.model.max_answer
        sight = (
            f"{config.vision.backbone} map {config.vision.out_index} {config.vision.weights}, "
            f"{config.text.name}"
        )
    else:
        model, longest = (
            f"native {file_digest(run.directory('flex') / 'model.safetensors')}",
            config.language.max_answer,
        )
        sight = f"the model's own, {config.text.name}"
    common = {
        "model": model,
        "layout": f"{pyramid.size} px, {pyramid.levels} levels, grid {list(pyramid.grid)}, "
        f"stride {pyramid.stride}",
        "action set": f"{len(actions)} actions {digest({'names': actions.names, 'ladder': actions.ladder})}",
        "budget": json.dumps(to_plain(config.budget)),
        "cost": json.dumps(to_plain(config.cost)),
        "metric": "each question's own",
        "decoding": f"greedy, at most {longest} tokens",
        "sight of the gate": sight,
    }
    shards = {split: digest({"shards": [shard.sha256 for shard in index.splits[split]]}) for split in splits}
    return {split: common | {"split": split, "data": f"{index.source} {shards[split]}"} for split in splits}


def gate_directory(root: Path, method: str, seed: int) -> Path:
    return root / "gate" / method.replace(":", "-") / f"seed-{seed}"


def methods_of(config: Config) -> dict[str, GateConfig]:
    """The frontier's name of each gate that is trained -> the gate. No ablation asks the model how sure it
    is; one that is the run's own gate is left out."""
    ablations = {
        f"gate:{METHODS[name]}": replace(config.gate, name=name, confidence=False)
        for name in config.ablations
    }
    return {"gate": config.gate} | {method: gate for method, gate in ablations.items() if gate != config.gate}


def fault_log(run: Run, split: str) -> FaultLog:
    images = sum(shard.samples for shard in parse_index(run.directory("data")).splits[split])
    return FaultLog(run.root / "faults" / split, images, run.config.data.max_bad_fraction)


def tell_faults(run: Run, split: str) -> None:
    told = fault_log(run, split).summary()
    for line in told["first"]:
        run.say(f"broken, left out: {line}")
    if told["lost"]:
        run.say(
            f"{split}: {told['lost']} of {told['images']} images lost; {run.root / 'faults' / split} lists "
            "them"
        )
