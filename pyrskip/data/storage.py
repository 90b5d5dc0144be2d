"""Where files are: a directory on a disk, or one at a URL, which is read in byte ranges where its server
knows them.

A server that does not is asked for whole files, which are kept below `cache_directory()`.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from pyrskip.errors import UserError
from pyrskip.files import whole_path

SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
"""URLs that may be opened: fsspec knows more, some of which run code."""
MAX_OPEN = 256
"""Files held open at a time by each process."""
TRIES = 4
"""Times that a read from a URL is tried."""
WAIT_SECONDS = 0.5
"""Before the second try; twice as long before each that follows."""
SILENCE_SECONDS = 60
"""Without a byte from a server, after which a read counts as failed."""

Range = tuple[str, int, int]
"""A file's name, and the first byte and the one after the last."""
T = TypeVar("T")


class Storage(Protocol):
    def ranges(self, wanted: Sequence[Range]) -> list[bytes | Exception]:
        """The bytes of each range, or why it cannot be read."""
        ...

    def files(self, names: Sequence[str]) -> list[bytes | Exception]:
        """All of each of some small files, or why it cannot be read."""
        ...

    def local(self, name: str) -> Path:
        """The file on a local disk, fetched if need be. Raises OSError where it cannot be read."""
        ...


class LocalStorage:
    """A directory. Safe to use after a fork, and to pickle."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptors: dict[str, int] = {}

    def ranges(self, wanted: Sequence[Range]) -> list[bytes | Exception]:
        return [_caught(partial(self._read, *one)) for one in wanted]

    def files(self, names: Sequence[str]) -> list[bytes | Exception]:
        return [_caught((self._directory / name).read_bytes) for name in names]

    def local(self, name: str) -> Path:
        return self._directory / name

    def _read(self, name: str, start: int, stop: int) -> bytes:
        if name not in self._descriptors:
            if len(self._descriptors) == MAX_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[name] = os.open(self._directory / name, os.O_RDONLY)
        # pread leaves the position alone, which forked workers share
        return _checked(os.pread(self._descriptors[name], stop - start, start), stop - start)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptors": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)


class RemoteStorage:
    """A directory at a URL. What fails is tried again before it counts as failed; all ranges of a call are
    read at once."""

    def __init__(self, url: str) -> None:
        check_url(url)
        self._url = url.rstrip("/")
        self._ranges: bool | None = None  # whether the server knows ranges, once one has been asked for
        folder = hashlib.sha256(self._url.encode()).hexdigest()[:16]
        self._cache = LocalStorage(cache_directory() / folder)

    def ranges(self, wanted: Sequence[Range]) -> list[bytes | Exception]:
        if self._ranges is None:
            self._ranges = self._knows_ranges(wanted)
        if self._ranges is False:
            missing = {name: _caught(partial(self.local, name)) for name in {name for name, _, _ in wanted}}
            found = self._cache.ranges(wanted)
            failed = [missing[name] for name, _, _ in wanted]
            return [
                why if isinstance(why, Exception) else content
                for why, content in zip(failed, found, strict=True)
            ]

        def read(left: list[int]) -> list[bytes | Exception]:
            names, starts, stops = zip(*(wanted[i] for i in left), strict=True)
            urls = [self._join(name) for name in names]
            contents = filesystem(self._url).cat_ranges(urls, list(starts), list(stops), on_error="return")
            return [
                content
                if isinstance(content, Exception)
                else _caught(partial(_checked, content, stop - start))
                for content, start, stop in zip(contents, starts, stops, strict=True)
            ]

        return _again(read, len(wanted))

    def files(self, names: Sequence[str]) -> list[bytes | Exception]:
        def read(left: list[int]) -> list[bytes | Exception]:
            urls, ends = [self._join(names[i]) for i in left], [None] * len(left)
            return list(filesystem(self._url).cat_ranges(urls, ends, ends, on_error="return"))

        return _again(read, len(names))

    def local(self, name: str) -> Path:
        from filelock import FileLock

        path = self._cache.local(name)
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.exists():
                return path
            with whole_path(path) as part:
                fetch = partial(_caught, partial(self._fetch, name, part))
                (fetched,) = _again(lambda _: [fetch()], 1)
                if isinstance(fetched, Exception):
                    raise (
                        fetched
                        if isinstance(fetched, OSError)
                        else OSError(f"{type(fetched).__name__}: {fetched}")
                    )
        return path

    def _fetch(self, name: str, part: Path) -> Path:
        url = self._join(name)
        size = filesystem(self._url).info(url).get("size")
        filesystem(self._url).get_file(url, str(part))
        if size is not None and part.stat().st_size != size:
            raise EOFError(f"{part.stat().st_size} of {size} bytes came")
        return part

    def _knows_ranges(self, wanted: Sequence[Range]) -> bool | None:
        """Told by the length of an answer: a server that knows no ranges sends the whole file. None where
        none answers."""
        for name, start in {name: start for name, start, _ in wanted}.items():
            content = _caught(
                partial(filesystem(self._url).cat_file, self._join(name), start=start, end=start + 1)
            )
            if not isinstance(content, Exception):
                return len(content) <= 1
        return None

    def _join(self, name: str) -> str:
        return f"{self._url}/{name}"


def open_storage(place: str) -> Storage:
    """A directory's path or URL. Raises UserError for a URL that may not be opened."""
    return RemoteStorage(place) if is_url(place) else LocalStorage(Path(place))


def is_url(place: str) -> bool:
    return ":" in place.split("/")[0]


def check_url(url: str) -> None:
    """Raises UserError unless it is one of SCHEMES: no pipes, no chains of file systems."""
    scheme = url.split("://")[0]
    if "://" not in url or "::" in url or scheme not in SCHEMES:
        raise UserError(
            f"{url!r} may not be opened; allowed: paths, and URLs that begin with {', '.join(SCHEMES)}"
        )


def open_file(place: str) -> BinaryIO:
    """A path or URL, to read and seek in. Raises UserError for a URL that may not be opened, else OSError."""
    if is_url(place):
        check_url(place)
        return cast(BinaryIO, filesystem(place).open(place, "rb"))
    return open(place, "rb")


def expand(pattern: str) -> list[str]:
    """The files that a path or URL with *, ? or {a,b} means, in order. Raises UserError where there is
    none."""
    import glob

    from braceexpand import braceexpand

    found: list[str] = []
    for one in braceexpand(pattern):
        if is_url(one):
            check_url(one)
            fs = filesystem(one)
            scheme = one.split("://")[0]
            hits = sorted(fs.glob(one)) if glob.has_magic(one) else [one] if fs.exists(one) else []
            found += [hit if "://" in hit else f"{scheme}://{hit.lstrip('/')}" for hit in hits]
        else:
            found += sorted(glob.glob(one))
    if not found:
        raise UserError(
            f"{pattern!r} is no file that is there; allowed: a path or URL, which may have *, ? and {{a,b}}"
        )
    return found


def cache_directory() -> Path:
    """PYRSKIP_CACHE, or pyrskip below the user's cache directory."""
    given = os.environ.get("PYRSKIP_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyrskip"
    )


def filesystem(url: str) -> Any:
    """fsspec's, which it keeps one of for each process. Raises UserError where a package for the scheme is
    missing."""
    import fsspec

    scheme = url.split("://")[0]
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS
            )
            options = {"client_kwargs": {"timeout": timeout}}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(f"{url!r} needs a package: {error}") from error


def _again(read: Callable[[list[int]], list[T | Exception]], count: int) -> list[T | Exception]:
    """read(of what is left) until nothing has failed, TRIES times at most. What is not there is not asked for
    again."""
    results: list[T | Exception] = [OSError("was not read")] * count
    left = list(range(count))
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
        try:
            found = read(left)
        except UserError:
            raise
        except Exception as error:  # clients of stores raise their own
            found = [error] * len(left)
        for i, result in zip(left, found, strict=True):
            results[i] = result
        left = [
            i
            for i in left
            if isinstance(results[i], Exception) and not isinstance(results[i], FileNotFoundError)
        ]
        if not left:
            break
    return results


def _caught(read: Callable[[], T]) -> T | Exception:
    try:
        return read()
    except UserError:
        raise
    except Exception as error:
        return error


def _checked(content: bytes, length: int) -> bytes:
    if len(content) != length:
        raise EOFError(f"{len(content)} bytes came instead of {length}")
    return content
