"""What training/compare.py makes of its runs: evaluations beside them, means and spreads over seeds, tables, pictures.

evaluations = read_evaluations([{"tasks": ["knn"], "dataset": "scenes", "protocols": {"knn": {"ks": [20]}}}])
results = evaluate_model("runs/compare/levljepa-0", evaluations, "runs/compare/levljepa-0/evaluation.json")
rows = comparison_rows(evaluations, {"levljepa": [results]})
print(format_rows(rows, reference="levljepa"))

Imports point from `report` to `runs`, from there to `sweeps`, `tables` and `evaluations`;
`correlations` reads logs alone.
"""

from .correlations import (
    ALONG,
    EARLY,
    HEALTH_FIGURES,
    MIN_RUNS,
    RESULTS,
    Trajectory,
    correlations,
    format_health,
    plot_health,
    probed,
    trajectories,
)
from .evaluations import EVALUATION_FILE, Evaluation, evaluate_model, read_evaluations, read_results
from .report import ROWS, Report, rounded
from .runs import OPTIONS_FILE, Comparison, Run, Tuning, check_folder, score
from .sweeps import Sweep, format_sweep, plot_sweep, read_sweeps
from .tables import CONFIDENCE, Row, comparison_rows, differs, format_rows, plot_rows, row_titles

__all__ = [
    "ALONG",
    "CONFIDENCE",
    "Comparison",
    "EARLY",
    "EVALUATION_FILE",
    "Evaluation",
    "HEALTH_FIGURES",
    "MIN_RUNS",
    "OPTIONS_FILE",
    "RESULTS",
    "ROWS",
    "Report",
    "Row",
    "Run",
    "Sweep",
    "Trajectory",
    "Tuning",
    "check_folder",
    "comparison_rows",
    "correlations",
    "differs",
    "evaluate_model",
    "format_health",
    "format_rows",
    "format_sweep",
    "plot_health",
    "plot_rows",
    "plot_sweep",
    "probed",
    "read_evaluations",
    "read_results",
    "read_sweeps",
    "rounded",
    "row_titles",
    "score",
    "trajectories",
]
