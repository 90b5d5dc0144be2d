"""The metric scheme: every name that a run logs, what it means, and what logs it.

A name's <part> stands for a level, a question type or a target retention. docs/metrics.md is this table, and
a test holds both to it; another holds the names that trainings really log, and the panels of dashboards.
"""

import re
from dataclasses import dataclass

# what logs a name: a stage, or every rule that trains gates
FLEX, FRONTIER, ANY_RULE = "flex", "frontier", "any rule"
REWARDED = ("gumbel", "reinforce", "actor_critic", "exact")


@dataclass(frozen=True)
class Metric:
    """meaning: one line. unit: of the value. by: stages or rules that log it. media: no number, but pictures
    or a chart."""

    name: str
    meaning: str
    unit: str
    by: tuple[str, ...]
    media: bool = False

    @property
    def pattern(self) -> re.Pattern[str]:
        """What a logged name must match: each <part> is one or more characters, but no slash."""
        return re.compile(
            re.sub(r"<\w+>", r"[^/]+", re.escape(self.name).replace(r"\<", "<").replace(r"\>", ">"))
        )


GROUPS: dict[str, str] = {
    "train": "The step's own batch",
    "gate": "What the gate decides on the step's batch",
    "cost": "What its decisions cost",
    "reward": "Reward",
    "losses": "Losses and diagnostics of rules that maximise a reward",
    "val": "A fixed sample of the validation rollouts, decided by the gate's mode, ten times a training",
    "time": "Throughput",
    "frontier": "The finished frontier, on the test split",
    "media": "Pictures, tables and charts",
}
"""What comes before a name's first slash -> a heading."""

_BY_RULE = (ANY_RULE,)

METRICS: tuple[Metric, ...] = (
    Metric(
        "train/loss", "what the optimizer lowers; not comparable between rules", "nats", (FLEX, *_BY_RULE)
    ),
    Metric(
        "train/accuracy",
        "share of answers that are right as written, under the step's random selection",
        "0..1",
        (FLEX,),
    ),
    Metric("gate/accuracy", "mean score of the mode's decisions", "0..1", _BY_RULE),
    Metric("gate/entropy", "mean entropy of the policy; near 0 it has stopped to explore", "nats", _BY_RULE),
    Metric(
        "gate/decision_entropy",
        "entropy of the mode's selections over the batch: variety, not doubt",
        "nats",
        _BY_RULE,
    ),
    Metric(
        "gate/distinct",
        "how many different selections the mode takes; 1 is a collapsed gate",
        "count",
        _BY_RULE,
    ),
    Metric("gate/mutual_information", "of the mode's selection and the question type", "nats", _BY_RULE),
    Metric(
        "gate/disagreement", "share of questions whose sampled decision is not the mode", "0..1", _BY_RULE
    ),
    Metric(
        "gate/keep_rate/level_<level>",
        "share of questions whose mode keeps any of the level",
        "0..1",
        _BY_RULE,
    ),
    Metric(
        "gate/tension/<tension>",
        "particularise: what every tile's logit is raised by; focus: what relevance is multiplied with; "
        "explore: how often a coin judges a tile",
        "",
        ("gate=relevance",),
    ),
    Metric("gate/weight/<score>", "how much a score counts, mean", "0..1", ("gate=relevance",)),
    Metric("cost/tokens", "mean realised visual tokens of the mode's decisions", "tokens", _BY_RULE),
    Metric(
        "cost/relative_flops",
        "mean FLOPs of the mode's decisions over the full pyramid's",
        "1 = full",
        _BY_RULE,
    ),
    Metric(
        "cost/relative_flops_sampled",
        "the same of sampled decisions: what a target cost is held to",
        "1 = full",
        _BY_RULE,
    ),
    Metric(
        "reward/mean",
        "mean reward of the mode: score - price x relative cost, or the form that is set",
        "score",
        _BY_RULE,
    ),
    Metric(
        "reward/price", "mean price of the batch: what one unit of relative cost is worth", "score", _BY_RULE
    ),
    Metric(
        "losses/policy_loss",
        "the policy's part of the loss: what the reward is worth to it",
        "score",
        REWARDED,
    ),
    Metric("losses/value_loss", "squared error of the critic", "score^2", ("actor_critic",)),
    Metric("losses/entropy", "the entropy that the bonus rewards", "nats", REWARDED),
    Metric(
        "losses/approx_kl",
        "mean of (ratio - 1) - log ratio: how far the policy moved",
        "nats",
        ("actor_critic",),
    ),
    Metric("losses/clip_fraction", "share of decisions whose ratio was clipped", "0..1", ("actor_critic",)),
    Metric(
        "losses/explained_variance",
        "share of the returns' variance that the critic explains",
        "at most 1",
        ("actor_critic",),
    ),
    Metric("val/accuracy/all", "mean score", "0..1", _BY_RULE),
    Metric("val/accuracy/<type>", "mean score of one question type", "0..1", _BY_RULE),
    Metric(
        "val/relative_flops",
        "mean FLOPs over the full pyramid's, the gate's own left out",
        "1 = full",
        _BY_RULE,
    ),
    Metric("val/tokens", "mean realised visual tokens", "tokens", _BY_RULE),
    Metric("val/reward", "the same of the mode at val/price", "score", _BY_RULE),
    Metric(
        "val/mean_reward",
        "mean of reward / (1 + price) on validation at five prices; the weights with the most are kept",
        "score",
        _BY_RULE,
    ),
    Metric("val/price", "the price asked: its own, or the middle of the sampled range", "score", _BY_RULE),
    Metric("val/keep_rate/level_<level>", "share of questions for which the level is kept", "0..1", _BY_RULE),
    Metric(
        "val/distinct_decisions",
        "how many different decisions are taken; 1 is a collapsed gate",
        "count",
        _BY_RULE,
    ),
    Metric("val/entropy_of_decisions", "entropy of the decisions over the questions", "nats", _BY_RULE),
    Metric(
        "val/information",
        "mutual information of decision and question type; 0 where types are ignored",
        "nats",
        _BY_RULE,
    ),
    Metric("time/step", "seconds a step, waiting included", "s", (FLEX, *_BY_RULE)),
    Metric("time/data_wait", "seconds a step that the training waited for its batch", "s", (FLEX, *_BY_RULE)),
    Metric(
        "time/questions_per_second", "questions learnt from, all ranks together", "1/s", (FLEX, *_BY_RULE)
    ),
    Metric("frontier/full/accuracy", "accuracy of the full pyramid", "0..1", (FRONTIER,)),
    Metric(
        "frontier/<target>/retention",
        "accuracy over full's on test, at the price that was taken for the target",
        "1 = full",
        (FRONTIER,),
    ),
    Metric(
        "frontier/<target>/guaranteed",
        "share of gates whose price is guaranteed to keep the target on new images",
        "0..1",
        (FRONTIER,),
    ),
    Metric(
        "frontier/<target>/relative_flops",
        "the same of its FLOPs, the gate's own included",
        "1 = full",
        (FRONTIER,),
    ),
    Metric(
        "frontier/<target>/cost_over_fixed",
        "over the cheapest fixed selection that is held to the same",
        "ratio",
        (FRONTIER,),
    ),
    Metric(
        "frontier/<target>/cost_over_hull",
        "the same over the mix of fixed selections that keeps exactly as much",
        "ratio",
        (FRONTIER,),
    ),
    Metric(
        "media/tokens", "histogram of realised tokens a question, by the mode", "tokens", _BY_RULE, media=True
    ),
    Metric(
        "media/selections_by_type",
        "how often each selection is taken, by question type",
        "0..1",
        (*_BY_RULE, FRONTIER),
        media=True,
    ),
    Metric("media/samples", "images with kept tiles, question, answer and cost", "", (FRONTIER,), media=True),
    Metric("media/predictions", "a table of answers, to filter by type", "", (FRONTIER,), media=True),
    Metric("media/frontier", "accuracy against cost, one curve a method", "", (FRONTIER,), media=True),
)


def find(name: str) -> Metric | None:
    """The metric that a logged name is of, or None."""
    return next((metric for metric in METRICS if metric.pattern.fullmatch(name)), None)


def markdown() -> str:
    """The tables of docs/metrics.md."""
    parts = []
    for group, heading in GROUPS.items():
        rows = [m for m in METRICS if m.name.startswith(f"{group}/")]
        lines = [f"| `{m.name}` | {m.meaning} | {m.unit} | {', '.join(m.by)} |" for m in rows]
        parts.append(
            "\n".join(
                [f"## {heading}\n", "| name | meaning | unit | logged by |", "|---|---|---|---|", *lines]
            )
        )
    return "\n\n".join(parts) + "\n"
