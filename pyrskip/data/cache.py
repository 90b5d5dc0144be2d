"""A frozen encoder's maps, encoded once and read by every later run.

A cache directory has one file for each run of a split's images, `<split>-000000.safetensors`: tile_<t>
[cells, C] float16, the cells of all its images below each other, and size [images, 2] their rows and columns,
(0, 0) for one that could not be read. What gates decide on is kept in float32, the glance's map and, as
`glance` [images, 3, s, s], its pixels: a decision that is nearly another one would else not be that of a
server, which encodes. `cache.json`, written last, lists the files and says what the maps depend on.
`components.safetensors` holds its principal components, if it keeps any.

Axes: I images, T tiles, C channels.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import SPLITS, parse_index
from pyrskip.data.workers import ignore_signals
from pyrskip.errors import UserError
from pyrskip.files import write_json, write_whole
from pyrskip.models.halves import in_halves
from pyrskip.models.tiles import encode_tiles
from pyrskip.models.vision import Components, VisionConfig, VisionEncoder
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch, Question, Sample

INDEX = "cache.json"
COMPONENTS = "components.safetensors"
FORMAT = 2
IMAGES_PER_FILE = 250
MAX_OPEN = 64


def fingerprint(
    config: VisionConfig, vision: VisionEncoder, pyramid: Pyramid, data: Path | None
) -> dict[str, Any]:
    """What cached maps depend on: the encoder and its weights, how pixels reach it, and the images (None: not
    there yet)."""
    weights = hashlib.sha256()
    for name, tensor in sorted({**dict(vision.named_parameters()), **dict(vision.named_buffers())}.items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    made = {
        "vision.backbone": config.backbone,
        "vision.out_index": config.out_index,
        "vision.kwargs": config.kwargs,
        "vision.components": config.components,
        "vision.weights": weights.hexdigest(),
        "pyramid.size": pyramid.size,
        "pyramid.levels": pyramid.levels,
        "pyramid.grid": list(pyramid.grid),
        "pyramid.halo": pyramid.halo,
    }
    if data is not None:
        index = parse_index(data)
        images = hashlib.sha256("".join(s.sha256 for split in SPLITS for s in index.splits[split]).encode())
        made["data"] = images.hexdigest()
    return made


def check_cache(directory: Path, wanted: Mapping[str, Any]) -> None:
    """Raises UserError where the directory holds no whole cache, or one with another fingerprint than
    `wanted`."""
    path = directory / INDEX
    if not path.is_file():
        raise UserError(
            f"data.cache={directory} holds no {INDEX}, so it is no cache, or was not written to the end"
        )
    try:
        content = json.loads(path.read_bytes())
        made, files = content["fingerprint"], [f for files in content["splits"].values() for f in files]
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']}; this version reads format {FORMAT}; "
                "allowed: data.cache=null, or data.cache=run in a run with another name"
            )
        for file in files:
            if (directory / Path(file["file"]).name).stat().st_size != file["bytes"]:
                raise UserError(
                    f"{directory / file['file']} has not the {file['bytes']} bytes that {INDEX} says"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} cannot be read as the index of a cache ({type(error).__name__}: {error})"
        ) from error
    for key, value in wanted.items():
        if made.get(key) != value:
            raise UserError(
                f"data.cache={directory} is stale: made with {key}={_short(made.get(key))}, this run has "
                f"{_short(value)}; allowed: {_short(made.get(key))}, data.cache=null, or data.cache=run in a "
                "run with another name"
            )


def read_components(directory: Path, components: Components) -> bool:
    """Fill them with those that a cache was written with; whether it has such ones."""
    path, own = directory / COMPONENTS, components.state_dict()
    if not path.is_file():
        return False
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete the cache's directory") from error
    fits = {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in own.items()}
    if fits:
        components.load_state_dict(state)
    return fits


class CachedDataset(Dataset[Sample | None]):
    """The samples of a split with their maps instead of their pixels. A sample that cannot be read is None.
    glances: whether the pixels of the coarsest level are read as well.

    Safe to use in loader workers. Raises UserError where the cache does not hold the split's images.
    """

    def __init__(
        self, data: ShardDataset, directory: Path, split: str, pyramid: Pyramid, glances: bool = False
    ) -> None:
        self.data, self._directory, self._pyramid = data, directory, pyramid
        self._glances = glances
        self.directory, self.parts = data.directory, data.parts
        self._open: dict[str, Any] = {}
        content = json.loads((directory / INDEX).read_bytes())
        self._files: list[str] = [file["file"] for file in content["splits"][split]]
        self._place: list[tuple[int, int]] = [
            (number, row)
            for number, file in enumerate(content["splits"][split])
            for row in range(file["images"])
        ]
        if len(self._place) != len(data):
            raise UserError(
                f"data.cache={directory} holds {len(self._place)} images of {split}, the data {len(data)}"
            )
        sizes = [self._file(name).get_tensor("size") for name in self._files]
        self._size = torch.cat(sizes)
        cells = pyramid.cells(self._size)
        count = [c.prod(-1) for c in cells.split([len(s) for s in sizes])]
        # where each image's cells start in its file
        self._start = torch.cat([c.cumsum(0) - c for c in count])
        self._cells = cells

    def __len__(self) -> int:
        return len(self.data)

    def questions(self) -> Iterator[tuple[Question, ...] | None]:
        return self.data.questions()

    def __getitem__(self, index: int) -> Sample | None:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        return [
            self._sample(i, questions)
            for i, questions in zip(indices, self.data.questions_of(indices), strict=True)
        ]

    def _sample(self, index: int, questions: tuple[Question, ...] | None) -> Sample | None:
        height, width = self._size[index].tolist()
        if questions is None or not height:
            return None
        number, row = self._place[index]
        file = self._file(self._files[number])
        maps = []
        for tile, ((rows, columns), start) in enumerate(
            zip(self._cells[index].tolist(), self._start[index].tolist(), strict=True)
        ):
            side = self._pyramid.side(int(self._pyramid.tile_level[tile])) // self._pyramid.stride
            cells = file.get_slice(f"tile_{tile}")[start : start + rows * columns]
            whole = cells.view(rows, columns, cells.shape[-1])
            if (rows, columns) != (side, side):
                whole = torch.nn.functional.pad(whole, (0, 0, 0, side - columns, 0, side - rows))
            maps.append(whole)
        blank = torch.zeros(1, dtype=torch.uint8).expand(3, height, width)
        glance = file.get_slice("glance")[row] if self._glances else None
        return Sample(self.data.image_keys[index], blank, questions, tuple(maps), glance)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            if len(self._open) == MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            try:
                self._open[name] = safe_open(self._directory / name, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"{self._directory / name} cannot be read: {error}; delete the cache's directory"
                ) from error
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}


class CacheModule(pl.LightningModule):
    """Predicts the maps of batches of images, and writes a file whenever one is full."""

    def __init__(
        self, vision: VisionEncoder, pyramid: Pyramid, directory: Path, split: str, total: int
    ) -> None:
        super().__init__()
        self.vision, self.pyramid, self.directory, self.split, self.total = (
            vision,
            pyramid,
            directory,
            split,
            total,
        )
        self.waiting: dict[int, tuple[Tensor, list[Tensor], Tensor]] = {}

    @torch.no_grad()
    def predict_step(self, batch: tuple[list[int], list[int], Batch | None], batch_idx: int) -> None:
        numbers, found, images = batch
        empty = self._kept([torch.zeros(0, self.vision.channels)] * self.pyramid.tiles)
        blank = torch.zeros(3, *[self.pyramid.side(self.pyramid.levels - 1)] * 2)
        self.waiting |= dict.fromkeys(numbers, (torch.zeros(2, dtype=torch.int64), empty, blank))
        if images is not None:
            parts = in_halves(self._maps, images)
            *maps, glances = (torch.cat(of_one) for of_one in zip(*parts, strict=True))
            cells = self.pyramid.cells(images.size).tolist()
            for row, number in enumerate(found):
                kept = [
                    m[row, :, : c[0], : c[1]].permute(1, 2, 0).flatten(0, 1)
                    for m, c in zip(maps, cells[row], strict=True)
                ]
                self.waiting[number] = images.size[row].cpu(), kept, glances[row]
        last = numbers[-1]
        if (last + 1) % IMAGES_PER_FILE == 0 or last + 1 == self.total:
            self._write(last // IMAGES_PER_FILE)

    def _maps(self, images: Batch) -> list[Tensor]:
        """Of all tiles, and behind them the glance's pixels."""
        keep = torch.ones(len(images), self.pyramid.tiles, dtype=torch.bool)
        features = encode_tiles(self.vision, self.pyramid, images, keep)
        return [of.cpu() for of in (*self._kept(features.maps), features.levels[-1])]

    def _kept(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of all tiles, as precise as they are kept."""
        return [m if tile == self.pyramid.glance else m.half() for tile, m in enumerate(maps)]

    def _write(self, number: int) -> None:
        sizes, kept, glances = zip(*(self.waiting[i] for i in sorted(self.waiting)), strict=True)
        tensors = {f"tile_{t}": torch.cat(maps) for t, maps in enumerate(zip(*kept, strict=True))}
        tensors |= {"size": torch.stack(sizes), "glance": torch.stack(glances)}
        content = safetensors.torch.save(tensors)
        write_whole(self.directory / _name(self.split, number), content)
        self.waiting.clear()


def write_cache(
    trainer: pl.Trainer,
    vision: VisionEncoder,
    pyramid: Pyramid,
    data: Mapping[str, ShardDataset],
    directory: Path,
    made: Mapping[str, Any],
    images: int,
    workers: int,
) -> None:
    """Encode every split, ranks in parallel, `images` a pass; what an earlier, killed run has written is
    kept.

    trainer: of precision 32-true, since `made`, the `fingerprint`, knows of no other. Raises UserError where
    the disk is too small or a file cannot be written.
    """
    if trainer.is_global_zero:
        directory.mkdir(parents=True, exist_ok=True)
        _check_space(vision, pyramid, sum(map(len, data.values())), directory)
        if vision.components is not None:
            write_whole(directory / COMPONENTS, safetensors.torch.save(vision.components.state_dict()))
    for split, samples in data.items():
        module = CacheModule(vision, pyramid, directory, split, len(samples))
        passes = _Missing(samples, directory, split, images, pyramid.size, workers)
        trainer.predict(module, datamodule=passes, return_predictions=False)
        trainer.strategy.barrier()
    if trainer.is_global_zero:
        splits = {split: _listed(directory, split, len(samples)) for split, samples in data.items()}
        write_json(directory / INDEX, {"format": FORMAT, "fingerprint": dict(made), "splits": splits})
    trainer.strategy.barrier()


class _Missing(pl.LightningDataModule):
    """A rank's passes over the files that are not there. Whose a file is follows from its number alone: ranks
    look at different moments at what is there."""

    def __init__(
        self, data: ShardDataset, directory: Path, split: str, images: int, side: int, workers: int
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer files than ranks
        self._data, self._directory, self._split = data, directory, split
        self._images, self._side, self._workers = images, side, workers

    def predict_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        mine = range(
            self.trainer.global_rank, -(-len(self._data) // IMAGES_PER_FILE), self.trainer.world_size
        )
        wanted = [number for number in mine if not (self._directory / _name(self._split, number)).exists()]
        passes = _Passes(self._data, wanted, self._images, self._side)
        return DataLoader(passes, batch_size=None, num_workers=self._workers, worker_init_fn=ignore_signals)


class _Passes(Dataset[tuple[list[int], list[int], Batch | None]]):
    """The images of some files, in passes of `images` that never span two files: numbers of all, numbers of
    those that could be read, and their batch."""

    def __init__(self, data: ShardDataset, files: Sequence[int], images: int, side: int) -> None:
        self._data, self._side = data, side
        self._passes = [
            range(low, min(low + images, end))
            for number in files
            for end in [min((number + 1) * IMAGES_PER_FILE, len(data))]
            for low in range(number * IMAGES_PER_FILE, end, images)
        ]

    def __len__(self) -> int:
        return len(self._passes)

    def __getitem__(self, index: int) -> tuple[list[int], list[int], Batch | None]:
        samples = zip(self._passes[index], self._data.__getitems__(self._passes[index]), strict=True)
        found = [(number, sample) for number, sample in samples if sample is not None]
        batch = Batch.collate([sample for _, sample in found], self._side) if found else None
        return list(self._passes[index]), [number for number, _ in found], batch


def _listed(directory: Path, split: str, count: int) -> list[dict[str, Any]]:
    names = [_name(split, n) for n in range(-(-count // IMAGES_PER_FILE))]
    images = [min(IMAGES_PER_FILE, count - n * IMAGES_PER_FILE) for n in range(len(names))]
    return [
        {"file": name, "images": n, "bytes": (directory / name).stat().st_size}
        for name, n in zip(names, images, strict=True)
    ]


def _check_space(vision: VisionEncoder, pyramid: Pyramid, images: int, directory: Path) -> None:
    cells = pyramid.capacity(torch.tensor([[pyramid.size, pyramid.size]]))[0]
    half, whole = (
        int(n) * vision.channels for n in (cells.sum() - cells[pyramid.glance], cells[pyramid.glance])
    )
    whole += 3 * pyramid.side(pyramid.levels - 1) ** 2
    there = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    needed, free = images * (2 * half + 4 * whole) - there, shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"{directory} has {free / 1e9:.1f} GB free, and maps of {images} images need up to "
            f"{needed / 1e9:.1f} GB; allowed: another disk (root=), fewer images, or data.cache=null"
        )


def _name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.safetensors"


def _short(value: object) -> object:
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
