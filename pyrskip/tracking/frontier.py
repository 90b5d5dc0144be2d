"""What a drawn frontier tells its trackers: its figures at each target, and media."""

from typing import Any

from PIL import Image

from pyrskip.evaluation.runs import GALLERY, Finished
from pyrskip.report.figures import frontier_figure, heat_map
from pyrskip.tracking.media import Chart, Media, Pictures, Table

COLUMNS = ("kept", "question", "type", "answer", "truth", "right", "relative_flops", "tokens", "levels")


def frontier_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """frontier/*: means over seeds; what full's own score of 0 gives no number for is left out."""
    metrics = {"frontier/full/accuracy": float(summary["full"]["accuracy"])}
    for target, figures in summary["targets"].items():
        for key in ("retention", "relative_flops", "cost_over_fixed", "cost_over_hull"):
            if key in figures["gate"]:
                metrics[f"frontier/{target}/{key}"] = float(figures["gate"][key]["mean"])
        guaranteed = [seed["guarantee"]["guaranteed"] for seed in figures["gate"]["seeds"]]
        metrics[f"frontier/{target}/guaranteed"] = sum(guaranteed) / len(guaranteed)
    return metrics


def frontier_media(run: Finished) -> dict[str, Media]:
    """The frontier as an interactive plot, and of the gallery pictures, a table and a heat map."""
    media: dict[str, Media] = {"media/frontier": Chart(frontier_figure(run.rows))}
    if run.gallery:
        samples = run.gallery["samples"]
        pictures = [Image.open(run.directory / GALLERY / s["picture"]).convert("RGB") for s in samples]
        captions = [
            f"{s['question']} {s['answer']} ({'right' if s['right'] else 'wrong: ' + s['truth']}), "
            f"cost {s['relative_flops']:.0%} of full"
            for s in samples
        ]
        media["media/samples"] = Pictures(pictures, captions)
        rows = [
            [picture, *(str(s[key]) if key == "levels" else s[key] for key in COLUMNS[1:])]
            for picture, s in zip(pictures, samples, strict=True)
        ]
        media["media/predictions"] = Table(COLUMNS, rows)
        selections = run.gallery["selections"]
        media["media/selections_by_type"] = Chart(heat_map(selections["shares"], selections["names"]))
    return media
