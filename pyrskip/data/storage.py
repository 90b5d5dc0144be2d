"""Where files are: a directory on a disk, or one at a URL, which is read in byte ranges where its server
knows them.

A server that does not is asked for whole files, which are kept below `cache_directory()`.
"""

import glob
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast
from urllib.parse import quote, urlsplit, urlunsplit

from pyrskip.errors import UserError
from pyrskip.files import forms, there, whole_path

SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
"""URLs that may be opened: fsspec knows more, some of which run code."""
WEB = ("http://", "https://")
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
        self._url = url
        self._ranges: bool | None = None  # whether the server knows ranges, once one has been asked for
        folder = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
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
        return join(self._url, name)


def open_storage(place: str) -> Storage:
    """A directory's path or URL. Raises UserError for a URL that may not be opened."""
    return RemoteStorage(place) if is_url(place) else LocalStorage(Path(there(place)))


def is_url(place: str) -> bool:
    """Whether it begins as a URL does, and is no path that is there."""
    head = place.split("/")[0]
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", head)) and ("://" in place or not os.path.lexists(head))


def join(base: str, name: str) -> str:
    """The path or URL of the file `name` in the directory or at the URL `base`. On a web server the name is
    quoted, and goes before a query."""
    if not base.startswith(WEB):
        return f"{base.rstrip('/')}/{name}"
    url = urlsplit(_on_the_web(base))
    return urlunsplit(url._replace(path=f"{url.path.rstrip('/')}/{quote(name)}"))


def _on_the_web(url: str) -> str:
    """With a # that belongs to a name: what follows it in a URL would never be sent."""
    return url.replace("#", "%23") if url.startswith(WEB) else url


def check_url(url: str) -> None:
    """Raises UserError unless it is one of SCHEMES: no pipes, no chains of file systems."""
    scheme = url.split("://")[0]
    if "://" not in url or "::" in url or scheme not in SCHEMES:
        raise UserError(
            f"{url!r} may not be opened; allowed: URLs that begin with {', '.join(SCHEMES)}, and paths, with "
            f"a colon in the first name as ./{url.split('/')[0]}"
        )


def open_file(place: str) -> BinaryIO:
    """A path or URL, to read and seek in. Raises UserError for a URL that may not be opened, else OSError."""
    if is_url(place):
        check_url(place)
        return cast(BinaryIO, filesystem(place).open(_on_the_web(place), "rb"))
    return open(there(place), "rb")


def open_in(base: str, name: str) -> BinaryIO:
    """A file in a directory or at a URL, however its accents are spelt there. As `open_file`."""
    *others, last = forms(name)
    for form in others:
        try:
            return open_file(join(base, form))
        except FileNotFoundError:
            continue
    return open_file(join(base, last))


def expand(pattern: str) -> list[str]:
    """The files that a path or URL with *, ? or {a,b} means, in order; a file of that very name before all.
    Raises UserError where there is none."""
    base, rest = ("", pattern) if is_url(pattern) else _that_is_there(there(pattern))
    whole = _urls(pattern, literal=True) if is_url(pattern) else []
    found = whole or [
        hit
        for one in _braces(rest)
        for hit in (_urls(one) if is_url(base + one) else sorted(glob.glob(glob.escape(base) + one)))
    ]
    if not found:
        raise UserError(
            f"{pattern!r} is no file that is there; allowed: a path or URL, which may have *, ? and {{a,b}}"
        )
    return found


def _that_is_there(pattern: str) -> tuple[str, str]:
    """A pattern as the folders at its beginning that are there by these very names, and the rest."""
    ends = [place + 1 for place, sign in enumerate(pattern) if sign == "/"] + [len(pattern)]
    known = max((end for end in ends if os.path.lexists(pattern[:end])), default=0)
    return pattern[:known], pattern[known:]


def _braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError:  # a brace that nothing closes
        return [pattern]


def _urls(url: str, literal: bool = False) -> list[str]:
    """The files that a URL means. literal: by this very name, as a URL or as a path that is not quoted."""
    check_url(url)
    fs, (scheme, _, path) = filesystem(url), url.partition("://")
    if literal or not glob.has_magic(url):
        names = [_on_the_web(url)]
        if url.startswith(WEB):
            host, slash, path = path.partition("/")
            names.append(f"{scheme}://{host}{slash}{quote(path)}")
        return next(([name] for name in dict.fromkeys(names) if fs.exists(name)), [])
    return [hit if "://" in hit else f"{scheme}://{hit.lstrip('/')}" for hit in sorted(fs.glob(url))]


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
