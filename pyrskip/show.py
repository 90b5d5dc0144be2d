"""Commands that look at finished runs: report, show, results, plot, equal, above, compare, harness, sweep
status, dashboard. Nothing is trained."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrskip.errors import UserError, unknown_name

if TYPE_CHECKING:
    from pyrskip.evaluation.scores import Scored


def report(arguments: Sequence[str]) -> None:
    """One HTML file of a run's or a sweep's directory."""
    from pyrskip.report.page import write_report

    places, given = split_arguments(arguments, ("out",))
    if len(places) != 1:
        raise UserError("pyrskip report takes one directory; allowed beside it: out=<file.html>")
    out = Path(given.get("out", f"{places[0]}/report.html"))
    if out.suffix != ".html":
        raise UserError(f"out={out} is no page; allowed: a name that ends in .html")
    write_report(Path(places[0]), out)
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")


def show(arguments: Sequence[str]) -> None:
    """Every method of a run in a table, and what the run guarantees."""
    from pyrskip.evaluation.runs import load_runs
    from pyrskip.report.frontier import print_methods, print_summary

    places, given = split_arguments(arguments, ("method", "type", "sort"))
    if len(places) != 1:
        raise UserError(
            "pyrskip show takes one run's directory; allowed beside it: method=<names>, type=<name>, "
            "sort=<column>"
        )
    runs = load_runs(Path(places[0]))
    if len(runs) > 1:
        raise UserError(
            f"{places[0]} holds {len(runs)} runs; allowed: one of {', '.join(run.label for run in runs)}, or "
            f"pyrskip sweep status {places[0]}"
        )
    # a comma before a digit is within a name: fixed:0,1
    methods = [name for name in re.split(r",(?!\d)", given.get("method", "")) if name]
    print_methods(runs[0].rows, None, methods, given.get("type", ""), given.get("sort", ""))
    if not methods and "type" not in given:
        print_summary(runs[0].summary)


def results(arguments: Sequence[str]) -> None:
    """What finished runs came to, a table each in Markdown; with out= also as records, and as a page of all
    records that are there."""
    from pyrskip.evaluation.results import read_record, record
    from pyrskip.evaluation.runs import load_runs
    from pyrskip.files import write_json, write_whole
    from pyrskip.report.results import page, section

    places, given = split_arguments(arguments, ("out",))
    if not places:
        raise UserError("pyrskip results takes one or more directories; allowed beside them: out=<folder>")
    records = [record(run) for place in places for run in load_runs(Path(place))]
    print("\n".join(section(of) for of in records))
    if "out" in given:
        out = Path(given["out"])
        for of in records:
            write_json(out / f"{of.experiment}.json", asdict(of))
        kept = [read_record(path) for path in sorted(out.glob("*.json"))]
        write_whole(out.with_name(f"{out.name}.md"), page(kept))
        print(f"records: {out}; page: {out}.md")


def plot(arguments: Sequence[str]) -> None:
    """A picture of the frontiers of one or more runs, or of one run's dial."""
    from pyrskip.evaluation.runs import check_costs, load_all
    from pyrskip.report.plots import plot_runs

    if arguments[:1] == ["dial"]:
        _dial(arguments[1:])
        return
    places, given = split_arguments(arguments, ("out", "method"))
    if len(places) < 2 or places[0] != "frontier":
        raise UserError(
            "pyrskip plot takes frontier and one or more directories; allowed beside them: out=<file>, "
            "method=<name>; or dial and one run"
        )
    runs = load_all(map(Path, places[1:]))
    check_costs(runs)
    out = Path(given.get("out", "frontier.svg"))
    plot_runs({run.label: run.rows for run in runs}, out, given.get("method", "gate"))
    print(f"picture: {out}")


def _dial(arguments: Sequence[str]) -> None:
    """A GIF of what the gate keeps for a test question, from dear to cheap."""
    from omegaconf import OmegaConf

    from pyrskip.config import read, read_saved
    from pyrskip.evaluation.inference import across
    from pyrskip.inference.keys import Keys
    from pyrskip.report.dial import write_dial
    from pyrskip.stages.finished import Finished

    places, given = split_arguments(arguments, ("image", "question", "out"))
    if len(places) != 1:
        raise UserError(
            "pyrskip plot dial takes one run's directory; allowed beside it: image=<number>, "
            "question=<number>, out=<file.gif>"
        )
    root, keys = Path(places[0]).resolve(), Keys(given, ("image", "question", "out"))
    out = Path(keys.text("out", f"{places[0]}/dial.gif"))
    if out.suffix != ".gif":
        raise UserError(f"out={out} is no GIF; allowed: a name that ends in .gif")
    saved = read_saved(str(root), "run") | {"root": str(root.parent), "name": root.name}
    config, _ = read(OmegaConf.create(saved))
    run = Finished.of(config)
    image, question = keys.whole("image", 0, default=0), keys.whole("question", 0, default=0)
    sample = run.test[image] if 0 <= image < len(run.test) else None
    if sample is None or not 0 <= question < len(sample.questions):
        raise UserError(
            f"image={image}, question={question}: allowed: 0 to {len(run.test) - 1}, one that can be read, "
            "and one of its questions, from 0"
        )
    prices = run.gate.prices(sorted(config.evaluation.prices))
    frames = across(run.model, run.gate, sample, question, run.unit, prices)
    write_dial(frames, run.model.pyramid, out)
    print(f"picture: {out}, {len(frames)} decisions")


def equal(arguments: Sequence[str]) -> None:
    """Accuracy at equal cost, of methods of one or more runs."""
    from pyrskip.evaluation.equal import at_equal_cost
    from pyrskip.report.compared import print_equal

    runs, given = _scored("equal", arguments, ("method", "type", "out"))
    methods = given.get("method", "gate").split(",")
    if "type" in given:
        runs = [run.of_type(given["type"]) for run in runs]
    found = at_equal_cost(runs, methods)
    print_equal(found, runs, methods)
    _keep(found, given)


def harness(arguments: Sequence[str]) -> None:
    """Samples of lmms-eval, without a gate and behind one, as a frontier."""
    from pyrskip.evaluation.harness import points, read_samples
    from pyrskip.inference.bundle import read_bundle
    from pyrskip.inference.outside import Outside
    from pyrskip.report.compared import print_harness

    places, given = split_arguments(arguments, ("metric", "bundle", "out"))
    if len(places) < 2 or "metric" not in given:
        raise UserError(
            "pyrskip harness takes the samples of a run without a gate, those of one or more behind one, and "
            "metric=<name>; allowed beside them: bundle=<the gate's export>, out=<file>"
        )
    own = 0.0
    if "bundle" in given:
        spec = read_bundle(Path(given["bundle"]))
        if not isinstance(spec.answerer, Outside):
            raise UserError(f"bundle={given['bundle']} holds a model; allowed: a gate alone")
        own = spec.costs.gate / spec.answerer.context[1]  # FLOPs of reading one token more
    whole, *gated = (read_samples(Path(place), given["metric"]) for place in places)
    found = points(whole, gated, own)
    print_harness(found, given["metric"], own)
    _keep(found, given)


def above(arguments: Sequence[str]) -> None:
    """Whether anything is significantly above the full pyramid in one or more runs."""
    from pyrskip.evaluation.above import above_full
    from pyrskip.report.compared import print_above

    runs, given = _scored("above", arguments, ("out",))
    candidates = above_full(runs)
    print_above(candidates)
    _keep(candidates, given)


def compare(arguments: Sequence[str]) -> None:
    """Rules and policies beside each other: the gates of one or more sweeps at equal cost."""
    from pyrskip.evaluation.comparison import curves_behind, entries_of
    from pyrskip.evaluation.runs import load_all
    from pyrskip.evaluation.scores import same_questions
    from pyrskip.inference.keys import Keys
    from pyrskip.report.compared import print_comparison
    from pyrskip.report.plots import check_format, plot_comparison
    from pyrskip.sweeps.jobs import read_jobs

    places, given = split_arguments(arguments, ("low", "high", "out"))
    if not places:
        raise UserError(
            "pyrskip compare takes one or more sweeps; allowed beside them: low=<cost>, high=<cost>, "
            "out=<file>"
        )
    keys = Keys(given, ("low", "high", "out"))
    low, high = keys.number("low", 0.2), keys.number("high", 0.45)
    if not 0 <= low < high:
        raise UserError(f"low={low:g}, high={high:g}: allowed: FLOPs over full's, 0 <= low < high")
    out = Path(keys.text("out", f"{places[0]}/comparison.png"))
    check_format(out)
    jobs = [job for place in places for job in read_jobs(Path(place))]
    left = [f"{job.directory} is {job.state}" for job in jobs if job.state != "done"]
    if left:
        raise UserError(f"{', '.join(left)}; allowed: sweeps of which every job is done")
    runs = load_all(job.directory for job in jobs)
    same_questions(runs)
    entries = entries_of(runs)
    behind = {method: curves_behind(runs, method) for method in ("hull", "oracle:type")}
    plot_comparison(entries, behind, out)
    _keep(entries, {"out": str(out.with_suffix(".json"))})
    print_comparison(entries, low, high)
    print(f"picture: {out}; figures: {out.with_suffix('.json')}")


def _scored(
    command: str, arguments: Sequence[str], keys: Sequence[str]
) -> "tuple[list[Scored], dict[str, str]]":
    from pyrskip.evaluation.runs import load_all
    from pyrskip.evaluation.scores import load_scores

    places, given = split_arguments(arguments, keys)
    if not places:
        raise UserError(
            f"pyrskip {command} takes one or more directories; allowed beside them: "
            f"{', '.join(f'{k}=<value>' for k in keys)}"
        )
    return load_scores(load_all(map(Path, places))), given


def _keep(found: Sequence[Any], given: Mapping[str, str]) -> None:
    """Write what was found where out= says, as a list in JSON."""
    if "out" in given:
        from pyrskip.files import write_json

        write_json(Path(given["out"]), [asdict(one) for one in found])


def sweep(arguments: Sequence[str]) -> None:
    """A sweep's jobs with their states, and its frontier so far."""
    from rich.console import Console

    from pyrskip.sweeps.jobs import read_jobs
    from pyrskip.sweeps.overview import print_points, print_status, write_overview

    if len(arguments) != 2 or arguments[0] != "status":
        raise UserError(
            "pyrskip sweep takes status and a sweep's directory; allowed beside it: rerun and a job's "
            "directory"
        )
    directory, console = Path(arguments[1]), Console(soft_wrap=True)
    jobs = read_jobs(directory)
    print_status(jobs, console)
    print_points(write_overview(directory, jobs), console)


def dashboard(arguments: Sequence[str]) -> None:
    """A W&B workspace and a report of a project, or what they would be."""
    from importlib.util import find_spec

    dry = "--dry-run" in arguments
    places, given = split_arguments([a for a in arguments if a != "--dry-run"], ("entity", "project"))
    if places:
        raise unknown_name("dashboard argument", places[0], ("--dry-run", "entity=<name>", "project=<name>"))
    if find_spec("wandb_workspaces") is None:
        raise UserError("this command needs the wandb extra: pip install 'pyrskip[wandb]'")
    from pyrskip.tracking.workspaces import as_json, default_project, save

    project = given.get("project", default_project())
    if dry:
        print(as_json(given.get("entity", "entity"), project))
        return
    for address in save(given.get("entity"), project):
        print(address)


def split_arguments(arguments: Sequence[str], keys: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Places, and key=value pairs. Raises UserError for other keys, and for flags. A place may hold '='
    behind a slash: a sweep's runs do."""
    places, given = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or (equals and key not in keys and "/" not in key):
            raise unknown_name("argument", argument, [f"{k}=<value>" for k in keys])
        if equals and key in keys:
            given[key] = value
        else:
            places.append(argument)
    return places, given
