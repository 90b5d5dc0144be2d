"""What the page says of its tables and charts: a note above says what is shown, a hint below what to look
for."""

CURVES = {
    "Validation accuracy": (
        ("val/accuracy/all",),
        "It should rise and level off. Where it falls again, the weights that are kept are those before.",
    ),
    "Relative cost on validation": (
        ("val/relative_flops",),
        "It should settle between the cost of the glance and 1. At either end all are treated alike.",
    ),
    "Entropy of the policy": (
        ("gate/entropy",),
        "It should fall slowly. A gate whose entropy is near 0 from early on has stopped to explore.",
    ),
    "Distinct decisions on validation": (
        ("val/distinct_decisions",),
        "It should be above 1: with one decision, the gate treats every question alike.",
    ),
    "Loss": (
        ("train/loss",),
        "It should fall and level off; jumps ask for a lower learning rate. Losses of two rules differ.",
    ),
    "Seconds a step": (
        ("time/step",),
        "It should be level. Where it rises, something else uses the machine, or steps wait for data.",
    ),
}
"""Training curves: title -> logged names, of which the first that a training has is drawn, and a hint."""
FRONTIER_NOTE = (
    "Accuracy against FLOPs over the mean full pyramid's, on the test split; bars are 95 % intervals over "
    "images. Hover or tap for a point's method, price, accuracy and cost; the legend hides and shows methods."
)
FRONTIER_HINT = (
    "Look for the gate's curve above the hull of fixed selections, and above random decisions at its cost. "
    "Further left at the same height is the same accuracy for less; where the gate lies on the hull, a fixed "
    "selection does as well."
)
SWEEP_NOTE = (
    "The gate's curve of every run, with 95 % intervals; full pyramid and fixed selections are the "
    "first run's."
)
SWEEP_HINT = (
    "Look for the curve that is highest at the cost that you can pay. Where the intervals of two runs "
    "overlap, these figures do not tell them apart."
)
SELECTIONS_HINT = (
    "Look for rows that differ: a gate that reads the question keeps other levels for other types. Rows that "
    "are all alike, or a single full column, are a gate that stopped to decide."
)
TARGETS_NOTE = (
    "A line a target; means over seeds. over fixed: cost over the cheapest fixed selection's that is held to "
    "the same guarantee; over hull: over that of mixed fixed selections that keep as much as the gate."
)
HEALTH_NOTE = (
    "At the price that was taken for each target. One distinct decision, or no information about the "
    "question type, is a gate that stopped to decide."
)
GUARANTEE_NOTE = (
    "Shares of the full pyramid's score. What is guaranteed holds on new images with the confidence, each "
    "line for itself; where the held-out images carry no price, the safest is taken, and 'needed' says about "
    "how many like them would carry it. 'At most': the largest share that they carry where every answer is "
    "full's."
)
METHODS_NOTE = (
    "Test split; seeds averaged, ±: their standard deviation; low, high: 95 %. A click on a heading sorts."
)
GALLERY_NOTE = (
    "Levels from fine to coarse. Framed in blue: encoded; grey and crossed out: skipped, never encoded. "
    "Where levels are cut into tiles, then the picture as the model saw it, and the finest kept level of "
    "each region; beneath, what the gate thought of each tile, if it tells, brighter for more. "
    "Wrong answers are shown more often than they occur: {wrong:.2%} of the test questions at this price."
)
