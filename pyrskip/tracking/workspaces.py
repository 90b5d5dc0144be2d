"""W&B dashboards as code: a workspace and a report, built from the metric scheme. Needs the wandb extra.

Both show the same panels. A family of names (levels, question types) is one panel that matches them all, so
that a dashboard fits every experiment.
"""

import json
import os
import re
from typing import Any

from pyrskip.errors import UserError
from pyrskip.tracking.scheme import Metric, find

TARGET = "0.99"
"""Of the targets that a summary answers for, the one that sweeps are compared at."""
COMPARED = (
    "rule.name",
    "gate.name",
    "gate.policy",
    "gate.width",
    "reward.price",
    "rule.optimizer.lr",
    "seed",
)
"""Config keys that a sweep is likely to vary: the axes of its parallel coordinates."""
# columns and rows of a panel on a report's grid, which is 24 wide
WIDE, TALL = 8, 7


def sections() -> dict[str, list[Any]]:
    """Heading -> panels, the same for workspace and report."""
    from wandb_workspaces.reports import v2 as wr

    def lines(title: str, *names: str, family: str | None = None) -> Any:
        known = [_known(name).name for name in names]
        x = {"x": "trainer/global_step", "title_x": "step", "title": title}
        return wr.LinePlot(**x, metric_regex=_regex(family)) if family else wr.LinePlot(**x, y=known)

    def scatter(title: str, x: str, y: str) -> Any:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(_logged(x)), y=wr.SummaryMetric(_logged(y)))

    def media(title: str, *names: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=[_known(name).name for name in names])

    target = f"frontier/{TARGET}"
    measured = [
        f"{target}/{part}"
        for part in ("relative_flops", "retention", "guaranteed", "cost_over_fixed", "cost_over_hull")
    ]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=key) for key in COMPARED]
    columns += [
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.SummaryMetric(_logged(name)), display_name=name.split("/", 1)[1]
        )
        for name in measured
    ]
    return {
        "Frontier": [
            scatter("Gates at the end of training (validation)", "val/relative_flops", "val/accuracy/all"),
            scatter(
                f"Runs asked for {float(TARGET):.0%} of full (test)",
                f"{target}/relative_flops",
                f"{target}/retention",
            ),
            media("Accuracy against cost", "media/frontier"),
        ],
        "Keep rates": [
            lines("Keep rate by level (training)", family="gate/keep_rate/<level>"),
            lines("Keep rate by level (validation)", family="val/keep_rate/<level>"),
            media("Selections by question type", "media/selections_by_type"),
            lines("Tokens a question", "media/tokens"),
        ],
        "Accuracy and cost": [
            lines("Validation accuracy by question type", family="val/accuracy/<type>"),
            lines(
                "Relative cost", "cost/relative_flops", "cost/relative_flops_sampled", "val/relative_flops"
            ),
            lines("Tokens", "cost/tokens", "val/tokens"),
        ],
        "Health": [
            lines("Entropy of the policy", "gate/entropy"),
            lines("Samples that are not the mode", "gate/disagreement"),
            lines("Distinct decisions", "gate/distinct", "val/distinct_decisions"),
            lines("Entropy of decisions", "gate/decision_entropy", "val/entropy_of_decisions"),
            lines("Information about the type", "gate/mutual_information", "val/information"),
            lines("Tensions of a relevance gate", family="gate/tension/<tension>"),
            lines("Weights of a relevance gate's scores", family="gate/weight/<score>"),
        ],
        "Rewards and losses": [
            lines("Reward", "reward/mean", "val/reward", "val/mean_reward"),
            lines("Price", "reward/price", "val/price"),
            lines("Loss", "train/loss"),
            lines("Accuracy in training", "train/accuracy", "gate/accuracy"),
            lines("Policy and value loss", "losses/policy_loss", "losses/value_loss"),
            lines("Policy entropy and KL", "losses/entropy", "losses/approx_kl"),
            lines(
                "Clip fraction and explained variance", "losses/clip_fraction", "losses/explained_variance"
            ),
        ],
        "Throughput": [
            lines("Seconds a step", "time/step", "time/data_wait"),
            lines("Questions a second", "time/questions_per_second"),
        ],
        "Samples": [
            media("What was kept", "media/samples"),
            wr.WeavePanelSummaryTable(table_name=_logged("media/predictions")),
        ],
        "Sweep": [
            wr.ParallelCoordinatesPlot(
                title=f"What a sweep varies, and what {TARGET} of full costs", columns=columns
            )
        ],
    }


def workspace(entity: str, project: str) -> Any:
    """The project's workspace, not saved yet."""
    from wandb_workspaces import workspaces as ws

    opened = ("Frontier", "Keep rates")
    parts = [
        ws.Section(name=name, panels=panels, is_open=name in opened) for name, panels in sections().items()
    ]
    return ws.Workspace(entity=entity, project=project, name="pyrskip", sections=parts)


def report(entity: str, project: str) -> Any:
    """The project's report, not saved yet: the same panels under headings."""
    from wandb_workspaces.reports import v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for name, panels in sections().items():
        for place, panel in enumerate(panels):
            panel.layout = wr.Layout(x=place % 3 * WIDE, y=place // 3 * TALL, w=WIDE, h=TALL)
        # of the report's own project: naming it would ask the server, and there is none for a dry run
        runs = wr.Runset(name="runs", groupby=["group"] if name == "Sweep" else [])
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    description = (
        "What the gates keep, what it costs and what it is worth; names are those of docs/metrics.md."
    )
    return wr.Report(
        entity=entity, project=project, title="pyrskip", description=description, blocks=blocks, width="fluid"
    )


def as_json(entity: str, project: str) -> str:
    """Workspace and report as they would be sent."""
    parts = {"workspace": workspace(entity, project), "report": report(entity, project)}
    plain = {
        name: part._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, part in parts.items()
    }
    return json.dumps(plain, indent=1)


def save(entity: str | None, project: str) -> list[str]:
    """Save both to the server; returns their addresses. Raises UserError where nobody is logged in, or it
    cannot be reached."""
    import wandb

    try:
        if not wandb.login(prompt=False, verify=False):
            raise UserError(
                "wandb is not logged in; run wandb login, or see what would be sent with --dry-run"
            )
        entity = entity or str(wandb.Api().default_entity)
        parts = workspace(entity, project), report(entity, project)
        for part in parts:
            part.save()
        return [str(part.url) for part in parts]
    except UserError:
        raise
    except Exception as error:  # whatever the packages raise for a network, a login or a project
        reason = " ".join(str(error).split())
        raise UserError(
            f"entity={entity}, project={project}: the dashboard cannot be saved: {reason}"
        ) from error


def default_project() -> str:
    """Where runs go: the environment's project, else the one that conf/logger/wandb.yaml has."""
    return os.environ.get("WANDB_PROJECT", "pyrskip")


def _known(name: str) -> Metric:
    metric = find(name)
    assert metric is not None, name
    return metric


def _logged(name: str) -> str:
    """The name itself, which must be of the scheme."""
    _known(name)
    return name


def _regex(family: str) -> str:
    """Matches every name of a family, such as val/accuracy/<type>."""
    head = family.split("<")[0]
    _known(head + "level_0")
    return f"^{re.escape(head)}.+$"
