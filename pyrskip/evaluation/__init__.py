"""Measure: methods, frontier, bootstrap, timing. Numbers in, numbers out; `pyrskip.report` shows them."""
