"""Formats of files of one's own, which `pyrskip.data.conversion` writes shards from: one file each, found by
themselves."""

from pyrskip.data.convert.answers import ordered
from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.convert.format import FORMATS, Format
from pyrskip.data.convert.rows import Found, Row, Skipped, content_key, image_key
from pyrskip.registry import import_modules

import_modules(__name__)

__all__ = [
    "FORMATS",
    "FilesConfig",
    "Format",
    "Found",
    "Row",
    "Skipped",
    "content_key",
    "image_key",
    "ordered",
]
