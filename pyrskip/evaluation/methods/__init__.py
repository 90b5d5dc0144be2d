"""Methods of the frontier, a file an idea. Registering one in METHODS is all that adding it takes."""

from pyrskip.evaluation.methods.method import METHODS, Decisions, Method, method_of, style_of
from pyrskip.registry import import_modules

__all__ = ["METHODS", "Decisions", "Method", "method_of", "style_of"]

import_modules(__name__)
